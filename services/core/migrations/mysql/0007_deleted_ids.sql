-- SHA-256 of the ids of deleted members, in lower case: nobody else can take them. A digest, because an erasure
-- leaves no name behind; a caller who guesses an id can still ask whether it is taken, as for any other id.
CREATE TABLE IF NOT EXISTS deleted_ids (
    digest BINARY(32) NOT NULL PRIMARY KEY
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- SHA-256 of the only refresh token that the kept session has after a change of the password.
SET @step = IF(
    (SELECT COUNT(*) FROM information_schema.columns
     WHERE table_schema = DATABASE() AND table_name = 'session_endings' AND column_name = 'kept_token') = 0,
    'ALTER TABLE session_endings ADD COLUMN kept_token VARBINARY(32) NULL',
    'DO 0'
);
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
