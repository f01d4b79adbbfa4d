//! The outbox's tables in MySQL.

use crate::mysql::{Database, Migration};

/// The table that records which steps of [`MIGRATIONS`] ran.
pub const MIGRATIONS_TABLE: &str = "outbox_migrations";

/// The outbox's schema.
pub const MIGRATIONS: &[Migration] = &[OUTBOX, VERSIONS];

/// Migrates the tables. `outbox_state.pruned` is from when the outbox was also read over HTTP.
pub(super) async fn migrate_tables(database: &Database) -> anyhow::Result<()> {
    database.migrate(MIGRATIONS, MIGRATIONS_TABLE).await
}

const OUTBOX: Migration = Migration {
    version: 1,
    description: "outbox",
    sql: "
CREATE TABLE IF NOT EXISTS outbox (
    -- Never given twice. Ascends within a transaction; see outbox_gate for several.
    seq BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    event_id CHAR(36) NOT NULL,
    type VARCHAR(255) NOT NULL,
    occurred_at BIGINT NOT NULL,
    data MEDIUMTEXT NOT NULL,
    exchange VARCHAR(255) NOT NULL,
    routing_key VARCHAR(255) NOT NULL,
    ordering_key VARCHAR(255) NOT NULL,
    headers TEXT NOT NULL,
    recorded_at BIGINT NOT NULL,
    published_at BIGINT NULL,
    -- Given up at: an operator has to look at it.
    rejected_at BIGINT NULL,
    shard TINYINT UNSIGNED NOT NULL,
    attempts INT UNSIGNED NOT NULL DEFAULT 0,
    last_error TEXT NULL,
    -- Read in its order by relays (both times are empty) and by pruning (the first is not).
    KEY outbox_waiting (published_at, rejected_at, seq, shard)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One row: the log's name and how far it was pruned.
CREATE TABLE IF NOT EXISTS outbox_state (
    id TINYINT NOT NULL PRIMARY KEY,
    log_id CHAR(32) NOT NULL,
    pruned BIGINT NOT NULL DEFAULT 0
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
INSERT IGNORE INTO outbox_state (id, log_id) VALUES (1, REPLACE(UUID(), '-', ''));

-- One row, to be locked: shared by whoever appends, until his commit; for a moment alone by whoever reads the outbox and
-- must know that no lower number than the last he sees is still to be committed. `is_full` says that too much waits: nothing
-- may be appended.
CREATE TABLE IF NOT EXISTS outbox_gate (
    id TINYINT NOT NULL PRIMARY KEY,
    is_full TINYINT NOT NULL DEFAULT 0
) ENGINE = InnoDB;
INSERT IGNORE INTO outbox_gate (id) VALUES (1);

-- Which relay publishes a shard's events until when.
CREATE TABLE IF NOT EXISTS outbox_shards (
    shard TINYINT UNSIGNED NOT NULL PRIMARY KEY,
    holder VARCHAR(64) NULL,
    held_until BIGINT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
INSERT IGNORE INTO outbox_shards (shard)
VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9), (10), (11), (12), (13), (14), (15);

-- Who is at work until when, whether he holds a shard or not.
CREATE TABLE IF NOT EXISTS outbox_relays (
    holder VARCHAR(64) NOT NULL PRIMARY KEY,
    alive_until BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
",
};

const VERSIONS: Migration = Migration {
    version: 2,
    description: "versions of events",
    sql: "
-- One row: what is added to a row's number to make the version of its event, and the last row that has none because it is
-- older than versions are.
CREATE TABLE IF NOT EXISTS outbox_versions (
    id TINYINT NOT NULL PRIMARY KEY,
    base BIGINT NOT NULL,
    unversioned BIGINT NOT NULL
) ENGINE = InnoDB;
INSERT IGNORE INTO outbox_versions (id, base, unversioned)
SELECT 1, CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED),
    GREATEST(pruned, COALESCE((SELECT MAX(seq) FROM outbox), 0))
FROM outbox_state WHERE id = 1;
",
};
