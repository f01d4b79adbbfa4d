//! A small write as requests make it, to see whether the database takes writes.

use uuid::Uuid;

use super::{Database, Migration};

/// Rows of small writes: so many processes are most likely not in each other's way, and a database does not grow by the
/// processes that it has seen.
const ROWS: u128 = 1_024;

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    description: "small writes",
    sql: "CREATE TABLE IF NOT EXISTS write_probe (
              id SMALLINT UNSIGNED NOT NULL PRIMARY KEY,
              written_at BIGINT NOT NULL
          ) ENGINE = InnoDB",
}];

/// Another value each time: a server does not write what is there already.
const WRITE: &str = "INSERT INTO write_probe (id, written_at) \
                     VALUES (?, CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)) \
                     ON DUPLICATE KEY UPDATE written_at = VALUES(written_at)";

/// One of the rows, by chance.
pub(super) fn any_row() -> u16 {
    u16::try_from(Uuid::new_v4().as_u128() % ROWS).unwrap_or_default()
}

impl Database {
    /// Makes the table of [`Database::write_probe`], if it is not there.
    ///
    /// # Errors
    /// Those of [`Database::migrate`].
    pub async fn prepare_probe(&self) -> anyhow::Result<()> {
        self.migrate(MIGRATIONS, "write_probe_migrations").await
    }

    /// Writes a row of its own and commits: a server that is read-only, or whose disk is full, answers all the same.
    ///
    /// # Errors
    /// Those of a write; [`refusal`](super::refusal) puts them into words.
    pub async fn write_probe(&self) -> sqlx::Result<()> {
        sqlx::query(WRITE).bind(self.probe_row).execute(&self.writers).await?;
        Ok(())
    }
}
