-- The search index is in memory. It reads the spots in the order of their doc ids, and later those that have
-- changed since.
DROP TABLE spot_grams;
DROP TABLE spot_texts;
DROP INDEX tour_spots_by_name;
DROP INDEX tour_spots_by_cell;
ALTER TABLE tour_spots DROP COLUMN cell;
ALTER TABLE tour_spots RENAME COLUMN ord TO doc_id;
-- The catalogue's revision that the spot was last changed in.
ALTER TABLE tour_spots ADD COLUMN changed_in INTEGER NOT NULL DEFAULT 0;
CREATE INDEX tour_spots_by_change ON tour_spots (changed_in);
