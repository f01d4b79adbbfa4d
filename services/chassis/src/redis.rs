//! A connection to Redis with limits and timeouts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{Client, ErrorKind, IntoConnectionInfo as _, RedisError, ServerErrorKind};

use crate::config::{ServerUrl, Unquoted};

/// How long connecting may take.
const CONNECT_TIMEOUT_MS: u64 = 1_000;
/// How long a response may take. The server completes a script even after that, so a retry finds
/// either no effect or the complete one.
const RESPONSE_TIMEOUT_MS: u64 = 2_000;
/// How long sent data may stay unacknowledged before the connection is closed.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MS: u64 = 5_000;
/// How long a connection may be idle before the first keep-alive probe.
const PROBE_AFTER_MS: u64 = 2_000;
/// The interval between keep-alive probes.
const PROBE_INTERVAL_MS: u64 = 1_000;
/// The longest wait between two attempts to reconnect.
const RECONNECT_MAX_MS: u64 = 500;
/// Attempts to reconnect before waiting callers get an error.
const RECONNECT_ATTEMPTS: usize = 1;
/// Commands in flight on the connection. More are queued.
const IN_FLIGHT: usize = 1_024;

/// The URL of a Redis with its credentials, which neither `Debug` nor an error shows.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

/// The text is not the URL of a Redis. The error does not quote it, because it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected redis://[user:password@]host[:port][/database], or rediss:// for TLS")]
pub struct InvalidRedisUrl;

impl RedisUrl {
    /// The URL itself, for the client that connects.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for RedisUrl {
    type Err = InvalidRedisUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.into_connection_info() {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err(InvalidRedisUrl),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisUrl(..)")
    }
}

/// The Redis of sessions, the same in core and in every gateway.
#[derive(Debug, Clone, Args)]
pub struct SessionRedisSettings {
    /// Redis 7 for sessions, refresh tokens and revocations, and for rate limits that gateways share
    /// (redis://[USER:PASSWORD@]HOST:PORT[/DATABASE], rediss:// for TLS); the same for core and for every
    /// gateway [default: none; they are in core's database, gateways ask core over HTTP which sessions have
    /// ended, and each counts alone]
    #[arg(long, env = "TOURIN_REDIS_URL", value_name = "URL", hide_env_values = true, value_parser = Unquoted::<ServerUrl<RedisUrl>>::parser())]
    pub redis_url: Option<ServerUrl<RedisUrl>>,
    /// Redis for sessions alone, where the trend has another database or server; wins over --redis-url
    #[arg(long, env = "TOURIN_SESSION_REDIS_URL", value_name = "URL", hide_env_values = true, value_parser = Unquoted::<ServerUrl<RedisUrl>>::parser())]
    pub session_redis_url: Option<ServerUrl<RedisUrl>>,
    /// What the names of the sessions' keys in Redis begin with; the same for core and for every gateway
    #[arg(
        long,
        env = "TOURIN_SESSION_REDIS_PREFIX",
        value_name = "TEXT",
        default_value = "tourin:sessions"
    )]
    pub session_redis_prefix: String,
}

impl SessionRedisSettings {
    /// The configured Redis, if any.
    pub fn redis(&self) -> Option<&RedisUrl> {
        let own = ServerUrl::given(self.session_redis_url.as_ref());
        own.or_else(|| ServerUrl::given(self.redis_url.as_ref()))
    }
}

/// What the names of the sessions' keys begin with. The braces put all of them into one slot of a cluster.
///
/// # Errors
/// When `prefix` is empty or has braces itself, which would put them into different ones. Names the flag.
pub fn session_key_base(prefix: &str) -> anyhow::Result<String> {
    ensure!(
        !prefix.is_empty() && !prefix.contains(['{', '}']),
        "--session-redis-prefix {prefix:?}: expected a text without braces"
    );
    Ok(format!("{{{prefix}}}:"))
}

/// A connection to the Redis at `url`, and the server's host and port without credentials. The
/// connection reconnects by itself, and its clones share it. Nothing is sent before the first use.
///
/// # Errors
/// When the connection cannot be set up. The message does not repeat the URL.
pub fn connection(url: &RedisUrl) -> anyhow::Result<(ConnectionManager, String)> {
    let server = url.expose().into_connection_info().ok().context(InvalidRedisUrl)?;
    let address = server.addr().to_string();
    let client = Client::open(server.set_tcp_settings(tcp_settings()))
        .ok()
        .context("cannot set the connection up")?;
    let settings = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(Duration::from_millis(CONNECT_TIMEOUT_MS)))
        .set_response_timeout(Some(Duration::from_millis(RESPONSE_TIMEOUT_MS)))
        .set_max_delay(Duration::from_millis(RECONNECT_MAX_MS))
        .set_number_of_retries(RECONNECT_ATTEMPTS)
        .set_concurrency_limit(IN_FLIGHT);
    let connection = ConnectionManager::new_lazy_with_config(client, settings)
        .context("cannot set the connection up")?;
    Ok((connection, address))
}

/// Without these settings a connection whose peer vanished (its machine, a firewall's state) would
/// look open for a quarter of an hour. A response timeout does not make the manager reconnect,
/// because a script may only be slow. With them the kernel closes the connection.
fn tcp_settings() -> TcpSettings {
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_millis(PROBE_AFTER_MS))
        .with_interval(Duration::from_millis(PROBE_INTERVAL_MS));
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(probes);
    // Other systems use their own limits for unacknowledged data.
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_millis(UNACKNOWLEDGED_MS));
    settings
}

/// Whether every other command would fail in the same way, and a later retry may succeed.
pub fn is_down(error: &RedisError) -> bool {
    error.is_io_error() || condition(error).is_some()
}

/// Why a server that answers refuses all commands of a kind, for operators.
fn condition(error: &RedisError) -> Option<&'static str> {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, TryAgain};
    match error.kind() {
        ErrorKind::AuthenticationFailed => Some("it refuses the log-in"),
        ErrorKind::Server(ReadOnly) => Some("read-only"),
        ErrorKind::Server(BusyLoading) => Some("still loading its data"),
        ErrorKind::Server(MasterDown) => Some("cut off from its master"),
        ErrorKind::Server(ClusterDown | TryAgain) => Some("its cluster is incomplete"),
        _ => match error.code()? {
            "OOM" => Some("out of memory"),
            "MISCONF" => Some("it cannot write to its disk"),
            "NOREPLICAS" => Some("too few replicas"),
            "NOAUTH" => Some("it refuses the log-in"),
            "BUSY" => Some("busy with a script"),
            _ => None,
        },
    }
}

/// How long the key of [`write_probe`] lives, in milliseconds.
const PROBE_TTL_MS: u64 = 60_000;

/// Writes a key that expires. PING is not enough: a server that is out of memory, read-only or
/// without a disk still answers it. Several processes may write the same key.
///
/// # Errors
/// Those of a write. [`refusal`] describes them.
pub async fn write_probe(connection: &ConnectionManager, key: &str) -> Result<(), RedisError> {
    redis::cmd("SET")
        .arg(key)
        .arg(1)
        .arg("PX")
        .arg(PROBE_TTL_MS)
        .query_async(&mut connection.clone())
        .await
}

/// Why a server that answers refuses the work, for operators. `None` for a server that does not
/// answer.
pub fn refusal(error: &RedisError) -> Option<&'static str> {
    condition(error).or_else(|| match error.code()? {
        "WRONGPASS" | "NOPERM" => Some("it refuses the log-in"),
        _ => Some("it refuses writes"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_says_where_the_server_is_and_is_not_repeated() {
        let url: RedisUrl = "redis://user:hunter2@127.0.0.1:1/3".parse().unwrap();
        assert_eq!(connection(&url).ok().unwrap().1, "127.0.0.1:1");
        assert!(!format!("{url:?}").contains("hunter2"), "{url:?}");
        for wrong in [
            "hunter2",
            "https://user:hunter2@there",
            "redis://user:hunter2@there:port",
            "redis://user:hunter2@there/not-a-number",
        ] {
            let error = wrong.parse::<RedisUrl>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{wrong}");
        }
    }

    #[test]
    fn the_sessions_keys_are_in_one_slot() {
        assert_eq!(session_key_base("tourin:sessions").unwrap(), "{tourin:sessions}:");
        for prefix in ["", "a{b", "a}b"] {
            let error = session_key_base(prefix).unwrap_err().to_string();
            assert!(error.contains("--session-redis-prefix"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_unreachable_server_is_down_and_a_refusing_one_is_not() {
        let url: RedisUrl = "redis://127.0.0.1:1".parse().unwrap();
        let mut connection = connection(&url).ok().unwrap().0;
        let error = redis::cmd("PING").query_async::<()>(&mut connection).await.unwrap_err();
        assert!(is_down(&error), "{error}");
        assert_eq!(refusal(&error), None, "{error}");
        let error = redis::make_extension_error("OOM".to_owned(), None);
        assert_eq!(refusal(&error), Some("out of memory"));
        for (code, down) in [("MISCONF", true), ("NOAUTH", true), ("WRONGTYPE", false)] {
            let error = redis::make_extension_error(code.to_owned(), None);
            assert_eq!(is_down(&error), down, "{code}");
        }
    }
}
