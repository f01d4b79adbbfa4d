-- Whether a full resync has ever ended: until then the spots are a part of the catalogue only.
ALTER TABLE resyncs ADD COLUMN has_ended INTEGER NOT NULL DEFAULT 0;
