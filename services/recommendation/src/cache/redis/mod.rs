//! The trend on Redis 7.
//!
//! Every change is one script, so that an event's effect and its id are stored atomically. All keys
//! of a prefix share one hash tag and so one slot of a cluster.
//!
//! Confirmed writes are as safe as Redis's persistence: with `appendfsync everysec` the end of its
//! process loses nothing, and a crash of its machine may lose the last second. `maxmemory-policy`
//! must be `noeviction`: an evicted id or count lets its event count twice.

/// A script with the shared functions of `decay.lua`.
macro_rules! script {
    ($file:literal) => {
        redis::Script::new(concat!(include_str!("decay.lua"), include_str!($file)))
    };
}

mod connection;
mod keys;
mod passes;
mod recorder;
mod trend;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::pruning::PassLog;

use self::connection::Connection;
use self::keys::Keys;
use self::passes::RedisPasses;
use self::trend::RedisTrend;
use crate::app::ports::{PortError, TrendStore};
use crate::domain::trend::TrendRules;
use crate::operation::{Engine, StoreMetrics, trouble};
use crate::servers::Server;
use tourin_chassis::health::Trouble;
use tourin_chassis::redis::RedisUrl;

/// Opens the trend under `prefix` on the Redis at `url`. Nothing is sent before the first use. Must
/// be called inside a tokio runtime.
///
/// # Errors
/// When the connection cannot be set up. The message does not repeat the URL.
pub fn open(
    url: &RedisUrl,
    prefix: &str,
    rules: TrendRules,
    clock: SharedClock,
    metrics: &StoreMetrics,
) -> anyhow::Result<OnRedis> {
    let connection = Connection::new(url, metrics)?;
    let trend = Arc::new(RedisTrend::new(connection.clone(), prefix, rules, clock));
    let passes = RedisPasses::new(connection.clone(), Keys::new(prefix).passes());
    let server = RedisServer { connection, trend: Arc::clone(&trend) };
    Ok(OnRedis { trend, passes: Arc::new(passes), server: Arc::new(server) })
}

/// The trend on Redis.
pub struct OnRedis {
    /// The trend.
    pub trend: Arc<dyn TrendStore>,
    /// The times of its pruning passes.
    pub passes: Arc<dyn PassLog>,
    /// The Redis server.
    pub server: Arc<dyn Server>,
}

struct RedisServer {
    connection: Connection,
    trend: Arc<RedisTrend>,
}

#[async_trait]
impl Server for RedisServer {
    fn engine(&self) -> &Engine {
        &self.connection.engine
    }

    fn address(&self) -> &str {
        self.connection.address()
    }

    async fn prepare(&self) -> Result<(), PortError> {
        self.connection.query::<()>(&redis::cmd("PING")).await?;
        match self.trend.adopt_half_life().await {
            // A server that refuses writes can still be read. Readiness reports the refusal.
            Err(error) if matches!(trouble(&error), Trouble::Refuses(_)) => {
                tracing::warn!(%error, "redis refuses writes; the trend keeps its previous half-life");
            }
            adopted => adopted?,
        }
        self.warn_of_eviction().await;
        Ok(())
    }

    async fn write_probe(&self) -> Result<(), PortError> {
        self.connection.write_probe(&self.trend.probe_key()).await
    }
}

impl RedisServer {
    async fn warn_of_eviction(&self) {
        let info = self.connection.query::<String>(redis::cmd("INFO").arg("memory")).await;
        // Some hosted Redis forbids INFO. Then the policy is unknown.
        let Ok(info) = info else { return };
        let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
        if let Some(policy) = policy.filter(|policy| *policy != "noeviction") {
            tracing::warn!(
                policy,
                "redis may evict ids of events, which then count twice: set maxmemory-policy to noeviction"
            );
        }
    }
}
