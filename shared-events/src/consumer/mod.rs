//! The consumer pipeline: receive, validate, expire, dedupe, process, acknowledge.
//!
//! What happens to an event:
//!
//! | the event | becomes | counted as |
//! |---|---|---|
//! | longer than `max_body_bytes` | a dead letter, not parsed | `oversized` |
//! | not an envelope | a dead letter | `malformed` |
//! | dated ahead of the clock by more than `max_ahead` | an event of now, and continues | `ahead` |
//! | of a type under an [`Expiry`], older than its bound | acknowledged without effect | `expired` |
//! | applied, or a duplicate, or ignored | acknowledged | `applied`, `duplicate`, `ignored` |
//! | a transient failure ([`HandlerError::Transient`], a panic, a time-out) | retried with backoff, then a dead letter | `retried`, `dead_lettered` |
//! | a dependency is down ([`HandlerError::Unavailable`]) | retried every second or two until it is back, without counting attempts | `retried` |
//! | a permanent failure ([`HandlerError::Permanent`]) | a dead letter at once | `dead_lettered` |
//!
//! Each attempt is a consumer span of the event's trace, and an error only when the attempt failed. [`crate::trace`]
//! says which attempts during an outage are left out.
//!
//! An event is acknowledged only after the handler reported that its effect is committed. During its retries its
//! ordering key waits, and other keys continue.

mod in_flight;
mod metrics;
mod pipeline;

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

pub use in_flight::InFlightTimes;
pub use metrics::{ConsumerMetrics, QueueMetrics};
pub use pipeline::Consumer;

/// An event that passed the checks of its envelope.
#[derive(Clone, Debug)]
pub struct Received {
    /// The event itself. An event dated too far ahead has the time of its arrival.
    pub envelope: Envelope,
    /// Its producer's timestamp. Dedupe keys expire by this one: when the event comes again it has this timestamp, and
    /// expires by it.
    pub dated_at: DateTime<Utc>,
    /// The exchange of its publication.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// Its ordering key, if the publisher set one.
    pub ordering_key: Option<String>,
    /// The transport's metadata.
    pub headers: BTreeMap<String, String>,
    /// From 1.
    pub attempt: u32,
    /// This attempt in the event's trace; the handler's work is part of it. Empty without tracing.
    pub trace: Context,
}

impl PartialEq for Received {
    /// Compares all but the trace, which differs for each attempt.
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
    /// Runs a future as part of this attempt in its trace.
    pub fn run<F: Future>(&self, future: F) -> WithContext<F> {
        future.with_context(self.trace.clone())
    }

    /// The context for events that it causes: this attempt, or else the trace that it came with.
    pub(crate) fn trace_or_its_headers(&self) -> Context {
        if self.trace.span().span_context().is_valid() {
            self.trace.clone()
        } else {
            trace::extract(&self.headers)
        }
    }

    /// Parses the payload as a typed, validated event.
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
    /// Its id was committed before; nothing changed.
    Duplicate,
    /// The handler does not know or need it.
    Ignored,
}

/// Why a handler failed.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// It may work later. Retried as often as the [`RetryPolicy`] says.
    #[error("{0:#}")]
    Transient(anyhow::Error),
    /// A dependency of every event is down. Retried until it is back: an outage must not turn good events into dead
    /// letters.
    #[error("{0:#}")]
    Unavailable(anyhow::Error),
    /// It never works. The text becomes the dead letter's reason and must not contain personal data.
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
    /// Handles one event. Commits its effect and its id together, and returns [`Outcome::Duplicate`] when the id exists
    /// already. So at-least-once delivery takes effect once.
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError>;

    /// Handles several events at once, no two of the same ordering key. Returns one result per event, in order.
    /// Override it to commit a batch in one transaction, and run each event's own work within [`Received::trace`],
    /// which connects it to that event's trace. A failed event is retried alone, through [`Handler::handle`], so a
    /// poison event spoils at most one batch.
    async fn handle_batch(&self, events: &[Received]) -> Vec<Result<Outcome, HandlerError>> {
        let each = events.iter().map(|event| self.handle(event).with_context(event.trace.clone()));
        join_all(each).await
    }
}

/// Events of some types lose their meaning with age.
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
/// Use it for events that matter only while they are fresh, such as views that feed a trend. Never use it for events
/// that carry state (a deletion, a changed spot), which must take effect however late.
///
/// # How long to remember an event
/// An event may come again as long as some component can send it again. Its publisher's outbox keeps it until it is
/// confirmed and for its retention after that, queues keep it until it is handled, and dead letters keep it until an
/// operator replays them. That has no bound, so the expiry sets one: an event older than `max_age` has no effect any
/// more. So a dedupe key that is kept until [`remember_until`](Self::remember_until) can be deleted then. An event
/// without an expiry must be harmless whenever it comes again: keep its key for ever, or with the state (a version that
/// only grows).
#[derive(Clone, Debug)]
pub struct Expiry {
    /// The event types, as a topic pattern over the envelope's type.
    pub types: TopicPattern,
    /// The greatest age at which they are handled.
    pub max_age: Duration,
}

/// Added to the greatest age when a dedupe key is kept. Covers the difference between two consumers' clocks, and the
/// time between the check of the age and the commit of the effect. An hour.
pub const DEDUPE_SLACK: Duration = Duration::from_secs(3_600);

impl Expiry {
    /// Whether an event of this time is too old at `now`.
    pub fn is_over(&self, occurred_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let age = now.signed_duration_since(occurred_at);
        TimeDelta::from_std(self.max_age).is_ok_and(|max_age| age > max_age)
    }

    /// The earliest time at which the id of an event that takes effect at `now` may be forgotten. An event dated ahead
    /// expires only by its own timestamp.
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
    /// Calls `check` with the clock's time.
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

/// How often a failed event is tried, and with which delays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The number of attempts, the first included. Then the event is dead-lettered. Default 8.
    pub max_attempts: u32,
    /// The delays in between. Default 100 ms, doubling to at most 10 s, half of it random: 8 attempts take at most 13
    /// s.
    pub backoff: Backoff,
}

/// The failure in a row whose delay is used during an outage: 1.6 s by default, half of it random.
const OUTAGE_STEP: u32 = 5;

impl RetryPolicy {
    /// How long an event waits for a dependency that is down before it is tried again. The delay does not grow, so that
    /// the dependency's return is noticed soon.
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
    /// Whether the clock is trusted now to expire an event, which drops it for good. While it is not, such an event is
    /// handled like any other. Default: always.
    pub may_expire: MayExpire,
    /// How far ahead of the clock an event may be dated. An event further ahead counts as happening now. Default 5
    /// minutes.
    pub max_ahead: Duration,
    /// The longest accepted body, in bytes. Default 256 KiB.
    pub max_body_bytes: usize,
    /// The most events in one batch for the handler. Default 64.
    pub max_batch: usize,
    /// The most concurrent batches. Default 2.
    pub concurrency: usize,
    /// The time-out of one handler call, after which it counts as a transient failure. Default 10 s.
    pub handle_timeout: Duration,
    /// How long a stopping consumer waits for the deliveries that it has begun. Default 2 s.
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
