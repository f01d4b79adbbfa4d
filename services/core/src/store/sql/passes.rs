//! The times of the last pruning passes, and the clock of the database's server.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_chassis::pruning::{PassLog, StoreTimes};
use tourin_shared_events::sqlite::{from_micros, to_micros};

use super::{Store, bounded};

#[async_trait]
impl PassLog for Store {
    async fn times(&self, what: &str) -> anyhow::Result<StoreTimes> {
        let reading = sqlx::query_as(either!(
            // A file has no server clock.
            sqlite: "SELECT NULL, (SELECT passed_at FROM prune_passes WHERE what = ?)",
            mysql: "SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED),
                        (SELECT passed_at FROM prune_passes WHERE what = ?)",
        ))
        .bind(what)
        .fetch_one(self.db.reader());
        let (server, passed): (Option<i64>, Option<i64>) = bounded(reading).await?;
        Ok(StoreTimes {
            server: server.map(from_micros).transpose()?,
            last_pass: passed.map(from_micros).transpose()?,
        })
    }

    async fn passed(&self, what: &str, at: DateTime<Utc>) -> anyhow::Result<()> {
        let writing = async {
            let mut tx = self.db.write().await?;
            sqlx::query(either!(
                sqlite: "INSERT INTO prune_passes (what, passed_at) VALUES (?, ?)
                         ON CONFLICT DO UPDATE SET passed_at = excluded.passed_at",
                mysql: "INSERT INTO prune_passes (what, passed_at) VALUES (?, ?)
                        ON DUPLICATE KEY UPDATE passed_at = VALUES(passed_at)",
            ))
            .bind(what)
            .bind(to_micros(at))
            .execute(&mut *tx)
            .await?;
            tx.commit().await
        };
        Ok(bounded(writing).await?)
    }
}
