-- The key of the day for visitors' pseudonyms: one row, which each day's key overwrites.
CREATE TABLE IF NOT EXISTS visitor_key (
    id     TINYINT    NOT NULL PRIMARY KEY,
    -- Days since the epoch.
    day    BIGINT     NOT NULL,
    secret BINARY(32) NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

INSERT IGNORE INTO visitor_key (id, day, secret) VALUES (1, 0, REPEAT('0', 32));
