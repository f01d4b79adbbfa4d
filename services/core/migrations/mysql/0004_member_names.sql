-- The member's name in lower case of any script, NFC: what a search compares with. NULL where a version
-- without it wrote the name; such a name has ASCII letters or Hangul, which LOWER(name) folds alike.
-- Only where the column is not there yet, so that the step bears being run again.
SET @step = IF(
    (SELECT COUNT(*) FROM information_schema.columns
     WHERE table_schema = DATABASE() AND table_name = 'members' AND column_name = 'name_folded') = 0,
    'ALTER TABLE members ADD COLUMN name_folded VARCHAR(100) NULL',
    'DO 0'
);
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
