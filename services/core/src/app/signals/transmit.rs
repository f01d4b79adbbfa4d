//! Tells a receiver elsewhere which sessions have ended.
//!
//! # Delivery
//! The log of ended sessions is written in the transaction that ends a session. From there each session is
//! queued once, together with the cursor; the queue is in the database. The receiver gets an event at least
//! once, with the same `jti` each time, until it accepts it, refuses it for good, or the event is older
//! than a bound. Events may overtake each other. All processes of core send, each what it has claimed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use tourin_chassis::clock::SharedClock;
use tourin_chassis::metrics::{CounterBy, Gauge, Metrics};
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::backoff::Backoff;

use super::{QueuedSignal, SignalCursor, SignalStore};
use crate::app::StoreError;
use crate::app::revocations::Revocations;
use crate::app::signing::SigningKeys;
use crate::domain::security_event::EventClaims;
use crate::domain::token::SessionId;

/// Signals that wait at most. A receiver that is away while so many sessions end misses the later ones.
const MAX_QUEUED: u64 = 200_000;
/// Signals that a process sends at once.
const BATCH: u32 = 16;
/// How long a claimed signal is left to its process: longer than an attempt takes.
const CLAIM: TimeDelta = TimeDelta::seconds(30);
const POLL: Duration = Duration::from_secs(5);
const AFTER_FAILURE: Duration = Duration::from_secs(1);
const PRUNE_EVERY: Duration = Duration::from_secs(60);
const BACKOFF: Backoff =
    Backoff { base: Duration::from_secs(1), max: Duration::from_secs(300), jitter: 0.5 };

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The receiver has it.
    Accepted,
    /// The receiver will not take it, for this reason (RFC 8935, 2.3).
    Refused(String),
    /// It may take it later.
    Failed(String),
}

/// Sends events to the receiver.
#[async_trait]
pub trait SignalSender: Send + Sync {
    /// Sends a Security Event Token.
    async fn send(&self, token: String) -> Delivery;
}

/// To whom events are sent, and as whom.
#[derive(Clone, Debug)]
pub struct TransmitPolicy {
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
    /// How long an event waits for the receiver.
    pub keep: TimeDelta,
}

/// Counts of signals.
pub struct TransmitMetrics {
    outcomes: CounterBy,
    waiting: Gauge,
}

impl TransmitMetrics {
    /// Registers them.
    pub fn register(metrics: &Metrics) -> Self {
        Self {
            outcomes: metrics.counter_by(
                "tourin_signals_sent",
                "Events about ended sessions for the receiver, by what became of an attempt",
                "outcome",
            ),
            waiting: metrics
                .gauge("tourin_signals_waiting", "Events that the receiver has not accepted yet"),
        }
    }
}

/// Queues and sends.
pub struct Transmitter {
    /// The queue.
    pub store: Arc<dyn SignalStore>,
    /// The log that is followed.
    pub revocations: Arc<Revocations>,
    /// The receiver.
    pub sender: Arc<dyn SignalSender>,
    /// Signs events with the key of access tokens, whose type is another one.
    pub keys: Arc<SigningKeys>,
    /// To whom, and as whom.
    pub policy: TransmitPolicy,
    /// What time it is.
    pub clock: SharedClock,
    /// Counts.
    pub metrics: TransmitMetrics,
}

impl Transmitter {
    /// Queues and sends until `stop`.
    pub async fn run(self, stop: Shutdown) {
        let queueing = async {
            loop {
                if let Err(error) = self.queue_next(&stop).await {
                    tracing::warn!(%error, "ended sessions were not queued for the receiver");
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        };
        let sending = async {
            loop {
                match self.send_due().await {
                    // More may be due.
                    Ok(sent) if sent >= BATCH as usize => {}
                    Ok(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                    Err(error) => {
                        tracing::warn!(%error, "the queue of signals cannot be read");
                        tokio::time::sleep(AFTER_FAILURE).await;
                    }
                }
            }
        };
        let pruning = async {
            loop {
                if let Err(error) = self.prune().await {
                    tracing::warn!(%error, "the queue of signals was not pruned");
                }
                tokio::time::sleep(PRUNE_EVERY).await;
            }
        };
        tokio::select! {
            () = stop.begun() => {}
            () = queueing => {}
            () = sending => {}
            () = pruning => {}
        }
    }

    /// Queues the next page of the log; waits for one.
    async fn queue_next(&self, stop: &Shutdown) -> Result<(), StoreError> {
        let from = self.store.cursor().await?;
        let page = self.revocations.follow(from.position, POLL, stop.begun()).await?;
        let is_other_log = !from.log_id.is_empty() && from.log_id != page.log_id;
        let to = if is_other_log {
            // Its numbers begin anew.
            SignalCursor { log_id: page.log_id, position: 0 }
        } else {
            SignalCursor { log_id: page.log_id, position: page.next }
        };
        if to == from {
            return Ok(());
        }
        let entries = if is_other_log { &[][..] } else { &page.entries[..] };
        let sessions: Vec<SessionId> =
            entries.iter().map(|entry| entry.session).filter(|id| !id.is_of_no_session()).collect();
        let now = self.clock.now();
        let left_out = self.store.queue((&from, &to), &sessions, MAX_QUEUED, now).await?;
        if let Some(left_out) = left_out.filter(|count| *count > 0) {
            tracing::error!(left_out, "the receiver of signals is too far behind; dropped some");
            (0..left_out).for_each(|_| self.metrics.outcomes.increase("dropped"));
        }
        Ok(())
    }

    /// Sends what is due; returns how many there were.
    async fn send_due(&self) -> Result<usize, StoreError> {
        let now = self.clock.now();
        let claimed = self.store.claim(BATCH, now, now + CLAIM).await?;
        let sending = claimed.iter().map(|signal| self.send(signal));
        futures::future::try_join_all(sending).await?;
        Ok(claimed.len())
    }

    async fn send(&self, signal: &QueuedSignal) -> Result<(), StoreError> {
        let TransmitPolicy { issuer, audience, .. } = &self.policy;
        let names = (issuer.as_str(), audience.as_str());
        let (ended_at, now) = (signal.noted_at, self.clock.now());
        let claims =
            EventClaims::session_revoked(names, &signal.jti, signal.session, ended_at, now);
        let token = self.keys.sign_event(&claims).map_err(StoreError::Failed)?;
        let (outcome, retry) = match self.sender.send(token).await {
            Delivery::Accepted => ("accepted", None),
            Delivery::Refused(reason) => {
                tracing::warn!(reason, "the receiver refuses an event about an ended session");
                ("refused", None)
            }
            Delivery::Failed(reason) => {
                tracing::debug!(reason, attempts = signal.attempts, "the receiver is not there");
                ("failed", Some(self.retry_at(signal.attempts)))
            }
        };
        self.metrics.outcomes.increase(outcome);
        match retry {
            Some(at) => self.store.postpone(signal.seq, at).await,
            None => self.store.remove(signal.seq).await,
        }
    }

    fn retry_at(&self, attempts: u32) -> DateTime<Utc> {
        let wait = BACKOFF.after(attempts.saturating_add(1));
        self.clock.now() + TimeDelta::from_std(wait).unwrap_or_default()
    }

    async fn prune(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let (expired, waiting) = self.store.prune_signals(now - self.policy.keep, now).await?;
        self.metrics.waiting.set(waiting as f64);
        if expired > 0 {
            tracing::error!(
                expired,
                "the receiver was away for too long; dropped its oldest signals"
            );
            (0..expired).for_each(|_| self.metrics.outcomes.increase("expired"));
        }
        Ok(())
    }
}
