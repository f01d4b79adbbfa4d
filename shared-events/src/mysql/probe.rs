//! A small write like those of requests, to check that the database takes writes.

use uuid::Uuid;

use super::{Database, Migration};

/// Rows of write probes: enough that processes rarely share one, and a fixed number, so that the table does not grow
/// with each process.
const ROWS: u128 = 1_024;

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    description: "small writes",
    sql: "CREATE TABLE IF NOT EXISTS write_probe (
              id SMALLINT UNSIGNED NOT NULL PRIMARY KEY,
              written_at BIGINT NOT NULL
          ) ENGINE = InnoDB",
}];

/// A different value each time: a server does not write an unchanged value.
const WRITE: &str = "INSERT INTO write_probe (id, written_at) \
                     VALUES (?, CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)) \
                     ON DUPLICATE KEY UPDATE written_at = VALUES(written_at)";

/// A random row.
pub(super) fn any_row() -> u16 {
    u16::try_from(Uuid::new_v4().as_u128() % ROWS).unwrap_or_default()
}

impl Database {
    /// Creates the table of [`Database::write_probe`] if it is missing.
    ///
    /// # Errors
    /// Those of [`Database::migrate`].
    pub async fn prepare_probe(&self) -> anyhow::Result<()> {
        self.migrate(MIGRATIONS, "write_probe_migrations").await
    }

    /// Writes a row of its own and commits: a server that is read-only or has a full disk still answers reads.
    ///
    /// # Errors
    /// Those of a write; [`refusal`](super::refusal) describes them.
    pub async fn write_probe(&self) -> sqlx::Result<()> {
        sqlx::query(WRITE).bind(self.probe_row).execute(&self.writers).await?;
        Ok(())
    }
}
