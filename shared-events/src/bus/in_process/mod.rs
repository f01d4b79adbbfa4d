//! The bus inside one process: bounded queues in memory, made durable by the outbox behind the publisher.
//!
//! [`InProcessBus::publish`](Publisher::publish) resolves only when every bound queue has settled the event. So the
//! relay marks an outbox row after the effect. After a crash, events without a committed effect are published again.
//!
//! # Declare before publishing
//! An event goes to the queues that exist when it is published. When no binding matches, it is confirmed at once. A
//! queue that is declared later does not get it. So the program that assembles the services calls
//! [`InProcessBus::declare`] for every queue of every consumer before the first publisher starts. While no queue is
//! declared at all, a publisher gets [`PublishError::Unroutable`].

mod queue;
mod replays;
mod reply_queue;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::future::join_all;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::{
    COMMAND_EXCHANGE, Deliveries, PublishError, Publisher, SubscribeError, Subscriber, Subscription,
};
use crate::bus::attempts::AttemptCounts;
use crate::dead_letters::DeadLetterStore;
use crate::events::Outgoing;
use crate::{Clock, system_clock};
use queue::{Cause, Entry, Message, Queue, Source, State};
use replays::Replays;

/// The default bound on a queue's events, unsettled deliveries included.
pub const DEFAULT_QUEUE_CAPACITY: usize = 4096;

/// How full a queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    /// The queue's name.
    pub queue: String,
    /// Events that are not delivered yet, waiting retries included.
    pub waiting: usize,
    /// Deliveries that are not settled.
    pub unsettled: usize,
    /// Subscribers.
    pub subscribers: usize,
}

/// The bus. Clones are the same bus.
///
/// ```
/// # use std::sync::Arc;
/// use chrono::Utc;
/// use tourin_shared_events::bus::in_process::InProcessBus;
/// use tourin_shared_events::bus::{Binding, Publisher, Settlement, Subscriber, Subscription};
/// use tourin_shared_events::events::{Outgoing, USER_EXCHANGE, ViewTourspot};
/// # use tourin_shared_events::dead_letters::MemoryDeadLetters;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anyhow::Result<()> {
/// # let dead_letters = Arc::new(MemoryDeadLetters::default());
/// let bus = InProcessBus::new(dead_letters);
/// let bindings = vec![Binding::new(USER_EXCHANGE, "user.#")];
/// let mut deliveries = bus.subscribe(Subscription::new("views", bindings)).await?;
///
/// let view = ViewTourspot { user_id: "hana12345".into(), tourspot_id: "1".into() };
/// let publishing = bus.publish(vec![Outgoing::new(&view, Utc::now())]);
/// let consuming = async {
///     let delivery = deliveries.next().await.expect("the bus is open");
///     assert_eq!(delivery.routing_key, "user.viewTourspot");
///     delivery.settle(Settlement::Ack).await
/// };
/// // The event is confirmed once it is settled.
/// let (confirmed, settled) = tokio::join!(publishing, consuming);
/// settled?;
/// assert_eq!(confirmed, [Ok(())]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct InProcessBus(Arc<Bus>);

struct Bus {
    queues: Mutex<BTreeMap<String, Arc<Queue>>>,
    closed: AtomicBool,
    dead_letters: Arc<dyn DeadLetterStore>,
    clock: Clock,
    queue_capacity: usize,
}

impl InProcessBus {
    /// A bus whose dead letters go to `dead_letters`, with queues of [`DEFAULT_QUEUE_CAPACITY`].
    pub fn new(dead_letters: Arc<dyn DeadLetterStore>) -> Self {
        Self::with_capacity(dead_letters, DEFAULT_QUEUE_CAPACITY, system_clock())
    }

    /// Like `new`, with queues of `queue_capacity` events (at least 1) and a clock for dead letters.
    pub fn with_capacity(
        dead_letters: Arc<dyn DeadLetterStore>,
        queue_capacity: usize,
        clock: Clock,
    ) -> Self {
        Self(Arc::new(Bus {
            queues: Mutex::default(),
            closed: false.into(),
            dead_letters,
            clock,
            queue_capacity: queue_capacity.max(1),
        }))
    }

    /// Creates a queue with its bindings, without a subscriber. The queue receives events from now on and keeps them
    /// for its subscribers. Declaring it again, or subscribing to it, only adds new bindings.
    ///
    /// # Errors
    /// As [`Subscriber::subscribe`].
    pub fn declare(&self, subscription: Subscription) -> Result<(), SubscribeError> {
        self.declared(&subscription).map(drop)
    }

    fn declared(&self, subscription: &Subscription) -> Result<Arc<Queue>, SubscribeError> {
        let bindings = subscription.check()?;
        let mut queues = lock(&self.0.queues);
        // Checked under the lock that `close` takes to close the queues: no queue is added after that.
        if self.is_closed() {
            return Err(SubscribeError::Unavailable(anyhow::anyhow!("the bus is closed")));
        }
        let queue = queues.entry(subscription.queue.clone()).or_insert_with(|| {
            Arc::new(Queue {
                name: subscription.queue.clone(),
                slots: Arc::new(Semaphore::new(self.0.queue_capacity)),
                state: Mutex::new(State::new(subscription.shards)),
                changed: Notify::new(),
                dead_letters: self.0.dead_letters.clone(),
                clock: self.0.clock.clone(),
            })
        });
        queue.bind(subscription, bindings)?;
        Ok(queue.clone())
    }

    /// How full each queue is, by name.
    pub fn depths(&self) -> Vec<QueueDepth> {
        lock(&self.0.queues).values().map(|queue| queue.depth()).collect()
    }

    /// Ends the bus: publishers get [`PublishError::Unavailable`], and subscribers get the end of their deliveries.
    /// Unsettled events stay in the publisher's outbox.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        for queue in lock(&self.0.queues).values() {
            queue.close();
        }
    }

    fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// The queues that an event goes to. `None` while no queue is declared, or the queue that a command names is
    /// missing.
    fn route(&self, event: &Outgoing) -> Option<Vec<Arc<Queue>>> {
        let queues = lock(&self.0.queues);
        let takers: Vec<_> = queues.values().filter(|queue| queue.takes(event)).cloned().collect();
        // A command is unroutable until its queue is declared.
        let nobody = takers.is_empty() && event.exchange == COMMAND_EXCHANGE;
        (!queues.is_empty() && !nobody).then_some(takers)
    }
}

fn closed() -> PublishError {
    PublishError::Unavailable("the bus is closed".to_owned())
}

#[async_trait]
impl Publisher for InProcessBus {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        if self.is_closed() {
            return batch.iter().map(|_| Err(closed())).collect();
        }
        let mut confirms: Vec<Option<Vec<oneshot::Receiver<()>>>> = Vec::with_capacity(batch.len());
        // By queue and not by event: a full queue must not block the others.
        let mut plan: BTreeMap<String, (Arc<Queue>, Vec<(Arc<Message>, oneshot::Sender<()>)>)> =
            BTreeMap::new();
        for event in batch {
            let Some(queues) = self.route(&event) else {
                confirms.push(None);
                continue;
            };
            let message = Arc::new(Message::new(event));
            let mut receivers = Vec::with_capacity(queues.len());
            for queue in queues {
                let (confirm, receiver) = oneshot::channel();
                receivers.push(receiver);
                plan.entry(queue.name.clone())
                    .or_insert_with(|| (queue, Vec::new()))
                    .1
                    .push((message.clone(), confirm));
            }
            confirms.push(Some(receivers));
        }
        join_all(plan.into_values().map(|(queue, messages)| async move {
            for (message, confirm) in messages {
                // A closed queue drops `confirm`, and the receiver treats that as a failure.
                let Ok(slot) = queue.slots.clone().acquire_owned().await else {
                    return;
                };
                let cause = Cause::Publisher(confirm);
                queue.push(Entry { message, attempts: AttemptCounts::at(1), cause, _slot: slot });
            }
        }))
        .await;
        let mut results = Vec::with_capacity(confirms.len());
        for receivers in confirms {
            let mut result = receivers.as_ref().map(|_| ()).ok_or(PublishError::Unroutable);
            for receiver in receivers.into_iter().flatten() {
                if receiver.await.is_err() {
                    result = Err(closed());
                }
            }
            results.push(result);
        }
        results
    }
}

#[async_trait]
impl Subscriber for InProcessBus {
    async fn subscribe(&self, subscription: Subscription) -> Result<Deliveries, SubscribeError> {
        let queue = self.declared(&subscription)?;
        let member = queue.join(&subscription);
        let replays = Replays::new(&queue.name, queue.dead_letters.clone());
        Ok(Deliveries::new(Source { queue, member, replays }))
    }

    /// The backlog of all subscribers: they are in one process.
    async fn backlog(&self) -> anyhow::Result<u64> {
        let of_queue = |depth: QueueDepth| (depth.waiting + depth.unsettled) as u64;
        Ok(self.depths().into_iter().map(of_queue).sum())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under these locks can panic halfway through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
