-- A full resync has a number, so that no clock decides which spots it has seen. A spot carries the number of the resync
-- that was the latest to have begun when it was last mentioned.
ALTER TABLE spots ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
-- Deleted because a resync did not find it, not because core said so: its own version brings it back.
ALTER TABLE spots ADD COLUMN swept INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spots DROP COLUMN confirmed_at;
CREATE TABLE resyncs (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    generation INTEGER NOT NULL
) STRICT;
INSERT INTO resyncs (id, generation) VALUES (1, 0);
