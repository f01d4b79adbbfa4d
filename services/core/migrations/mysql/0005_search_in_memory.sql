-- The search index is in memory. It reads the spots in the order of their doc ids, and later those that have
-- changed since (changed_in is the catalogue's revision that the spot was last changed in).
-- Only where that was not done yet, so that the step bears being run again.
DROP TABLE IF EXISTS spot_grams, spot_texts;
SET @step = IF(
    (SELECT COUNT(*) FROM information_schema.columns
     WHERE table_schema = DATABASE() AND table_name = 'tour_spots' AND column_name = 'changed_in') = 0,
    'ALTER TABLE tour_spots
         DROP KEY tour_spots_by_name,
         DROP KEY tour_spots_by_cell,
         DROP COLUMN cell,
         RENAME COLUMN ord TO doc_id,
         ADD COLUMN changed_in BIGINT NOT NULL DEFAULT 0,
         ADD KEY tour_spots_by_change (changed_in)',
    'DO 0'
);
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
SET @step = IF(
    (SELECT COUNT(*) FROM information_schema.columns
     WHERE table_schema = DATABASE() AND table_name = 'catalogue' AND column_name = 'spots') = 1,
    'ALTER TABLE catalogue DROP COLUMN spots',
    'DO 0'
);
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
