//! The consumer's implementation.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use futures::future::{BoxFuture, join, join_all};
use futures::stream::{FuturesUnordered, StreamExt as _};
use opentelemetry::context::FutureExt as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::in_flight::InFlightTime;
use super::{
    ConsumerMetrics, ConsumerSettings, Handler, HandlerError, Outcome, QueueMetrics, Received,
};
use crate::Clock;
use crate::bus::{Deliveries, Delivery, MessagingSystem, Settlement};
use crate::dead_letters::REPLAYED;
use crate::envelope::Envelope;
use crate::trace::EventSpan;

/// The longest reason of a dead letter, in characters.
const MAX_REASON_CHARS: usize = 1_000;

/// Receives the deliveries of one subscription and has a handler process them, as the [module's table](super) says.
pub struct Consumer {
    deliveries: Deliveries,
    work: Work,
}

/// The state of a batch, shared by concurrent batches.
struct Work {
    name: String,
    messaging_system: MessagingSystem,
    handler: Arc<dyn Handler>,
    settings: ConsumerSettings,
    clock: Clock,
    metrics: QueueMetrics,
}

/// A delivery that passed the checks, with its handle on the bus.
struct Job {
    event: Received,
    attempt: Attempt,
}

/// An event's delivery and span while it is in flight.
struct Attempt {
    delivery: Delivery,
    span: EventSpan,
    _in_flight: InFlightTime,
}

/// An attempt that failed.
struct Failure {
    /// The class of failure, for its span.
    class: &'static str,
    error: HandlerError,
}

impl From<HandlerError> for Failure {
    fn from(error: HandlerError) -> Self {
        let class = match error {
            HandlerError::Transient(_) => "failed",
            HandlerError::Unavailable(_) => "unavailable",
            HandlerError::Permanent(_) => "permanent",
        };
        Self { class, error }
    }
}

/// A handler call without a result.
#[derive(Clone)]
struct Broken {
    class: &'static str,
    why: String,
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        let error = HandlerError::Transient(anyhow::Error::msg(broken.why));
        Self { class: broken.class, error }
    }
}

impl Consumer {
    /// A consumer with default settings. `name`, usually the queue's, appears in logs and traces.
    pub fn new(
        name: impl Into<String>,
        deliveries: Deliveries,
        handler: Arc<dyn Handler>,
        clock: Clock,
    ) -> Self {
        let (messaging_system, name) = (deliveries.messaging_system(), name.into());
        Self {
            deliveries,
            work: Work {
                metrics: ConsumerMetrics::default().of(&name),
                name,
                messaging_system,
                handler,
                settings: ConsumerSettings::default(),
                clock,
            },
        }
    }

    /// Replaces the settings. Counts below 1 become 1.
    #[must_use]
    pub fn with_settings(mut self, settings: ConsumerSettings) -> Self {
        self.work.settings = ConsumerSettings {
            max_batch: settings.max_batch.max(1),
            concurrency: settings.concurrency.max(1),
            ..settings
        };
        self
    }

    /// Counts in the given metrics, which several consumers (for example, replicas) may share.
    #[must_use]
    pub fn with_metrics(mut self, metrics: QueueMetrics) -> Self {
        self.work.metrics = metrics;
        self
    }

    /// Its metrics.
    pub fn metrics(&self) -> QueueMetrics {
        self.work.metrics.clone()
    }

    /// Works until it is stopped or the bus ends. On stop it takes no new delivery, and waits up to `drain_timeout` for
    /// those it has begun. Unfinished ones are delivered again.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Self { mut deliveries, work } = self;
            let settings = &work.settings;
            let mut batches = FuturesUnordered::new();
            loop {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    Some(()) = batches.next(), if !batches.is_empty() => {}
                    first = deliveries.next(), if batches.len() < settings.concurrency => {
                        let Some(first) = first else { break };
                        let batch = gather(first, &mut deliveries, settings.max_batch);
                        batches.push(work.process(batch));
                    }
                }
            }
            let drained =
                timeout(settings.drain_timeout, async { while batches.next().await.is_some() {} });
            if drained.await.is_err() {
                tracing::warn!(
                    consumer = work.name,
                    batches = batches.len(),
                    "stopped before all events were handled; they will be delivered again"
                );
            }
            drop(batches);
            if timeout(settings.drain_timeout, deliveries.close()).await.is_err() {
                tracing::warn!(consumer = work.name, "stopped before the progress was saved");
            }
        })
    }
}

/// The event's age; zero when it is dated ahead.
fn age_of(envelope: &Envelope, now: DateTime<Utc>) -> Duration {
    now.signed_duration_since(envelope.timestamp).to_std().unwrap_or_default()
}

/// Adds the deliveries that have arrived already; does not wait.
fn gather(first: Delivery, deliveries: &mut Deliveries, max: usize) -> Vec<Delivery> {
    let mut batch = vec![first];
    while batch.len() < max {
        match deliveries.next().now_or_never() {
            Some(Some(delivery)) => batch.push(delivery),
            Some(None) | None => break,
        }
    }
    batch
}

impl Work {
    async fn process(&self, batch: Vec<Delivery>) {
        let _in_flight = self.metrics.hold(batch.len());
        let mut fresh = Vec::new();
        let mut retries = Vec::new();
        let mut refused = Vec::new();
        for delivery in batch {
            self.metrics.received.inc();
            let span = self.begin(&delivery);
            let checked = {
                let _current = span.enter();
                self.check(&delivery, &span)
            };
            match checked {
                Ok(event) => {
                    let jobs = if event.attempt > 1 { &mut retries } else { &mut fresh };
                    let in_flight = self.metrics.in_flight.take(event.envelope.timestamp);
                    jobs.push(Job {
                        event,
                        attempt: Attempt { delivery, span, _in_flight: in_flight },
                    });
                }
                Err(settlement) => refused.push(self.settle(delivery, settlement, span)),
            }
        }
        let retries = retries.into_iter().map(|job| async move {
            let context = job.event.trace.clone();
            let handling = self.handler.handle(&job.event).with_context(context);
            let result = self.call(handling, &job.attempt.span).await;
            let result = match result {
                Ok(result) => result.map_err(Failure::from),
                Err(broken) => Err(broken.into()),
            };
            self.conclude(job, result).await;
        });
        join(join(self.process_fresh(fresh), join_all(retries)), join_all(refused)).await;
    }

    async fn process_fresh(&self, jobs: Vec<Job>) {
        let (events, attempts): (Vec<_>, Vec<_>) =
            jobs.into_iter().map(|job| (job.event, job.attempt)).unzip();
        let Some(first) = attempts.first() else { return };
        let called = self.call(self.handler.handle_batch(&events), &first.span).await;
        let (mut results, broken) = match called {
            Ok(results) => (results, None),
            Err(broken) => (Vec::new(), Some(broken)),
        };
        let mut results = results.drain(..);
        let conclusions = events.into_iter().zip(attempts).map(|(event, attempt)| {
            let result = match (results.next(), &broken) {
                (Some(result), _) => result.map_err(Failure::from),
                (None, Some(broken)) => Err(broken.clone().into()),
                (None, None) => {
                    let error = anyhow::anyhow!("the handler gave no result");
                    Err(HandlerError::Transient(error).into())
                }
            };
            self.conclude(Job { event, attempt }, result)
        });
        join_all(conclusions).await;
    }

    /// The attempt's span, which includes the checks.
    fn begin(&self, delivery: &Delivery) -> EventSpan {
        let span = EventSpan::consumer(delivery, &self.messaging_system, &self.name);
        if let Some(times) = delivery.headers.get(REPLAYED) {
            self.metrics.replayed.inc();
            span.annotate("replayed", "times", times);
        }
        span
    }

    /// Validates and expires an event.
    fn check(&self, delivery: &Delivery, span: &EventSpan) -> Result<Received, Settlement> {
        let bytes = delivery.body.len();
        let max = self.settings.max_body_bytes;
        if bytes > max {
            self.metrics.oversized.inc();
            span.fail("oversized");
            let reason = format!("the event has {bytes} bytes, more than the {max} allowed");
            return Err(self.give_up(delivery.attempt, &delivery.routing_key, None, reason));
        }
        let mut envelope = Envelope::decode(&delivery.body).map_err(|error| {
            self.metrics.malformed.inc();
            span.fail("malformed");
            self.give_up(delivery.attempt, &delivery.routing_key, None, error.to_string())
        })?;
        span.identify(&envelope.id);
        let now = (self.clock)();
        let dated_at = envelope.timestamp;
        self.clamp_future_timestamp(&mut envelope, now);
        span.age(age_of(&envelope, now));
        if self.is_expired(&envelope, now) {
            self.metrics.expired.inc();
            span.outcome("expired");
            return Err(Settlement::Ack);
        }
        Ok(Received {
            envelope,
            dated_at,
            exchange: delivery.exchange.clone(),
            routing_key: delivery.routing_key.clone(),
            ordering_key: delivery.ordering_key.clone(),
            headers: delivery.headers.clone(),
            attempt: delivery.attempt,
            trace: span.context().clone(),
        })
    }

    fn is_expired(&self, envelope: &Envelope, now: DateTime<Utc>) -> bool {
        let expiry = self.settings.expiry.iter().find(|e| e.types.matches(&envelope.r#type));
        expiry.is_some_and(|expiry| expiry.is_over(envelope.timestamp, now))
            && self.settings.may_expire.at(now)
    }

    /// An event dated too far ahead counts as happening now: its producer's clock is wrong.
    fn clamp_future_timestamp(&self, envelope: &mut Envelope, now: DateTime<Utc>) {
        let ahead = envelope.timestamp.signed_duration_since(now).to_std().unwrap_or_default();
        if ahead <= self.settings.max_ahead {
            return;
        }
        envelope.timestamp = now;
        // Not for each of them: a wrong clock dates all of its events ahead.
        let events = self.metrics.ahead.inc() + 1;
        if events.is_power_of_two() {
            tracing::warn!(
                consumer = self.name,
                event = %envelope.id,
                ahead_s = ahead.as_secs(),
                events,
                "events are dated ahead of the clock and count as happening now: compare the machines' clocks"
            );
        }
    }

    /// Calls the handler with a time-out. A panic is a failure like any other.
    async fn call<T>(
        &self,
        handling: impl Future<Output = T>,
        span: &EventSpan,
    ) -> Result<T, Broken> {
        let limit: Duration = self.settings.handle_timeout;
        let broken = match timeout(limit, AssertUnwindSafe(handling).catch_unwind()).await {
            Ok(Ok(result)) => return Ok(result),
            Ok(Err(_panic)) => {
                self.metrics.panicked.inc();
                Broken { class: "panic", why: "the handler panicked".to_owned() }
            }
            Err(_elapsed) => {
                let why = format!("the handler took longer than {limit:?}");
                Broken { class: "timeout", why }
            }
        };
        self.metrics.broken.inc();
        let _current = span.enter();
        tracing::error!(consumer = self.name, reason = broken.why, "handler failed");
        Err(broken)
    }

    async fn conclude(&self, job: Job, result: Result<Outcome, Failure>) {
        let span = &job.attempt.span;
        let settlement = {
            let _current = span.enter();
            match result {
                Ok(outcome) => self.effected(&job, outcome),
                Err(failure) => self.failed(&job, failure),
            }
        };
        let Attempt { delivery, span, _in_flight } = job.attempt;
        self.settle(delivery, settlement, span).await;
    }

    fn effected(&self, job: &Job, outcome: Outcome) -> Settlement {
        let Job { event, attempt } = job;
        let age = age_of(&event.envelope, (self.clock)());
        let (counter, word) = match outcome {
            Outcome::Applied => {
                self.metrics.took_effect(age);
                (&self.metrics.applied, "applied")
            }
            Outcome::Duplicate => (&self.metrics.duplicate, "duplicate"),
            Outcome::Ignored => (&self.metrics.ignored, "ignored"),
        };
        counter.inc();
        attempt.span.outcome(word);
        if attempt.delivery.waits > 0 {
            tracing::info!(
                consumer = self.name,
                event = %event.envelope.id,
                routing_key = event.routing_key,
                waits = attempt.delivery.waits,
                age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
                outcome = word,
                "event handled after a wait"
            );
        }
        Settlement::Ack
    }

    fn failed(&self, job: &Job, failure: Failure) -> Settlement {
        let Job { event, attempt: Attempt { span, .. } } = job;
        span.fail(failure.class);
        let policy = &self.settings.retry;
        match failure.error {
            HandlerError::Unavailable(error) => {
                let after = policy.outage_wait();
                self.try_again(event, &error, after);
                span.retry(failure.class, after);
                Settlement::Wait { after }
            }
            HandlerError::Transient(error) if event.attempt < policy.max_attempts => {
                let after = policy.backoff.after(event.attempt);
                self.try_again(event, &error, after);
                span.retry(failure.class, after);
                Settlement::Retry { after }
            }
            error => self.give_up(
                event.attempt,
                &event.routing_key,
                Some(&event.envelope),
                error.to_string(),
            ),
        }
    }

    fn try_again(&self, event: &Received, error: &anyhow::Error, after: Duration) {
        self.metrics.retried.inc();
        tracing::debug!(
            consumer = self.name,
            event = %event.envelope.id,
            routing_key = event.routing_key,
            attempt = event.attempt,
            ?after,
            error = format!("{error:#}"),
            "event will be tried again"
        );
    }

    fn give_up(
        &self,
        attempt: u32,
        routing_key: &str,
        envelope: Option<&Envelope>,
        reason: String,
    ) -> Settlement {
        let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
        tracing::warn!(
            consumer = self.name,
            event = envelope.map(|e| e.id.to_string()),
            routing_key,
            attempt,
            reason,
            "event dead-lettered"
        );
        Settlement::DeadLetter { reason }
    }

    /// Settles the delivery, and ends the attempt.
    async fn settle(&self, delivery: Delivery, settlement: Settlement, span: EventSpan) {
        let dead = matches!(settlement, Settlement::DeadLetter { .. });
        let is_waiting = matches!(settlement, Settlement::Wait { .. });
        let settled = delivery.settle(settlement).with_context(span.context().clone()).await;
        let _current = span.enter();
        match settled {
            Ok(()) if dead => {
                self.metrics.dead_lettered.inc();
                span.outcome("dead_lettered");
                span.keep_dead_letter();
                span.annotate("dead_lettered", "queue", &self.name);
            }
            Ok(()) if is_waiting => span.end_while_waiting(),
            Ok(()) => {}
            Err(error) => {
                self.metrics.unsettled.inc();
                // The effect is committed. Only the outcome is unknown, and the event comes again.
                span.annotate("unsettled", "dead_letter", dead);
                tracing::warn!(consumer = self.name, error = %error, "outcome not recorded");
            }
        }
    }
}
