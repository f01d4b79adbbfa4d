//! The times of the trend's pruning passes, on Redis.

use anyhow::Context as _;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_chassis::pruning::{PassLog, StoreTimes};

use super::connection::Connection;

pub(super) struct RedisPasses {
    connection: Connection,
    key: String,
}

impl RedisPasses {
    pub(super) fn new(connection: Connection, key: String) -> Self {
        Self { connection, key }
    }
}

fn time(micros: i64) -> anyhow::Result<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros).context("redis: invalid time")
}

#[async_trait]
impl PassLog for RedisPasses {
    async fn times(&self, what: &str) -> anyhow::Result<StoreTimes> {
        let (seconds, micros): (i64, i64) = self.connection.query(&redis::cmd("TIME")).await?;
        let mut get = redis::cmd("HGET");
        let passed: Option<i64> = self.connection.query(get.arg(&self.key).arg(what)).await?;
        Ok(StoreTimes {
            server: Some(time(seconds.saturating_mul(1_000_000).saturating_add(micros))?),
            last_pass: passed.map(time).transpose()?,
        })
    }

    async fn passed(&self, what: &str, at: DateTime<Utc>) -> anyhow::Result<()> {
        let mut set = redis::cmd("HSET");
        set.arg(&self.key).arg(what).arg(at.timestamp_micros());
        Ok(self.connection.query(&set).await?)
    }
}
