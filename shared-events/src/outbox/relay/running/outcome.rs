//! The outcome of a publish.

use tokio::time::{Instant, timeout};

use super::Running;
use crate::bus::PublishError;
use crate::outbox::Refusal;
use crate::outbox::relay::Relay;
use crate::outbox::relay::held::InFlight;
use crate::trace::{EventSpan, class_of};

/// How often an event that the bus cannot carry is tried, by all processes together: the bus may have been wrong.
const GIVE_UP_AFTER: u32 = 3;
/// Refusals in a row after which an event is skipped for a while, with its key, instead of kept in memory.
const HOLD_BACK_AFTER: u32 = 3;
/// Why an event was not confirmed.
pub(super) enum Failure {
    Bus(PublishError),
    TimedOut,
}

impl Failure {
    /// The reason in one word, for the event's span.
    fn class(&self) -> &'static str {
        match self {
            Self::Bus(error) => class_of(error),
            Self::TimedOut => "timeout",
        }
    }
}

pub(super) type Published = Vec<(InFlight, Result<(), Failure>)>;

impl Running<'_> {
    pub(super) fn conclude(&mut self, published: Published) {
        let now = Instant::now();
        self.in_flight -= published.len();
        for (in_flight, result) in published {
            match result {
                Ok(()) => self.confirmed(&in_flight, now),
                Err(failure) => self.failed(in_flight, failure, now),
            }
        }
    }

    fn confirmed(&mut self, in_flight: &InFlight, now: Instant) {
        let pending = &in_flight.queued.pending;
        self.relay.metrics.published.inc();
        self.bus_failures = 0;
        self.unroutable.confirmed(pending.seq);
        self.confirmed.push((pending.shard, pending.seq));
        self.confirmed_since.get_or_insert(now);
        self.held.done(in_flight);
    }

    fn failed(&mut self, mut in_flight: InFlight, failure: Failure, now: Instant) {
        let backoff = self.relay.settings.backoff;
        let metrics = &self.relay.metrics;
        let (span, class) = (in_flight.queued.span.take(), failure.class());
        let _current = span.as_ref().map(EventSpan::enter);
        metrics.failed.inc();
        in_flight.queued.failures = in_flight.queued.failures.saturating_add(1);
        let (failures, pending) = (in_flight.queued.failures, &in_flight.queued.pending);
        let (seq, shard) = (pending.seq, pending.shard);
        let (id, routing_key) = (pending.event.envelope.id, &pending.event.routing_key);
        match failure {
            Failure::Bus(error @ PublishError::Unavailable(_)) => {
                // Events in flight together fail together. That is one failure of the bus.
                if now >= self.bus_back_at {
                    self.bus_failures = self.bus_failures.saturating_add(1);
                    self.bus_back_at = now + backoff.after(self.bus_failures);
                    tracing::warn!(%error, failures = self.bus_failures, "bus unreachable");
                }
                let at = self.bus_back_at;
                self.again(in_flight, span, class, now, at);
            }
            Failure::Bus(PublishError::Unroutable) => {
                metrics.unroutable.inc();
                self.hold_back(&in_flight, span, class, now);
            }
            Failure::TimedOut => {
                let limit = self.relay.settings.confirm_timeout;
                tracing::warn!(seq, event = %id, routing_key, ?limit, "event not confirmed in time");
                self.again(in_flight, span, class, now, now + backoff.after(failures));
            }
            Failure::Bus(PublishError::Rejected(reason)) => {
                tracing::debug!(seq, event = %id, routing_key, reason, failures, "event refused");
                self.refused.push((shard, Refusal { seq, reason, give_up: false }));
                if failures >= HOLD_BACK_AFTER {
                    self.hold_back(&in_flight, span, class, now);
                } else {
                    self.again(in_flight, span, class, now, now + backoff.after(failures));
                }
            }
            Failure::Bus(PublishError::Invalid(reason)) => {
                let give_up = pending.attempts.saturating_add(1) >= GIVE_UP_AFTER;
                if give_up {
                    metrics.dead_lettered.inc();
                    tracing::error!(seq, event = %id, routing_key, reason, "event dead-lettered");
                } else {
                    tracing::warn!(seq, event = %id, routing_key, reason, "event cannot be carried");
                }
                self.refused.push((shard, Refusal { seq, reason, give_up }));
                in_flight.queued.pending.attempts =
                    in_flight.queued.pending.attempts.saturating_add(1);
                if give_up {
                    if let Some(span) = &span {
                        span.annotate("rejected", "attempts", in_flight.queued.pending.attempts);
                        span.keep_dead_letter();
                        span.fail(class);
                    }
                    self.held.done(&in_flight);
                } else {
                    self.again(in_flight, span, class, now, now + backoff.after(failures));
                }
            }
        }
    }

    /// It goes again at `at`, before all others of its key.
    fn again(
        &mut self,
        mut in_flight: InFlight,
        span: Option<EventSpan>,
        class: &'static str,
        now: Instant,
        at: Instant,
    ) {
        if let Some(span) = &span {
            span.retry(class, at.saturating_duration_since(now));
        }
        in_flight.queued.span = span;
        self.held.again(in_flight, at);
    }

    /// Its key is skipped, and it is read again in the next round.
    fn hold_back(
        &mut self,
        in_flight: &InFlight,
        span: Option<EventSpan>,
        class: &'static str,
        now: Instant,
    ) {
        let pending = &in_flight.queued.pending;
        if let Some(span) = span {
            // The broker returns an event that no queue takes.
            span.annotate("returned", "reason", class);
            self.unroutable.keep(pending.seq, pending.shard, span, class);
        }
        let key = &pending.event.ordering_key;
        self.unroutable.hold(key, pending.seq, now, &self.relay.settings.backoff);
        if let Some(held) = self.unroutable.warning(now) {
            tracing::warn!(
                seq = pending.seq,
                routing_key = pending.event.routing_key,
                keys = self.unroutable.keys(),
                seconds = held.as_secs(),
                "events stay unpublished: no queue is bound for their type, or the bus refuses them"
            );
        }
        self.held.drop_key(in_flight);
    }
}

/// Hands one batch to the bus.
pub(super) async fn publish(relay: &Relay, batch: Vec<InFlight>) -> Published {
    let carrying = |in_flight: &InFlight| {
        let mut event = in_flight.queued.pending.event.clone();
        if let Some(span) = &in_flight.queued.span {
            span.carry(&mut event);
        }
        event
    };
    let events = batch.iter().map(carrying).collect();
    let publishing = relay.publisher.publish(events);
    let Ok(results) = timeout(relay.settings.confirm_timeout, publishing).await else {
        return batch.into_iter().map(|in_flight| (in_flight, Err(Failure::TimedOut))).collect();
    };
    let mut results = results.into_iter();
    let missing = || Err(PublishError::Unavailable("the bus gave no result".to_owned()));
    let each = batch.into_iter().map(|in_flight| {
        let result = results.next().unwrap_or_else(missing);
        (in_flight, result.map_err(Failure::Bus))
    });
    each.collect()
}
