//! Sessions, refresh tokens and revocations on Redis 7, beside accounts on MySQL.
//!
//! `docs/decisions/0008-sessions-on-redis.md` has the reasons, and the keys that the gateway reads.
//! Every key begins with `{PREFIX}:`, where `PREFIX` is a setting. All keys are therefore in one slot
//! of a cluster, and one script can end a session and append it to the stream:
//!
//! | key | type | what | lives |
//! |---|---|---|---|
//! | `session:<id>` | hash | `member`, `started`, `renewed`, `epoch`, digests of the `current` token and the `previous` one, when the latter was `used`, `grace_until`, `revoke_until` | as the session |
//! | `token:<digest>` | string | the session whose refresh token it is, used or not | to the session's absolute end |
//! | `family:<id>` | list | digests of the session's tokens, the oldest first | the same |
//! | `salt:<id>` | string | derives the current token from the previous one | the grace, and a second |
//! | `member:<id>` | sorted set | the member's sessions by their start | to the last one's absolute end |
//! | `epoch:<id>` | string | sessions of the member below it are over | a day after it was raised |
//! | `failures:<digest>` | string | up to when the failed log-ins of an account or a network are paid for | until then |
//! | `views` | sorted set | hashes of a viewer and a spot, by when that view last became an event | the trend's window, in bounded number |
//! | `revocations` | stream | the sessions ended before their tokens expire, and tags of cached responses that are out of date | for ever; entries until they expire |
//! | `log` | string | the stream's identity | as the stream |
//! | `probe` | string | nothing: written by the readiness probe | a minute |
//!
//! Times are microseconds since the epoch. Every operation is one script.
//!
//! Confirmed writes are as durable as Redis's persistence: with `appendfsync everysec` a crash of
//! the server can lose the last second, including log-outs. `maxmemory-policy` must be `noeviction`:
//! if a revocation is evicted, its session stays valid.

mod attempts;
mod log;
mod operations;
mod pending_revocations;
mod store;
mod views;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use redis::aio::ConnectionManager;
use redis::{ErrorKind, FromRedisValue, RedisError, Script, ScriptInvocation};
use tourin_chassis::health::{Outcomes, Trouble};
use tourin_chassis::redis::{RedisUrl, connection, is_down, session_key_base, write_probe};
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

/// Sessions, tokens and revocations in Redis. Clones share the connection.
#[derive(Clone)]
pub(crate) struct RedisSessions {
    connection: ConnectionManager,
    address: String,
    keys: Keys,
    scripts: Arc<Scripts>,
    outcomes: Outcomes,
}

#[derive(Clone)]
struct Keys {
    base: String,
    stream: String,
    log: String,
    views: String,
    probe: String,
}

struct Scripts {
    open: Script,
    rotate: Script,
    touch: Script,
    session_of: Script,
    end: Script,
    end_all: Script,
    settle: Script,
    page: Script,
    canary: Script,
    invalidate: Script,
    prune: Script,
    views: Script,
    charge: Script,
    refund: Script,
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
            end_all: script!("end_all.lua"),
            settle: script!("settle.lua"),
            page: script!("page.lua"),
            canary: script!("canary.lua"),
            invalidate: script!("invalidate.lua"),
            prune: script!("prune.lua"),
            views: Script::new(include_str!("scripts/views.lua")),
            charge: Script::new(include_str!("scripts/charge.lua")),
            refund: Script::new(include_str!("scripts/refund.lua")),
        }
    }
}

impl RedisSessions {
    /// Sessions under `prefix` on the Redis at `url`. Nothing is sent before the first use.
    ///
    /// # Errors
    /// When the URL is invalid, or the prefix would put keys into different slots. The error names
    /// the flag, not the URL.
    pub(crate) fn new(url: &RedisUrl, prefix: &str) -> anyhow::Result<Self> {
        let (connection, address) = connection(url).context("--redis-url")?;
        let base = session_key_base(prefix)?;
        let keys = Keys {
            stream: format!("{base}revocations"),
            log: format!("{base}log"),
            views: format!("{base}views"),
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

    /// The same, for what goes on without Redis: its failures do not count for readiness.
    fn best_effort(&self) -> Self {
        Self { outcomes: Outcomes::default(), ..self.clone() }
    }

    /// Waits until the server answers, without limit. Drop the future to stop waiting.
    ///
    /// # Errors
    /// When the server refuses the credentials.
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

    /// The outcomes of operations.
    pub(crate) fn outcomes(&self) -> Outcomes {
        self.outcomes.clone()
    }

    /// Makes a small write, to check that the server accepts writes.
    ///
    /// # Errors
    /// Why the server does not accept a write.
    pub(crate) async fn write_probe(&self) -> Result<(), Trouble> {
        let written = write_probe(&self.connection, &self.keys.probe).await;
        written.map_err(|error| trouble(&failed(error)))
    }

    /// The time of the server's clock.
    ///
    /// # Errors
    /// When the server does not answer with a time.
    pub(crate) async fn time(&self) -> Result<DateTime<Utc>, StoreError> {
        let (seconds, micros): (i64, i64) = self.ask("time", &redis::cmd("TIME")).await?;
        let micros = seconds.saturating_mul(1_000_000).saturating_add(micros);
        DateTime::from_timestamp_micros(micros).ok_or_else(|| malformed("the server's time"))
    }

    async fn ping(&self) -> Result<(), RedisError> {
        redis::cmd("PING").query_async::<()>(&mut self.connection.clone()).await
    }

    async fn warn_of_eviction(&self) {
        let mut connection = self.connection.clone();
        let info = redis::cmd("INFO").arg("memory").query_async::<String>(&mut connection).await;
        // Some hosted Redis servers forbid INFO; then the policy cannot be checked.
        let Ok(info) = info else { return };
        let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
        if let Some(policy) = policy.filter(|policy| *policy != "noeviction") {
            tracing::warn!(
                policy,
                "redis may evict sessions and revocations: set maxmemory-policy to noeviction"
            );
        }
    }

    /// A call of `script` with the keys and arguments that all scripts share.
    fn call<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(&self.keys.stream).key(&self.keys.log);
        call.arg(&self.keys.base).arg(Uuid::new_v4().simple().to_string());
        call
    }

    /// Sends a read-only command, with the same retry as [`RedisSessions::run`].
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

    /// Runs a script; repeats it once if the connection was dropped, for example by a restart of the
    /// server. Every script can be repeated. `operation` names the span.
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

/// The error for a malformed answer.
fn malformed(what: &'static str) -> StoreError {
    StoreError::Failed(anyhow::anyhow!("redis: {what} is malformed"))
}
