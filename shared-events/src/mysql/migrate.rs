//! Schema migrations.
//!
//! Not sqlx's migrator: its lock does not work on MariaDB (`GET_LOCK` with a negative time-out answers NULL there). A
//! crash between a step and its mark would block the service until an operator repairs the table by hand.

use anyhow::{Context as _, bail, ensure};
use sqlx::migrate::MigrationType;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, SqlSafeStr as _};

use super::{Database, Migration, connect};

/// How long to wait for another process's migration, in seconds.
const LOCK_SECONDS: i64 = 120;

impl Database {
    /// Runs the steps that `table` does not list yet. Several schemas can share a database, each with its own table.
    /// Safe when several processes do it at once.
    ///
    /// MySQL commits at every change of a table. So a step that fails halfway is done in part, and the next start does
    /// it again: every statement of a step must be repeatable (`CREATE TABLE IF NOT EXISTS`, `INSERT IGNORE`).
    ///
    /// # Errors
    /// When a step fails, when a completed step was changed since, or when a newer version of the program migrated the
    /// database.
    pub async fn migrate(&self, steps: &[Migration], table: &'static str) -> anyhow::Result<()> {
        // A separate connection, without the limits of the others. The lock ends with it in any case.
        let mut connection = connect(&self.options)
            .await
            .with_context(|| format!("cannot migrate {table} in {}", self.shown))?;
        let done = migrate(&mut connection, steps, table).await;
        let done = done.with_context(|| format!("cannot migrate {table} in {}", self.shown));
        drop(connection.close().await);
        done
    }
}

async fn migrate(
    connection: &mut MySqlConnection,
    steps: &[Migration],
    table: &'static str,
) -> anyhow::Result<()> {
    // A lock's name has at most 64 characters. MySQL 9.7 has no SHA1.
    let locked: Option<i64> = sqlx::query_scalar(
        "SELECT GET_LOCK(CONCAT('tourin.', LEFT(SHA2(CONCAT(DATABASE(), '.', ?), 256), 40)), ?)",
    )
    .bind(table)
    .bind(LOCK_SECONDS)
    .fetch_one(&mut *connection)
    .await?;
    ensure!(locked == Some(1), "another process has been migrating for {LOCK_SECONDS} s");
    connection
        .execute(AssertSqlSafe(format!(
            "CREATE TABLE IF NOT EXISTS {table} (
                 version BIGINT NOT NULL PRIMARY KEY,
                 description VARCHAR(255) NOT NULL,
                 checksum VARBINARY(64) NOT NULL,
                 installed_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
             ) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
        )))
        .await?;
    let applied: Vec<(i64, Vec<u8>)> =
        sqlx::query_as(AssertSqlSafe(format!("SELECT version, checksum FROM {table}")))
            .fetch_all(&mut *connection)
            .await?;
    for (version, _) in &applied {
        ensure!(
            steps.iter().any(|step| step.version == *version),
            "step {version} was applied by a newer version of the program"
        );
    }
    for step in steps {
        let sum = checksum(step);
        if let Some((_, before)) = applied.iter().find(|(version, _)| *version == step.version) {
            if *before != sum {
                bail!("step {} was changed after it had been applied", step.version);
            }
            continue;
        }
        connection
            .execute(sqlx::raw_sql(step.sql))
            .await
            .with_context(|| format!("step {} ({})", step.version, step.description))?;
        sqlx::query(AssertSqlSafe(format!(
            "INSERT INTO {table} (version, description, checksum) VALUES (?, ?, ?)"
        )))
        .bind(step.version)
        .bind(step.description)
        .bind(sum)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

fn checksum(step: &Migration) -> Vec<u8> {
    sqlx::migrate::Migration::new(
        step.version,
        step.description.into(),
        MigrationType::Simple,
        step.sql.into_sql_str(),
        false,
    )
    .checksum
    .into_owned()
}
