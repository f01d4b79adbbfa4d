//! When what is old was deleted last, in each engine, and what time its server has.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_chassis::pruning::{PassLog, StoreTimes};
use tourin_shared_events::{mysql, sqlite};

use super::mysql::MysqlStore;
use super::redis::MysqlRedisStore;
use super::sqlite::SqliteStore;

/// A file has no clock but the machine's.
#[async_trait]
impl PassLog for SqliteStore {
    async fn times(&self, what: &str) -> anyhow::Result<StoreTimes> {
        let passed: Option<i64> =
            sqlx::query_scalar("SELECT passed_at FROM prune_passes WHERE what = ?1")
                .bind(what)
                .fetch_optional(self.db.reader())
                .await?;
        Ok(StoreTimes { server: None, last_pass: passed.map(sqlite::from_micros).transpose()? })
    }

    async fn passed(&self, what: &str, at: DateTime<Utc>) -> anyhow::Result<()> {
        let mut transaction = self.db.write().await?;
        sqlx::query(
            "INSERT INTO prune_passes (what, passed_at) VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET passed_at = excluded.passed_at",
        )
        .bind(what)
        .bind(sqlite::to_micros(at))
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }
}

#[async_trait]
impl PassLog for MysqlStore {
    async fn times(&self, what: &str) -> anyhow::Result<StoreTimes> {
        let reading = sqlx::query_as(
            "SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED),
                 (SELECT passed_at FROM prune_passes WHERE what = ?)",
        )
        .bind(what)
        .fetch_one(self.db.reader());
        let (now, passed): (i64, Option<i64>) = mysql::bounded(reading).await?;
        Ok(StoreTimes {
            server: Some(mysql::from_micros(now)?),
            last_pass: passed.map(mysql::from_micros).transpose()?,
        })
    }

    async fn passed(&self, what: &str, at: DateTime<Utc>) -> anyhow::Result<()> {
        let writing = sqlx::query(
            "INSERT INTO prune_passes (what, passed_at) VALUES (?, ?)
             ON DUPLICATE KEY UPDATE passed_at = VALUES(passed_at)",
        )
        .bind(what)
        .bind(mysql::to_micros(at))
        .execute(self.db.writer());
        mysql::bounded(writing).await?;
        Ok(())
    }
}

/// What is pruned is in Redis, whose clock counts; the passes are noted in MySQL.
#[async_trait]
impl PassLog for MysqlRedisStore {
    async fn times(&self, what: &str) -> anyhow::Result<StoreTimes> {
        let times = self.mysql().times(what).await?;
        Ok(StoreTimes { server: Some(self.redis_time().await?), ..times })
    }

    async fn passed(&self, what: &str, at: DateTime<Utc>) -> anyhow::Result<()> {
        self.mysql().passed(what, at).await
    }
}
