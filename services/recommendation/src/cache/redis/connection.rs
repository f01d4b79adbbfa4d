//! The connection, whose use is counted and whose errors are the port's.

use std::sync::Arc;

use redis::aio::ConnectionManager;
use redis::{FromRedisValue, RedisError, ScriptInvocation};
use tourin_chassis::config::ServerUrl;
use tourin_chassis::redis::{connection, is_down, write_probe};

use crate::app::ports::PortError;
use crate::servers::ServerStats;

/// A connection to Redis that heals itself. Clones share it.
#[derive(Clone)]
pub(super) struct Connection {
    manager: ConnectionManager,
    address: String,
    stats: Arc<ServerStats>,
}

impl Connection {
    /// The Redis at `url`. Nothing is sent before the first use.
    pub(super) fn new(url: &ServerUrl) -> anyhow::Result<Self> {
        let (manager, address) = connection(url)?;
        Ok(Self { manager, address, stats: Arc::default() })
    }

    /// Where the server is, without credentials.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// What was asked of the server.
    pub(super) fn stats(&self) -> Arc<ServerStats> {
        Arc::clone(&self.stats)
    }

    /// Runs a script, and loads it first where the server does not know it.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, PortError> {
        self.stats.count();
        call.invoke_async(&mut self.manager.clone()).await.map_err(failed)
    }

    /// Makes a small write.
    pub(super) async fn write_probe(&self, key: &str) -> Result<(), PortError> {
        self.stats.count();
        write_probe(&self.manager, key).await.map_err(failed)
    }

    /// Sends a command.
    pub(super) async fn query<T: FromRedisValue>(
        &self,
        command: &redis::Cmd,
    ) -> Result<T, PortError> {
        self.stats.count();
        command.query_async(&mut self.manager.clone()).await.map_err(failed)
    }
}

fn failed(error: RedisError) -> PortError {
    let is_down = is_down(&error);
    let error = anyhow::Error::new(error).context("redis");
    if is_down { PortError::unavailable(error) } else { PortError::failed(error) }
}
