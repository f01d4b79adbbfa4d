-- What the list of members reads, in its order and apart from the rest of the rows.
-- Only where the index is not there yet, so that the step can be run again.
SET @step = IF(
    (SELECT COUNT(*) FROM information_schema.statistics
     WHERE table_schema = DATABASE() AND table_name = 'members' AND index_name = 'members_listed') = 0,
    'CREATE INDEX members_listed ON members (id, id_folded, name_folded, name)',
    'DO 0'
);
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
