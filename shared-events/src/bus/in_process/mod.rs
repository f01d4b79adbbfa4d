//! The bus inside one process: bounded queues in memory, made durable by the outbox behind the publisher.
//!
//! [`InProcessBus::publish`](Publisher::publish) resolves only when every bound queue has settled the event, so the
//! relay marks an outbox row after the effect, and a crash at any moment publishes again what had not taken effect.
//!
//! # Declare first, publish then
//! An event goes to the queues that are there when it is published, and is confirmed at once when none of them wants
//! it. A queue that comes later has lost it. So the program that puts services together calls
//! [`InProcessBus::declare`] for every queue of every consumer before the first publisher starts. Only while no queue at
//! all is declared does a publisher get [`PublishError::Unroutable`], for then nothing can be said of who wants what.

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
use crate::bus::tries::Tries;
use crate::dead_letters::DeadLetterStore;
use crate::events::Outgoing;
use crate::{Clock, system_clock};
use queue::{Cause, Entry, Message, Queue, Source, State};
use replays::Replays;

/// The most events a queue holds, delivered and unsettled ones included, unless set otherwise.
pub const DEFAULT_QUEUE_CAPACITY: usize = 4096;

/// How full a queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    /// The queue's name.
    pub queue: String,
    /// Events not handed out, waiting retries included.
    pub waiting: usize,
    /// Deliveries handed out and not settled.
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
///     let delivery = deliveries.next().await.expect("the bus goes on");
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

    /// The same, with queues of `queue_capacity` events (at least 1) and a given clock for dead letters.
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

    /// Makes a queue with its bindings, without a subscriber: it takes events from now on, and keeps them for its
    /// subscribers. Declaring it again, or subscribing to it, adds what bindings are new and nothing else.
    ///
    /// # Errors
    /// As [`Subscriber::subscribe`].
    pub fn declare(&self, subscription: Subscription) -> Result<(), SubscribeError> {
        self.declared(&subscription).map(drop)
    }

    fn declared(&self, subscription: &Subscription) -> Result<Arc<Queue>, SubscribeError> {
        let bindings = subscription.check()?;
        let mut queues = lock(&self.0.queues);
        // Asked under the lock that `close` takes to close the queues: none is made after it.
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

    /// Ends the bus: publishers get [`PublishError::Unavailable`], subscribers the end of their deliveries. What was
    /// not settled stays in the publisher's outbox.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        for queue in lock(&self.0.queues).values() {
            queue.close();
        }
    }

    fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// The queues an event goes to; `None` while there is no queue at all, or not the one that a command names.
    fn route(&self, event: &Outgoing) -> Option<Vec<Arc<Queue>>> {
        let queues = lock(&self.0.queues);
        let takers: Vec<_> = queues.values().filter(|queue| queue.takes(event)).cloned().collect();
        // A command is for one queue; without it, somebody is missing.
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
        // By queue and not by event: a full queue must not keep events from the others.
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
                // A closed queue drops `confirm`, which its receiver takes for a failure.
                let Ok(slot) = queue.slots.clone().acquire_owned().await else {
                    return;
                };
                let cause = Cause::Publisher(confirm);
                queue.push(Entry { message, tries: Tries::at(1), cause, _slot: slot });
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

    /// Of every subscriber: they are in one process.
    async fn backlog(&self) -> anyhow::Result<u64> {
        let of_queue = |depth: QueueDepth| (depth.waiting + depth.unsettled) as u64;
        Ok(self.depths().into_iter().map(of_queue).sum())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic halfway through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
