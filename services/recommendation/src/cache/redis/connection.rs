//! The connection to Redis. It counts commands and maps errors to [`PortError`].

use redis::aio::ConnectionManager;
use redis::{FromRedisValue, RedisError, ScriptInvocation};
use tourin_chassis::redis::{RedisUrl, connection, is_down, write_probe};

use crate::app::ports::PortError;
use crate::operation::{Engine, StoreMetrics};

/// A connection to Redis that reconnects by itself. Clones share it.
#[derive(Clone)]
pub(super) struct Connection {
    manager: ConnectionManager,
    address: String,
    pub(super) engine: Engine,
}

impl Connection {
    /// Connects to the Redis at `url` on first use.
    pub(super) fn new(url: &RedisUrl, metrics: &StoreMetrics) -> anyhow::Result<Self> {
        let (manager, address) = connection(url)?;
        Ok(Self { manager, address, engine: Engine::of_server("redis", metrics) })
    }

    /// The server's address, without credentials.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Runs a script, and loads it first if the server does not know it.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, PortError> {
        self.engine.commands.inc();
        call.invoke_async(&mut self.manager.clone()).await.map_err(failed)
    }

    pub(super) async fn write_probe(&self, key: &str) -> Result<(), PortError> {
        self.engine.commands.inc();
        write_probe(&self.manager, key).await.map_err(failed)
    }

    pub(super) async fn query<T: FromRedisValue>(
        &self,
        command: &redis::Cmd,
    ) -> Result<T, PortError> {
        self.engine.commands.inc();
        command.query_async(&mut self.manager.clone()).await.map_err(failed)
    }
}

fn failed(error: RedisError) -> PortError {
    let is_down = is_down(&error);
    let error = anyhow::Error::new(error).context("redis");
    if is_down { PortError::unavailable(error) } else { PortError::failed(error) }
}
