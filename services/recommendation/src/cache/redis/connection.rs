//! The connection with bounds on everything.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{
    Client, ErrorKind, FromRedisValue, IntoConnectionInfo as _, RedisError, ScriptInvocation,
    ServerErrorKind,
};

use crate::app::ports::PortError;
use crate::servers::ServerStats;
use tourin_chassis::config::ServerUrl;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT_MS: u64 = 1_000;
/// How long an answer may take. A script goes on in the server after that, so that a retry finds
/// either nothing done or all of it.
const RESPONSE_TIMEOUT_MS: u64 = 2_000;
/// How long what was sent may stay unacknowledged by the other host before the connection is given up.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MS: u64 = 5_000;
/// How long a connection may be idle before the other host is asked whether it is there.
const PROBE_AFTER_MS: u64 = 2_000;
/// How long until it is asked again.
const PROBE_INTERVAL_MS: u64 = 1_000;
/// The longest wait between two attempts of the connection to heal itself.
const RECONNECT_MAX_MS: u64 = 500;
/// Attempts of the connection to heal itself before waiting callers are told.
const RECONNECT_ATTEMPTS: usize = 1;
/// Commands in flight on the connection; more wait for their turn.
const IN_FLIGHT: usize = 1_024;

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
        let info = url.expose().into_connection_info().ok().context(
            "expected redis://[user:password@]host[:port][/database], or rediss:// for TLS",
        )?;
        let client = Client::open(info.set_tcp_settings(tcp_settings()))
            .ok()
            .context("cannot set the connection up")?;
        let address = client.get_connection_info().addr().to_string();
        let settings = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_millis(CONNECT_TIMEOUT_MS)))
            .set_response_timeout(Some(Duration::from_millis(RESPONSE_TIMEOUT_MS)))
            .set_max_delay(Duration::from_millis(RECONNECT_MAX_MS))
            .set_number_of_retries(RECONNECT_ATTEMPTS)
            .set_concurrency_limit(IN_FLIGHT);
        let manager = ConnectionManager::new_lazy_with_config(client, settings)
            .context("cannot set the connection up")?;
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

    /// Sends a command.
    pub(super) async fn query<T: FromRedisValue>(
        &self,
        command: &redis::Cmd,
    ) -> Result<T, PortError> {
        self.stats.count();
        command.query_async(&mut self.manager.clone()).await.map_err(failed)
    }
}

/// A connection whose other side is gone without a word, as when its host is, would look whole for a
/// quarter of an hour: answers that do not come do not make the manager connect anew. The kernel
/// gives it up instead.
fn tcp_settings() -> TcpSettings {
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_millis(PROBE_AFTER_MS))
        .with_interval(Duration::from_millis(PROBE_INTERVAL_MS));
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(probes);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_millis(UNACKNOWLEDGED_MS));
    settings
}

/// Whether every other event would meet the same failure.
fn is_down(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, TryAgain};
    error.is_io_error()
        || matches!(
            error.kind(),
            ErrorKind::AuthenticationFailed
                | ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain)
        )
        || matches!(error.code(), Some("OOM" | "MISCONF" | "NOAUTH" | "NOREPLICAS" | "BUSY"))
}

fn failed(error: RedisError) -> PortError {
    let is_down = is_down(&error);
    let error = anyhow::Error::new(error).context("redis");
    if is_down { PortError::unavailable(error) } else { PortError::failed(error) }
}
