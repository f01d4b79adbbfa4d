-- Entries of the log that end no session: a tag of cached responses that are out of date. Their session is an id that no
-- session can have.
SET @step = IF(
    (SELECT COUNT(*) FROM information_schema.columns
     WHERE table_schema = DATABASE() AND table_name = 'revocations' AND column_name = 'invalidates') = 0,
    'ALTER TABLE revocations ADD COLUMN invalidates VARCHAR(128) NULL',
    'DO 0'
);
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
