-- When what is old was deleted last, by kind: what the next pass compares the clock with. Microseconds since the epoch.
CREATE TABLE IF NOT EXISTS prune_passes (
    what      VARCHAR(32) NOT NULL PRIMARY KEY,
    passed_at BIGINT      NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
