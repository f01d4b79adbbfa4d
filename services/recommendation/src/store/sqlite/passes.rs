//! The times of pruning passes, on SQLite.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use tourin_chassis::pruning::{PassLog, StoreTimes};
use tourin_shared_events::sqlite::{Database, from_micros, to_micros};

use super::writer::{Change, Writer};

/// [`PassLog`] on SQLite. A file has no clock of its own.
pub(super) struct SqlitePasses {
    db: Database,
    writer: Writer,
}

impl SqlitePasses {
    pub(super) fn new(db: Database, writer: Writer) -> Self {
        Self { db, writer }
    }
}

#[async_trait]
impl PassLog for SqlitePasses {
    async fn times(&self, what: &str) -> anyhow::Result<StoreTimes> {
        let passed: Option<i64> =
            sqlx::query_scalar("SELECT passed_at FROM prune_passes WHERE what = ?")
                .bind(what)
                .fetch_optional(self.db.reader())
                .await?;
        Ok(StoreTimes { server: None, last_pass: passed.map(from_micros).transpose()? })
    }

    async fn passed(&self, what: &str, at: DateTime<Utc>) -> anyhow::Result<()> {
        Ok(self.writer.commit(Passed { what: what.to_owned(), at }).await?)
    }
}

struct Passed {
    what: String,
    at: DateTime<Utc>,
}

#[async_trait]
impl Change for Passed {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        sqlx::query(
            "INSERT INTO prune_passes (what, passed_at) VALUES (?, ?)
             ON CONFLICT DO UPDATE SET passed_at = excluded.passed_at",
        )
        .bind(&self.what)
        .bind(to_micros(self.at))
        .execute(connection)
        .await
        .map(drop)
    }
}
