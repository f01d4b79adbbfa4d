//! Sessions, refresh tokens and revocations on Redis 7, beside accounts on MySQL.
//!
//! `docs/decisions/0008-sessions-on-redis.md` says why it is so, and what of it the gateway reads.
//! With `PREFIX` for the prefix of the settings, every key begins with `{PREFIX}:`, so that all are
//! in one slot of a cluster and one script may end a session and tell of it:
//!
//! | key | type | what | lives |
//! |---|---|---|---|
//! | `session:<id>` | hash | `member`, `started`, `renewed`, `epoch`, digests of the `current` token and the `previous` one, when that was `used`, `grace_until` | as the session |
//! | `token:<digest>` | string | the session whose refresh token it is, used or not | to the session's absolute end |
//! | `family:<id>` | list | digests of the session's tokens, the oldest first | the same |
//! | `salt:<id>` | string | derives the current token from the previous one | the grace, and a second |
//! | `member:<id>` | sorted set | the member's sessions by their start | to the last one's absolute end |
//! | `epoch:<id>` | string | sessions of the member below it are over | a day after it was raised |
//! | `revocations` | stream | the sessions ended before their tokens expire | for ever; entries until they expire |
//! | `log` | string | the stream's identity | as the stream |
//! | `probe` | string | nothing: the small write by which readiness sees that the server takes writes | a minute |
//!
//! Times are microseconds since the epoch. Every operation is one script.
//!
//! What Redis has confirmed is as safe as its persistence: with `appendfsync everysec` a crash of
//! the server itself can cost the last second, log-outs among it. `maxmemory-policy` must be
//! `noeviction`: an evicted entry is a session that goes on.

mod log;
mod operations;
mod pending_revocations;
mod store;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use redis::aio::ConnectionManager;
use redis::{ErrorKind, FromRedisValue, RedisError, Script, ScriptInvocation};
use tourin_chassis::config::ServerUrl;
use tourin_chassis::health::{Outcomes, Trouble};
use tourin_chassis::redis::{connection, is_down, write_probe};
use tourin_chassis::telemetry::Span;
use tourin_shared_events::backoff::Backoff;
use uuid::Uuid;

pub use self::pending_revocations::PendingRevocations;
pub use self::store::MysqlRedisStore;
use super::errors::trouble;
use crate::app::StoreError;

/// The waits between attempts to reach the server at the start.
const START_BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(200), max: Duration::from_millis(5_000), jitter: 0.5 };

/// The sessions' side of the store. Clones share its connection.
#[derive(Clone)]
pub(crate) struct RedisSessions {
    connection: ConnectionManager,
    address: String,
    keys: Keys,
    scripts: Arc<Scripts>,
    outcomes: Outcomes,
}

/// Names of keys.
#[derive(Clone)]
struct Keys {
    base: String,
    stream: String,
    log: String,
    probe: String,
}

struct Scripts {
    open: Script,
    rotate: Script,
    touch: Script,
    session_of: Script,
    end: Script,
    settle: Script,
    page: Script,
    prune: Script,
}

impl Scripts {
    fn new() -> Self {
        macro_rules! script {
            ($file:literal) => {
                Script::new(concat!(
                    include_str!("scripts/common.lua"),
                    include_str!(concat!("scripts/", $file))
                ))
            };
        }
        Self {
            open: script!("open.lua"),
            rotate: script!("rotate.lua"),
            touch: script!("touch.lua"),
            session_of: script!("session_of.lua"),
            end: script!("end.lua"),
            settle: script!("settle.lua"),
            page: script!("page.lua"),
            prune: script!("prune.lua"),
        }
    }
}

impl RedisSessions {
    /// Sessions under `prefix` on the Redis at `url`. Nothing is sent before the first use.
    ///
    /// # Errors
    /// When the URL is not one of Redis, or the prefix would put keys into different slots. Names
    /// the flag and does not repeat the URL.
    pub(crate) fn new(url: &ServerUrl, prefix: &str) -> anyhow::Result<Self> {
        let (connection, address) = connection(url).context("--redis-url")?;
        ensure!(
            !prefix.is_empty() && !prefix.contains(['{', '}']),
            "--session-redis-prefix {prefix:?}: expected a text without braces"
        );
        let base = format!("{{{prefix}}}:");
        let keys = Keys {
            stream: format!("{base}revocations"),
            log: format!("{base}log"),
            probe: format!("{base}probe"),
            base,
        };
        let (scripts, outcomes) = (Arc::new(Scripts::new()), Outcomes::default());
        Ok(Self { connection, address, keys, scripts, outcomes })
    }

    /// Host and port, without credentials.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Waits until the server answers, as long as it takes; drop the future to give up.
    ///
    /// # Errors
    /// When it answers that we may not come in.
    pub(crate) async fn wait(&self) -> anyhow::Result<()> {
        let mut failures = 0;
        while let Err(error) = self.ping().await {
            if error.kind() == ErrorKind::AuthenticationFailed {
                return Err(anyhow::Error::new(error).context("--redis-url"));
            }
            failures += 1;
            tracing::warn!(server = "redis", address = self.address, %error, "waiting for server");
            tokio::time::sleep(START_BACKOFF.after(failures)).await;
        }
        self.warn_of_eviction().await;
        Ok(())
    }

    /// How what is asked of it ends.
    pub(crate) fn outcomes(&self) -> Outcomes {
        self.outcomes.clone()
    }

    /// Makes a small write, to know whether the server takes one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) async fn write_probe(&self) -> Result<(), Trouble> {
        let written = write_probe(&self.connection, &self.keys.probe).await;
        written.map_err(|error| trouble(&failed(error)))
    }

    /// The time by its own clock.
    ///
    /// # Errors
    /// When it does not tell.
    pub(crate) async fn time(&self) -> Result<DateTime<Utc>, StoreError> {
        let (seconds, micros): (i64, i64) = self.ask("time", &redis::cmd("TIME")).await?;
        let micros = seconds.saturating_mul(1_000_000).saturating_add(micros);
        DateTime::from_timestamp_micros(micros).ok_or_else(|| garbled("the server's time"))
    }

    async fn ping(&self) -> Result<(), RedisError> {
        redis::cmd("PING").query_async::<()>(&mut self.connection.clone()).await
    }

    async fn warn_of_eviction(&self) {
        let mut connection = self.connection.clone();
        let info = redis::cmd("INFO").arg("memory").query_async::<String>(&mut connection).await;
        // Some hosted Redis forbids INFO; then nobody can tell.
        let Ok(info) = info else { return };
        let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
        if let Some(policy) = policy.filter(|policy| *policy != "noeviction") {
            tracing::warn!(
                policy,
                "redis may evict sessions and revocations: set maxmemory-policy to noeviction"
            );
        }
    }

    /// A call of `script` with what all of them begin with.
    fn call<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(&self.keys.stream).key(&self.keys.log);
        call.arg(&self.keys.base).arg(Uuid::new_v4().simple().to_string());
        call
    }

    /// Sends a command that changes nothing; as [`RedisSessions::run`].
    async fn ask<T: FromRedisValue>(
        &self,
        operation: &'static str,
        command: &redis::Cmd,
    ) -> Result<T, StoreError> {
        let asking = async {
            match command.query_async(&mut self.connection.clone()).await {
                Err(error) if error.is_connection_dropped() => {
                    Span::current().annotate("retry", &[("reason", "connection_dropped")]);
                    command.query_async(&mut self.connection.clone()).await.map_err(failed)
                }
                result => result.map_err(failed),
            }
        };
        super::operation::operation("redis", &self.outcomes, (operation, "sessions"), asking).await
    }

    /// Runs a script. Once more when the connection turns out to be broken: every script bears being
    /// run again, and a restart between two requests is nobody's error. `operation` is its span's.
    async fn run<T: FromRedisValue>(
        &self,
        operation: &'static str,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        let running = async {
            match call.invoke_async(&mut self.connection.clone()).await {
                Err(error) if error.is_connection_dropped() => {
                    Span::current().annotate("retry", &[("reason", "connection_dropped")]);
                    call.invoke_async(&mut self.connection.clone()).await.map_err(failed)
                }
                result => result.map_err(failed),
            }
        };
        super::operation::operation("redis", &self.outcomes, (operation, "sessions"), running).await
    }
}

fn failed(error: RedisError) -> StoreError {
    let is_down = is_down(&error);
    let error = anyhow::Error::new(error).context("redis");
    if is_down { StoreError::Unavailable(error) } else { StoreError::Failed(error) }
}

/// An answer that no script of ours gives.
fn garbled(what: &'static str) -> StoreError {
    StoreError::Failed(anyhow::anyhow!("redis: {what} does not read"))
}
