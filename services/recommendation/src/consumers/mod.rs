//! The service's queues: who consumes what, and how far it is tried.
//!
//! | queue | takes | does |
//! |---|---|---|
//! | `recommendation.trend` | views, bookmarks, deleted accounts | counts for the trend |
//! | `recommendation.history` | views, bookmarks and their removal, deleted accounts | keeps members' histories |
//! | `recommendation.spots` | spots added, changed, deleted | keeps the replica of spots |
//!
//! The queues are this service's own: each has its own pace, retries and dead letters, and core
//! knows of none of them. Every event takes effect once: a count for the trend is committed with its
//! event's id, a history and a spot are registers that only a higher version moves.
//! Views and bookmarks lose their meaning with age and expire; a deletion and a spot never do.
//!
//! While a store is out of reach its events stay with the bus: those that were handed out are tried
//! again every few seconds for as long as that takes, unacknowledged, and the rest waits in the queue.

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
    Consumer, ConsumerSettings, ConsumerStats, Expiry, Handler, HandlerError, MayExpire, Outcome,
    Received, RetryPolicy,
};
use tourin_shared_events::envelope::Envelope;
use tourin_shared_events::events::{
    BookmarkTourspot, DeleteUser, Event, ReviewTourspot, TOUR_SPOT_EXCHANGE, USER_EXCHANGE,
    UnbookmarkTourspot, ViewTourspot,
};

use crate::app::ingest::{Ages, Guards, Ingest};
use crate::app::ports::PortError;
use crate::domain::interaction::Moment;
use crate::domain::spot::{NotASpotId, SpotId};
use crate::servers::Prepared;

/// Shards of each queue: how many replicas can share its work at most.
const SHARDS: usize = 8;
/// The most deliveries of a queue that this instance holds unsettled.
const PREFETCH: usize = 256;
/// How long a stopping consumer waits for what it has begun.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(800);
/// The most events that are handed to a handler together; half of what is held, so that the next are
/// at work while these are settled.
const BATCH: usize = PREFETCH / 2;
/// A store that takes longer over an event is as good as out of reach. Longer than any store's own
/// time-outs together, shorter than what the consumer takes for a fault of the event.
const HANDLE_LIMIT: Duration = Duration::from_secs(20);
/// Attempts at an event whose handling failed. With a store that comes back, no event waits for much
/// longer than this.
const RETRY: RetryPolicy = RetryPolicy {
    max_attempts: 8,
    backoff: Backoff { base: Duration::from_millis(100), max: Duration::from_secs(3), jitter: 0.5 },
};
/// Waits between attempts to subscribe.
const RESUBSCRIBE: Backoff =
    Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5), jitter: 0.5 };

/// One of the service's consumers, before it has subscribed.
pub struct QueueConsumer {
    /// The queue's name.
    pub queue: &'static str,
    /// Counters, since it was made.
    pub stats: Arc<ConsumerStats>,
    subscription: Subscription,
    expiry: Vec<Expiry>,
    max_ahead: Duration,
    /// Vouches for the clock by which events are too old.
    guard: Arc<PruneGuard>,
    handler: Arc<dyn Handler>,
}

pub(crate) const TREND: &str = "recommendation.trend";
pub(crate) const HISTORY: &str = "recommendation.history";
const SPOTS: &str = "recommendation.spots";

/// The queues that every instance of the service subscribes to, for whoever runs the bus: an event that is published
/// before a queue is declared never gets there.
pub fn subscriptions() -> Vec<Subscription> {
    vec![trend_subscription(), history_subscription(), spots_subscription()]
}

fn trend_subscription() -> Subscription {
    let types = [ViewTourspot::TYPE, BookmarkTourspot::TYPE, DeleteUser::TYPE];
    subscription(TREND, USER_EXCHANGE, &types)
}

fn history_subscription() -> Subscription {
    // All there is to know of members, of which the handler takes what it understands: a broker gives
    // an event that no queue wants back, and one that is new must not hold up its member's others.
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
) -> Vec<QueueConsumer> {
    vec![
        QueueConsumer {
            queue: TREND,
            stats: Arc::default(),
            subscription: trend_subscription(),
            expiry: expiry(&[ViewTourspot::TYPE, BookmarkTourspot::TYPE], ages.trend),
            max_ahead,
            guard: Arc::clone(&guards.trend),
            handler: Arc::new(Patient(trend::TrendHandler(ingest.clone()))),
        },
        QueueConsumer {
            queue: HISTORY,
            stats: Arc::default(),
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
            handler: Arc::new(Patient(history::HistoryHandler(ingest.clone()))),
        },
        QueueConsumer {
            queue: SPOTS,
            stats: Arc::default(),
            subscription: spots_subscription(),
            expiry: Vec::new(),
            max_ahead,
            guard: Arc::clone(&guards.histories),
            handler: Arc::new(spots::SpotHandler(ingest.clone())),
        },
    ]
}

impl QueueConsumer {
    /// Consumes until `stop`, subscribing again whenever the bus is out of reach or has ended.
    /// `subscribed` is ready while there is a subscription. Nothing is handled before `begin`; making the
    /// queues does not wait for it, for that takes a broker a while.
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
                    .with_stats(Arc::clone(&self.stats));
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
            may_expire: MayExpire::when(move |now| guard.vouches_for(now)),
            max_ahead: self.max_ahead,
            retry: RETRY,
            max_batch: BATCH,
            handle_timeout: 2 * HANDLE_LIMIT,
            drain_timeout: DRAIN_TIMEOUT,
            ..ConsumerSettings::default()
        }
    }
}

/// A handler whose store may hang without saying so. Its panics count among the process's; the consumer
/// catches and logs them.
struct Patient<H>(H);

#[async_trait]
impl<H: Handler> Handler for Patient<H> {
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError> {
        patiently(self.0.handle(event)).await
    }
}

async fn patiently<T>(
    handling: impl Future<Output = Result<T, HandlerError>>,
) -> Result<T, HandlerError> {
    match timeout(HANDLE_LIMIT, AssertUnwindSafe(handling).catch_unwind()).await {
        Ok(Ok(handled)) => handled,
        Ok(Err(panic)) => {
            count_panic();
            resume_unwind(panic)
        }
        Err(_) => {
            let error = anyhow::anyhow!("the store took longer than {HANDLE_LIMIT:?}");
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

/// When an event happened, and in which order.
fn moment(envelope: &Envelope) -> Moment {
    Moment { at: envelope.timestamp, version: envelope.version() }
}

fn spot_id(text: &str) -> Result<SpotId, HandlerError> {
    text.parse()
        .map_err(|error: NotASpotId| HandlerError::Permanent(format!("tourspot_id: {error}")))
}

/// A store that is out of reach is so for every event: they wait for it, however long. What else
/// fails may be this event's own fault, and is tried a few times.
fn not_handled(error: PortError) -> HandlerError {
    match error {
        PortError::Unavailable(_) => HandlerError::Unavailable(error.into()),
        PortError::Failed(_) => HandlerError::Transient(error.into()),
    }
}

fn applied_or_duplicate(applied: bool) -> Outcome {
    if applied { Outcome::Applied } else { Outcome::Duplicate }
}
