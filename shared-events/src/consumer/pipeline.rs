//! The pipeline at work.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use futures::future::{join, join_all};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::stats::{InHand, count};
use super::{ConsumerSettings, ConsumerStats, Handler, HandlerError, Outcome, Received};
use crate::Clock;
use crate::bus::{Deliveries, Delivery, Settlement};
use crate::envelope::Envelope;

/// The longest reason that is kept with a dead letter, in characters.
const MAX_REASON_CHARS: usize = 1_000;

/// Receives the deliveries of one subscription and has a handler take care of them, as the
/// [module's table](super) says.
pub struct Consumer {
    deliveries: Deliveries,
    work: Work,
}

/// What is needed to take care of one batch; shared by those at work at once.
struct Work {
    name: String,
    handler: Arc<dyn Handler>,
    settings: ConsumerSettings,
    clock: Clock,
    stats: Arc<ConsumerStats>,
}

/// A delivery that passed the checks, with its handle on the bus.
struct Job {
    event: Received,
    delivery: Delivery,
}

impl Consumer {
    /// A consumer with default settings. `name` appears in logs.
    pub fn new(
        name: impl Into<String>,
        deliveries: Deliveries,
        handler: Arc<dyn Handler>,
        clock: Clock,
    ) -> Self {
        Self {
            deliveries,
            work: Work {
                name: name.into(),
                handler,
                settings: ConsumerSettings::default(),
                clock,
                stats: Arc::default(),
            },
        }
    }

    /// Replaces the settings. Counts below 1 are taken for 1.
    #[must_use]
    pub fn with_settings(mut self, settings: ConsumerSettings) -> Self {
        self.work.settings = ConsumerSettings {
            max_batch: settings.max_batch.max(1),
            concurrency: settings.concurrency.max(1),
            ..settings
        };
        self
    }

    /// Counts into the given counters, which several consumers (replicas, say) may share.
    #[must_use]
    pub fn with_stats(mut self, stats: Arc<ConsumerStats>) -> Self {
        self.work.stats = stats;
        self
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<ConsumerStats> {
        self.work.stats.clone()
    }

    /// Works until told to stop or until the bus ends. Stopping, it takes nothing new and gives what it has begun
    /// `drain_timeout` to finish; what does not, is delivered again.
    pub async fn run(self, shutdown: CancellationToken) {
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
    }
}

/// Adds what is there already; waits for nothing.
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
        let _in_hand = InHand::new(&self.stats, batch.len());
        let mut fresh = Vec::new();
        let mut retries = Vec::new();
        let mut refused = Vec::new();
        for delivery in batch {
            count(&self.stats.received);
            match self.check(&delivery) {
                Ok(event) => {
                    let jobs = if event.attempt > 1 { &mut retries } else { &mut fresh };
                    jobs.push(Job { event, delivery });
                }
                Err(settlement) => refused.push(self.settle(delivery, settlement)),
            }
        }
        let retries = retries.into_iter().map(|job| async move {
            let result = self.call(self.handler.handle(&job.event)).await;
            self.conclude(job, result.unwrap_or_else(Err)).await;
        });
        join(join(self.process_fresh(fresh), join_all(retries)), join_all(refused)).await;
    }

    async fn process_fresh(&self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let (events, deliveries): (Vec<_>, Vec<_>) =
            jobs.into_iter().map(|job| (job.event, job.delivery)).unzip();
        let mut results = match self.call(self.handler.handle_batch(&events)).await {
            Ok(results) => results.into_iter(),
            Err(error) => {
                let why = error.to_string();
                let transient = || Err(HandlerError::Transient(anyhow::anyhow!(why.clone())));
                events.iter().map(|_| transient()).collect::<Vec<_>>().into_iter()
            }
        };
        let conclusions = events.into_iter().zip(deliveries).map(|(event, delivery)| {
            let result = results.next().unwrap_or_else(|| {
                Err(HandlerError::Transient(anyhow::anyhow!("the handler gave no result")))
            });
            self.conclude(Job { event, delivery }, result)
        });
        join_all(conclusions).await;
    }

    /// Validates and expires.
    fn check(&self, delivery: &Delivery) -> Result<Received, Settlement> {
        let bytes = delivery.body.len();
        let max = self.settings.max_body_bytes;
        if bytes > max {
            count(&self.stats.oversized);
            let reason = format!("the event has {bytes} bytes, more than the {max} allowed");
            return Err(self.give_up(delivery.attempt, &delivery.routing_key, None, reason));
        }
        let envelope = Envelope::decode(&delivery.body).map_err(|error| {
            count(&self.stats.malformed);
            self.give_up(delivery.attempt, &delivery.routing_key, None, error.to_string())
        })?;
        if self.is_expired(&envelope, (self.clock)()) {
            count(&self.stats.expired);
            return Err(Settlement::Ack);
        }
        Ok(Received {
            envelope,
            exchange: delivery.exchange.clone(),
            routing_key: delivery.routing_key.clone(),
            ordering_key: delivery.ordering_key.clone(),
            headers: delivery.headers.clone(),
            attempt: delivery.attempt,
        })
    }

    fn is_expired(&self, envelope: &Envelope, now: DateTime<Utc>) -> bool {
        let expiry = self.settings.expiry.iter().find(|e| e.types.matches(&envelope.r#type));
        expiry.is_some_and(|expiry| expiry.is_over(envelope.timestamp, now))
    }

    /// Calls the handler within its time; a panic is a failure like another.
    async fn call<T>(&self, handling: impl Future<Output = T>) -> Result<T, HandlerError> {
        let limit: Duration = self.settings.handle_timeout;
        let broken = match timeout(limit, AssertUnwindSafe(handling).catch_unwind()).await {
            Ok(Ok(result)) => return Ok(result),
            Ok(Err(_panic)) => anyhow::anyhow!("the handler panicked"),
            Err(_elapsed) => anyhow::anyhow!("the handler took longer than {limit:?}"),
        };
        count(&self.stats.broken);
        tracing::error!(consumer = self.name, reason = %broken, "handler failed");
        Err(HandlerError::Transient(broken))
    }

    async fn conclude(&self, job: Job, result: Result<Outcome, HandlerError>) {
        let Received { envelope, attempt, routing_key, .. } = &job.event;
        let settlement = match result {
            Ok(outcome) => {
                if outcome == Outcome::Applied {
                    let age = (self.clock)().signed_duration_since(envelope.timestamp);
                    self.stats.ages.add(age.to_std().unwrap_or_default());
                }
                count(match outcome {
                    Outcome::Applied => &self.stats.applied,
                    Outcome::Duplicate => &self.stats.duplicate,
                    Outcome::Ignored => &self.stats.ignored,
                });
                Settlement::Ack
            }
            Err(HandlerError::Unavailable(error)) => {
                let after = self.settings.retry.outage_wait();
                self.try_again(&job.event, &error, after);
                Settlement::Wait { after }
            }
            Err(HandlerError::Transient(error)) if *attempt < self.settings.retry.max_attempts => {
                let after = self.settings.retry.backoff.after(*attempt);
                self.try_again(&job.event, &error, after);
                Settlement::Retry { after }
            }
            Err(error) => self.give_up(*attempt, routing_key, Some(envelope), error.to_string()),
        };
        self.settle(job.delivery, settlement).await;
    }

    fn try_again(&self, event: &Received, error: &anyhow::Error, after: Duration) {
        count(&self.stats.retried);
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
            "event given up"
        );
        Settlement::DeadLetter { reason }
    }

    async fn settle(&self, delivery: Delivery, settlement: Settlement) {
        let dead = matches!(settlement, Settlement::DeadLetter { .. });
        match delivery.settle(settlement).await {
            Ok(()) if dead => count(&self.stats.dead_lettered),
            Ok(()) => {}
            Err(error) => {
                count(&self.stats.unsettled);
                tracing::warn!(consumer = self.name, error = %error, "outcome not recorded");
            }
        }
    }
}
