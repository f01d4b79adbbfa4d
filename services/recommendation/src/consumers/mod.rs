//! The service's queues and their consumers.
//!
//! | queue | events | effect |
//! |---|---|---|
//! | `recommendation.trend` | views, bookmarks, deleted accounts | counts for the trend |
//! | `recommendation.history` | views, bookmarks and their removal, deleted accounts | members' histories |
//! | `recommendation.spots` | spots added, changed, deleted | the replica of spots |
//!
//! Each queue has its own pace, retries and dead letters. Core does not know the queues. Every event
//! takes effect once: a count for the trend is committed with its event's id, and a history or a
//! spot changes only to a higher version. Views and bookmarks expire. Deletions and spots do not.
//!
//! During an outage of a store its events stay with the bus. Delivered events are retried every few
//! seconds until the store is back, unacknowledged. The others wait in the queue.

mod history;
mod spots;
mod trend;

#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::health::Dependency;
use tourin_chassis::metrics::count_panic;
use tourin_chassis::pruning::PruneGuard;
use tourin_shared_events::backoff::Backoff;
use tourin_shared_events::bus::{Binding, Subscriber, Subscription, TopicPattern};
use tourin_shared_events::consumer::{
    Consumer, ConsumerMetrics, ConsumerSettings, Expiry, Handler, HandlerError, MayExpire, Outcome,
    QueueMetrics, Received, RetryPolicy,
};
use tourin_shared_events::envelope::Envelope;
use tourin_shared_events::events::{
    BookmarkTourspot, DeleteUser, Event, ReviewTourspot, TOUR_SPOT_EXCHANGE, USER_EXCHANGE,
    UnbookmarkTourspot, ViewTourspot,
};

use crate::app::ingest::{Ages, Guards, Ingest};
use crate::app::ports::PortError;
use crate::domain::interaction::ChangeOrder;
use crate::domain::spot::{NotASpotId, SpotId};
use crate::servers::Prepared;

/// Shards of each queue: the maximum number of replicas that share its work.
const SHARDS: usize = 8;
/// The maximum number of unsettled deliveries of a queue per instance.
const PREFETCH: usize = 256;
/// How long a stopping consumer waits for events in progress.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(800);
/// The maximum number of events in one batch: half of the prefetch, so that the next batch is
/// handled while this one is settled.
const BATCH: usize = PREFETCH / 2;
/// A store that takes longer for an event counts as unavailable. Longer than a store's own timeouts
/// together, shorter than the consumer's timeout, which blames the event.
const HANDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Retries of a failed event. After an outage no event waits much longer than the longest backoff.
const RETRY: RetryPolicy = RetryPolicy {
    max_attempts: 8,
    backoff: Backoff { base: Duration::from_millis(100), max: Duration::from_secs(3), jitter: 0.5 },
};
/// Waits between attempts to subscribe.
const RESUBSCRIBE: Backoff =
    Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5), jitter: 0.5 };

/// One of the service's consumers, not subscribed yet.
pub struct QueueConsumer {
    /// The queue's name.
    pub queue: &'static str,
    /// The consumer's metrics.
    pub metrics: QueueMetrics,
    subscription: Subscription,
    expiry: Vec<Expiry>,
    max_ahead: Duration,
    /// Confirms the clock by which events expire.
    guard: Arc<PruneGuard>,
    handler: Arc<dyn Handler>,
}

pub(crate) const TREND: &str = "recommendation.trend";
pub(crate) const HISTORY: &str = "recommendation.history";
const SPOTS: &str = "recommendation.spots";

/// The queues of the service, for the owner of the bus. A queue must be declared before the first
/// event is published, or it misses that event.
pub fn subscriptions() -> Vec<Subscription> {
    vec![trend_subscription(), history_subscription(), spots_subscription()]
}

fn trend_subscription() -> Subscription {
    let types = [ViewTourspot::TYPE, BookmarkTourspot::TYPE, DeleteUser::TYPE];
    subscription(TREND, USER_EXCHANGE, &types)
}

fn history_subscription() -> Subscription {
    // All events of members; the handler ignores unknown ones. A broker returns an event without a
    // queue to its publisher, and an event of a new type must not block its member's other events.
    subscription(HISTORY, USER_EXCHANGE, &["user.#"])
}

fn spots_subscription() -> Subscription {
    subscription(SPOTS, TOUR_SPOT_EXCHANGE, &["tourSpot.#"])
}

/// The service's consumers, one for each of [`subscriptions`].
pub fn all(
    ingest: &Ingest,
    ages: Ages,
    max_ahead: Duration,
    guards: &Guards,
    metrics: &ConsumerMetrics,
) -> Vec<QueueConsumer> {
    vec![
        QueueConsumer {
            queue: TREND,
            metrics: metrics.of(TREND),
            subscription: trend_subscription(),
            expiry: expiry(&[ViewTourspot::TYPE, BookmarkTourspot::TYPE], ages.trend),
            max_ahead,
            guard: Arc::clone(&guards.trend),
            handler: Arc::new(TimeoutHandler(trend::TrendHandler(ingest.clone()))),
        },
        QueueConsumer {
            queue: HISTORY,
            metrics: metrics.of(HISTORY),
            subscription: history_subscription(),
            expiry: expiry(
                &[
                    ViewTourspot::TYPE,
                    ReviewTourspot::TYPE,
                    BookmarkTourspot::TYPE,
                    UnbookmarkTourspot::TYPE,
                ],
                ages.histories,
            ),
            max_ahead,
            guard: Arc::clone(&guards.histories),
            handler: Arc::new(TimeoutHandler(history::HistoryHandler(ingest.clone()))),
        },
        QueueConsumer {
            queue: SPOTS,
            metrics: metrics.of(SPOTS),
            subscription: spots_subscription(),
            expiry: Vec::new(),
            max_ahead,
            guard: Arc::clone(&guards.histories),
            handler: Arc::new(spots::SpotHandler(ingest.clone())),
        },
    ]
}

impl QueueConsumer {
    /// Consumes until `stop`, and subscribes again after an outage of the bus. `subscribed` is ready
    /// while the consumer is subscribed. Events are handled only after `begin`. The queues are
    /// declared before it, because that takes a broker some time.
    pub async fn run(
        self,
        subscriber: Arc<dyn Subscriber>,
        clock: SharedClock,
        subscribed: Dependency,
        begin: Prepared,
        stop: CancellationToken,
    ) {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let subscription = subscriber.subscribe(self.subscription.clone());
            let subscription = tokio::select! {
                subscription = subscription => subscription,
                () = stop.cancelled() => return,
            };
            match subscription {
                Ok(deliveries) => {
                    failures = 0;
                    subscribed.set_ready();
                    let time = Arc::clone(&clock);
                    let consumer = Consumer::new(
                        self.queue,
                        deliveries,
                        Arc::clone(&self.handler),
                        Arc::new(move || time.now()),
                    )
                    .with_settings(self.settings())
                    .with_metrics(self.metrics.clone());
                    begin.clone().then(consumer.run(stop.clone()), stop.clone()).await;
                }
                Err(error) => {
                    tracing::warn!(queue = self.queue, %error, "cannot subscribe; trying again");
                }
            }
            if stop.is_cancelled() {
                return;
            }
            subscribed.set_unready("not subscribed to its queue");
            failures += 1;
            tokio::select! {
                () = tokio::time::sleep(RESUBSCRIBE.after(failures)) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    fn settings(&self) -> ConsumerSettings {
        let guard = Arc::clone(&self.guard);
        ConsumerSettings {
            expiry: self.expiry.clone(),
            may_expire: MayExpire::when(move |now| guard.confirms(now)),
            max_ahead: self.max_ahead,
            retry: RETRY,
            max_batch: BATCH,
            handle_timeout: 2 * HANDLE_TIMEOUT,
            drain_timeout: DRAIN_TIMEOUT,
            ..ConsumerSettings::default()
        }
    }
}

/// Adds a timeout to a handler, because its store may hang. Also counts its panics; the consumer
/// catches and logs them.
struct TimeoutHandler<H>(H);

#[async_trait]
impl<H: Handler> Handler for TimeoutHandler<H> {
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError> {
        with_timeout(self.0.handle(event)).await
    }
}

async fn with_timeout<T>(
    handling: impl Future<Output = Result<T, HandlerError>>,
) -> Result<T, HandlerError> {
    match timeout(HANDLE_TIMEOUT, AssertUnwindSafe(handling).catch_unwind()).await {
        Ok(Ok(handled)) => handled,
        Ok(Err(panic)) => {
            count_panic();
            resume_unwind(panic)
        }
        Err(_) => {
            let error = anyhow::anyhow!("the store took longer than {HANDLE_TIMEOUT:?}");
            Err(HandlerError::Unavailable(error))
        }
    }
}

fn subscription(queue: &str, exchange: &str, types: &[&str]) -> Subscription {
    let bindings = types.iter().map(|pattern| Binding::new(exchange, *pattern)).collect();
    Subscription { prefetch: PREFETCH, shards: SHARDS, ..Subscription::new(queue, bindings) }
}

fn expiry(types: &[&str], max_age: Duration) -> Vec<Expiry> {
    types.iter().map(|pattern| Expiry { types: TopicPattern::new(pattern), max_age }).collect()
}

/// The time and the version of an event.
fn moment(envelope: &Envelope) -> ChangeOrder {
    ChangeOrder { at: envelope.timestamp, version: envelope.version() }
}

fn spot_id(text: &str) -> Result<SpotId, HandlerError> {
    text.parse()
        .map_err(|error: NotASpotId| HandlerError::Permanent(format!("tourspot_id: {error}")))
}

/// An outage affects every event, so the events wait for its end. Any other failure may be caused by
/// the event itself and is retried a few times.
fn handler_error(error: PortError) -> HandlerError {
    match error {
        PortError::Unavailable(_) => HandlerError::Unavailable(error.into()),
        PortError::Failed(_) => HandlerError::Transient(error.into()),
    }
}

fn applied_or_duplicate(applied: bool) -> Outcome {
    if applied { Outcome::Applied } else { Outcome::Duplicate }
}
