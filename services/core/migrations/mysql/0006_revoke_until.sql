-- Until when a revocation of the session must be kept: its last access token has expired by then. 0 for sessions of
-- an earlier version: the lifetime in the settings applies.
SET @step = IF(
    (SELECT COUNT(*) FROM information_schema.columns
     WHERE table_schema = DATABASE() AND table_name = 'sessions' AND column_name = 'revoke_until') = 0,
    'ALTER TABLE sessions ADD COLUMN revoke_until BIGINT NOT NULL DEFAULT 0',
    'DO 0'
);
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
