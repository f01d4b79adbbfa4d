//! The consumer pipeline: receive, validate, expire, dedupe, process, acknowledge.
//!
//! What happens to an event:
//!
//! | the event | becomes | counted as |
//! |---|---|---|
//! | longer than `max_body_bytes` | a dead letter, unread | `oversized` |
//! | not an envelope | a dead letter | `malformed` |
//! | dated ahead of the clock by more than `max_ahead` | one that happens now, and goes on | `ahead` |
//! | of a type under an [`Expiry`], older than its bound | acknowledged without effect | `expired` |
//! | applied, or seen before, or of no interest | acknowledged | `applied`, `duplicate`, `ignored` |
//! | failed for now ([`HandlerError::Transient`], a panic, a time-out) | retried with backoff, then a dead letter | `retried`, `dead_lettered` |
//! | met a dependency that is down ([`HandlerError::Unavailable`]) | tried again every second or two until it is back, without counting attempts | `retried` |
//! | failed for good ([`HandlerError::Permanent`]) | a dead letter at once | `dead_lettered` |
//!
//! Each attempt is a consumer span of the event's trace ([`crate::trace`] says which of an outage's many are left out), an error when
//! and only when the attempt failed.
//!
//! An event is acknowledged only after the handler said that its effect is committed. While one is being retried, its
//! ordering key waits and the others go on.

mod ages;
mod in_hand;
mod pipeline;
mod stats;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use opentelemetry::Context;
use opentelemetry::context::{FutureExt as _, WithContext};
use opentelemetry::trace::TraceContextExt as _;

use crate::backoff::Backoff;
use crate::bus::TopicPattern;
use crate::envelope::Envelope;
use crate::events::{Event, InvalidEvent, read};
use crate::trace;

pub use ages::{AGE_BUCKETS, Ages, AgesSnapshot};
pub use in_hand::InHandTimes;
pub use pipeline::Consumer;
pub use stats::{ConsumerSnapshot, ConsumerStats};

/// An event that passed the checks of its envelope.
#[derive(Clone, Debug)]
pub struct Received {
    /// The event itself. One that was dated too far ahead has the time at which it was received.
    pub envelope: Envelope,
    /// The time that it was dated by its maker: until its id may be forgotten is counted from that, for it comes again
    /// with that, and is only too old by that.
    pub dated_at: DateTime<Utc>,
    /// The exchange it was published to.
    pub exchange: String,
    /// The topic it was published under.
    pub routing_key: String,
    /// The key by which it is ordered, where the publisher gave one.
    pub ordering_key: Option<String>,
    /// The transport's metadata.
    pub headers: BTreeMap<String, String>,
    /// From 1.
    pub attempt: u32,
    /// This attempt in the event's trace; what the handler does is part of it. Empty where nothing is traced.
    pub trace: Context,
}

impl PartialEq for Received {
    /// By all but the trace, which is another one for each attempt.
    fn eq(&self, other: &Self) -> bool {
        self.envelope == other.envelope
            && self.dated_at == other.dated_at
            && self.exchange == other.exchange
            && self.routing_key == other.routing_key
            && self.ordering_key == other.ordering_key
            && self.headers == other.headers
            && self.attempt == other.attempt
    }
}

impl Received {
    /// Runs what is done for it as part of this attempt in its trace.
    pub fn run<F: Future>(&self, future: F) -> WithContext<F> {
        future.with_context(self.trace.clone())
    }

    /// For what is sent because of it: this attempt, or where there is none, the trace that it came with.
    pub(crate) fn trace_or_its_headers(&self) -> Context {
        if self.trace.span().span_context().is_valid() {
            self.trace.clone()
        } else {
            trace::extract(&self.headers)
        }
    }

    /// Reads the payload as a typed, validated event.
    ///
    /// # Errors
    /// [`InvalidEvent`]; as a [`HandlerError`] it is permanent, so `?` in a handler dead-letters the event.
    pub fn data<E: Event>(&self) -> Result<E, InvalidEvent> {
        read(&self.envelope)
    }
}

/// What a handler did with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its effect and its id are committed.
    Applied,
    /// Its id was committed before; nothing was done.
    Duplicate,
    /// It is not one that this handler knows or needs.
    Ignored,
}

/// Why a handler did not handle an event.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// It may work later; tried again as often as the [`RetryPolicy`] says.
    #[error("{0:#}")]
    Transient(anyhow::Error),
    /// Something that every event needs is down. Tried again for as long as that takes: an outage must not turn good
    /// events into dead letters.
    #[error("{0:#}")]
    Unavailable(anyhow::Error),
    /// It never will. The text becomes the dead letter's reason; no personal data in it.
    #[error("{0}")]
    Permanent(String),
}

impl From<anyhow::Error> for HandlerError {
    fn from(error: anyhow::Error) -> Self {
        Self::Transient(error)
    }
}

impl From<InvalidEvent> for HandlerError {
    fn from(error: InvalidEvent) -> Self {
        Self::Permanent(error.to_string())
    }
}

/// The effect of events on a service.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Handles one event. Commits its effect and its id together, and answers [`Outcome::Duplicate`] when the id was
    /// there already: that is what makes at-least-once delivery take effect once.
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError>;

    /// Handles several events at once, no two of the same ordering key; one result per event, in order. Override it to
    /// commit a batch in one transaction, and run what belongs to one event within [`Received::trace`]: nothing else says
    /// then whose trace it is part of. An event that failed is retried alone, through [`Handler::handle`], so that
    /// a poison event spoils one batch at most.
    async fn handle_batch(&self, events: &[Received]) -> Vec<Result<Outcome, HandlerError>> {
        let each = events.iter().map(|event| self.handle(event).with_context(event.trace.clone()));
        join_all(each).await
    }
}

/// Events of a kind lose their meaning with age.
///
/// ```
/// use std::time::Duration;
/// use chrono::{TimeDelta, Utc};
/// use tourin_shared_events::bus::TopicPattern;
/// use tourin_shared_events::consumer::Expiry;
///
/// let types = TopicPattern::new("user.viewTourspot");
/// let expiry = Expiry { types, max_age: Duration::from_secs(3_600) };
/// let now = Utc::now();
/// assert!(!expiry.is_over(now - TimeDelta::minutes(59), now));
/// assert!(expiry.is_over(now - TimeDelta::minutes(61), now));
/// ```
///
/// Use it for what only matters while fresh, such as views that feed a trend; never for events that carry state
/// (a deletion, a changed spot), which must take effect however late.
///
/// # How long to remember an event
/// An event may come again as long as somebody can send it again: its publisher's outbox keeps it until it is confirmed
/// and for its retention after that, queues keep it until it is handled, dead letters until an operator replays them.
/// There is no bound to that, so there is one here: an event older than `max_age` has no effect any more, however
/// it comes and however late. A dedupe key that is kept until [`remember_until`](Self::remember_until) can therefore be
/// forgotten then. What has no expiry must be harmless when it comes again at any time: keep the key for ever, or with
/// the state (a version that only grows).
#[derive(Clone, Debug)]
pub struct Expiry {
    /// Which event types, as a topic pattern over the envelope's type.
    pub types: TopicPattern,
    /// The greatest age at which they are still handled.
    pub max_age: Duration,
}

/// Added to the greatest age when a dedupe key is kept: what the clocks of two consumers may differ by, and what lies
/// between the check of the age and the commit of the effect. An hour.
pub const DEDUPE_SLACK: Duration = Duration::from_secs(3_600);

impl Expiry {
    /// Whether an event of this time is too old at `now`.
    pub fn is_over(&self, occurred_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let age = now.signed_duration_since(occurred_at);
        TimeDelta::from_std(self.max_age).is_ok_and(|max_age| age > max_age)
    }

    /// Until when the id of an event that takes effect at `now` must be remembered at least. An event of the future is
    /// too old only once its own time has passed by its greatest age.
    pub fn remember_until(&self, occurred_at: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
        TimeDelta::from_std(self.max_age.saturating_add(DEDUPE_SLACK))
            .ok()
            .and_then(|span| occurred_at.max(now).checked_add_signed(span))
            .unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

/// See [`ConsumerSettings::may_expire`].
#[derive(Clone)]
pub struct MayExpire(Arc<dyn Fn(DateTime<Utc>) -> bool + Send + Sync>);

impl MayExpire {
    /// Asks `check` with the time that the clock tells.
    pub fn when(check: impl Fn(DateTime<Utc>) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(check))
    }

    fn at(&self, now: DateTime<Utc>) -> bool {
        (self.0)(now)
    }
}

impl Default for MayExpire {
    fn default() -> Self {
        Self::when(|_| true)
    }
}

impl std::fmt::Debug for MayExpire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MayExpire")
    }
}

/// How often and how patiently a failed event is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// How often in all, the first time included; then it is dead-lettered. Default 8.
    pub max_attempts: u32,
    /// The waits in between. Default 100 ms doubling to at most 10 s, half of it random: 8 attempts span at most 13 s.
    pub backoff: Backoff,
}

/// The failure in a row whose wait is that of an outage: 1.6 s by default, half of it random.
const OUTAGE_STEP: u32 = 5;

impl RetryPolicy {
    /// How long an event waits for a dependency that is away before it is tried again. It does not grow, so that the
    /// dependency's return is soon noticed.
    pub(crate) fn outage_wait(&self) -> Duration {
        self.backoff.after(OUTAGE_STEP)
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 8,
            backoff: Backoff {
                base: Duration::from_millis(100),
                max: Duration::from_secs(10),
                jitter: 0.5,
            },
        }
    }
}

/// A consumer's bounds.
#[derive(Clone, Debug)]
pub struct ConsumerSettings {
    /// What happens to failures.
    pub retry: RetryPolicy,
    /// Which events expire; the first entry that matches a type decides. Default: none do.
    pub expiry: Vec<Expiry>,
    /// Whether the clock may be relied on at this moment to call an event too old, which drops it for good. While it may
    /// not, such an event is handled like any other. Default: always.
    pub may_expire: MayExpire,
    /// How far ahead of the clock an event may be dated; one further ahead counts as happening now. Default 5 minutes.
    pub max_ahead: Duration,
    /// The longest body that is read, in bytes. Default 256 KiB.
    pub max_body_bytes: usize,
    /// The most events handed to the handler together. Default 64.
    pub max_batch: usize,
    /// The most batches at work at once. Default 2.
    pub concurrency: usize,
    /// How long one call of the handler may take before it counts as failed for now. Default 10 s.
    pub handle_timeout: Duration,
    /// How long a stopping consumer waits for what it has begun. Default 2 s.
    pub drain_timeout: Duration,
}

impl Default for ConsumerSettings {
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            expiry: Vec::new(),
            may_expire: MayExpire::default(),
            max_ahead: Duration::from_secs(300),
            max_body_bytes: 256 * 1024,
            max_batch: 64,
            concurrency: 2,
            handle_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(2),
        }
    }
}
