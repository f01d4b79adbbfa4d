//! Counts that all gateways share, in the Redis of sessions.
//!
//! | key | type | what |
//! |---|---|---|
//! | `{PREFIX}:rate:DIGEST` | string | the time up to which the caller's calls are paid for (`gcra.lua`); expires when they are |
//!
//! `PREFIX` is that of the sessions. The digest is of the route's template and the caller, so that the
//! store holds no addresses and no members' ids. Times are by Redis's clock, so gateways' clocks do not
//! matter.
//!
//! A request waits for at most [`ANSWER_TIMEOUT`], unless a test gives it more. After one failure no request
//! asks Redis until it has answered a call of the background task; the own counts decide meanwhile.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use redis::aio::ConnectionManager;
use redis::{RedisError, Script};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tourin_chassis::metrics::Metrics;
use tourin_chassis::redis::{RedisUrl, connection, session_key_base};

use super::{By, Caller, MAX_PER_MINUTE, RateLimit, Standing};
use crate::limits::network_of;

/// Longest wait of a request. Redis answers within a millisecond; a longer wait costs every limited call.
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);
/// Time between two attempts while Redis is away.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// The counts.
pub struct SharedCounts {
    connection: ConnectionManager,
    address: String,
    base: String,
    script: Script,
    answer_timeout: Duration,
    is_up: AtomicBool,
    wanted: Notify,
    failures: AtomicU64,
}

impl SharedCounts {
    /// Counts under `prefix` in the Redis at `url`. Nothing is sent before [`SharedCounts::follow`].
    ///
    /// # Errors
    /// When the URL cannot be used, or the prefix has braces. Names the flag, without the URL.
    pub fn new(url: &RedisUrl, prefix: &str, answer_timeout: Duration) -> anyhow::Result<Self> {
        let base = session_key_base(prefix)?;
        let (connection, address) = connection(url).context("--redis-url")?;
        Ok(Self {
            connection,
            address,
            base: format!("{base}rate:"),
            script: Script::new(include_str!("gcra.lua")),
            answer_timeout,
            is_up: AtomicBool::new(false),
            wanted: Notify::new(),
            failures: AtomicU64::new(0),
        })
    }

    /// Registers the metrics that show their state at each scrape.
    pub fn read_state(self: &Arc<Self>, metrics: &Metrics) {
        let counts = Arc::clone(self);
        metrics.counters_read(
            "tourin_gateway_shared_rate_limit_failures",
            "Calls that were counted by this gateway alone because Redis did not answer",
            move || vec![(Vec::new(), counts.failures.load(Ordering::Relaxed) as f64)],
        );
        let counts = Arc::clone(self);
        metrics.gauge_read(
            "tourin_gateway_shared_rate_limits",
            "Whether rate limits are shared through Redis now: 0 while it is away, and before the first use",
            move || Some(f64::from(u8::from(counts.is_up.load(Ordering::Relaxed)))),
        );
    }

    /// Counts a call; `None` while Redis is away.
    pub(super) async fn count(
        &self,
        template: &str,
        limit: &RateLimit,
        caller: Caller<'_>,
    ) -> Option<Standing> {
        if !self.is_up.load(Ordering::Relaxed) {
            self.failures.fetch_add(1, Ordering::Relaxed);
            self.wanted.notify_one();
            return None;
        }
        let key = format!("{}{}", self.base, digest(template, limit.by, caller));
        let asked = tokio::time::timeout(self.answer_timeout, self.ask(&key, limit)).await;
        let reason = match asked {
            Ok(Ok(standing)) => return Some(standing),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} ms", self.answer_timeout.as_millis()),
        };
        self.failures.fetch_add(1, Ordering::Relaxed);
        if self.is_up.swap(false, Ordering::Relaxed) {
            tracing::warn!(
                address = self.address,
                error = reason,
                "rate limits are not shared for now"
            );
            self.wanted.notify_one();
        }
        None
    }

    async fn ask(&self, key: &str, limit: &RateLimit) -> Result<Standing, RedisError> {
        let interval = limit.quota().replenish_interval();
        let micros = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
        let mut call = self.script.key(key);
        call.arg(limit.burst.get()).arg(micros);
        let (allowed, left, wait, reset): (u8, u32, u64, u64) =
            call.invoke_async(&mut self.connection.clone()).await?;
        let wait = (allowed == 0).then(|| Duration::from_micros(wait));
        Ok(Standing { left, reset: Duration::from_micros(reset), wait })
    }

    /// Brings the connection up when a limit needs it, at first and whenever Redis was away, until `stop`.
    pub async fn follow(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep_up() => {}
        }
    }

    async fn keep_up(&self) {
        // A call like any other, so that a Redis that refuses writes is away too.
        let most = NonZeroU32::MIN.saturating_add(MAX_PER_MINUTE - 1);
        let probe = RateLimit { by: By::Route, per_minute: most, burst: most, shared: true };
        let key = format!("{}probe", self.base);
        // Later failures are logged by the requests that meet them.
        let mut is_logged = false;
        loop {
            self.wanted.notified().await;
            while let Err(error) = self.ask(&key, &probe).await {
                if !is_logged {
                    tracing::warn!(address = self.address, %error, "rate limits are not shared yet");
                    is_logged = true;
                }
                tokio::time::sleep(RETRY_EVERY).await;
            }
            is_logged = true;
            self.is_up.store(true, Ordering::Relaxed);
            tracing::info!(address = self.address, "rate limits are shared");
        }
    }
}

/// Half of a SHA-256, in hexadecimal digits.
fn digest(template: &str, by: By, caller: Caller<'_>) -> String {
    let who = match (by, caller.member) {
        (By::Route, _) => String::new(),
        (By::Member, Some(member)) => member.to_owned(),
        _ => network_of(caller.address).to_string(),
    };
    let mut digest = Sha256::new();
    for part in [template, by.label(), &who] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
