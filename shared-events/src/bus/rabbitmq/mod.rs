//! The bus on RabbitMQ.
//!
//! # What exists at the broker
//! For a subscription to the queue `q` with 8 shards, bound to `event.user.ex` by `user.#`:
//!
//! ```text
//! event.user.ex (topic) --user.#--> q.slots (direct) --slot-0 .. slot-255--> q.shard.0 .. q.shard.7
//!                                     |                               quorum, single active consumer
//!                                     '--no slot--> q.rest (fanout) --> q.shard.0
//! q.dead (fanout) --> q.dead (quorum)     dead letters
//! q.peers (fanout)                        replicas of the subscriber discover each other
//! ```
//!
//! The code declares all of it when it is needed, and again after every loss. Publishers declare their domain's
//! exchange and know no queue.
//!
//! # How the bus keeps its contract
//! * **At least once.** Messages are persistent and queues are replicated. An event is confirmed once every queue it
//!   went to has it on disk. An event that no queue takes comes back as [`PublishError::Unroutable`]. A delivery is
//!   acknowledged when it is settled; the broker redelivers it when the connection breaks before.
//! * **In order per key.** The events of a key go to one shard. A shard has one active consumer, which delivers one
//!   event of a key at a time. A retry waits here, unacknowledged and with its key, while other keys continue: a delay
//!   queue would let later events of the key overtake it. The price is an attempt count in memory. A replica that dies
//!   leaves its events to the next one as tried once, and the broker dead-letters an event that kills every replica
//!   (see [`RabbitSettings::delivery_limit`]). Publishers name the slot of an event's key, one of 256, and each queue
//!   binds its slots to its shards. A key belongs to the same shard as long as the queue keeps its number of shards.
//! * **Bounded.** A subscriber never delivers more than its prefetch. It holds at most twice as many messages, or 16
//!   for each shard if that is more. At the broker a shard is bounded in bytes. A full shard refuses an event, which
//!   stays with the publisher.
//!
//! The library's own recovery is not used: this module supervises connections, channels, topology and consumers.

mod connection;
mod dead_letters;
mod membership;
mod metrics;
mod peers;
mod prefetch_buffer;
mod publisher;
mod reply_queue;
mod settings;
mod shard;
mod slots;
mod topology;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    Deliveries, Delivery, DeliverySource, MessagingSystem, PublishError, Publisher, SubscribeError,
    Subscriber, Subscription,
};
use crate::events::Outgoing;
use connection::{BrokerError, Connections};
use prefetch_buffer::PrefetchBuffer;
use publisher::Publishing;
use shard::Subscribed;
use topology::Topology;

pub use dead_letters::RabbitDeadLetters;
pub use metrics::{BusMetrics, SubscriptionState};
pub use settings::{AmqpUrl, InvalidAmqpUrl, NoBroker, RabbitSettings};

/// The longest name AMQP allows, in bytes.
const MAX_NAME_BYTES: usize = 255;
/// How long closing the connections may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// The bus. Clones are the same bus. It ends with its last clone and the last of its [`Deliveries`].
#[derive(Clone)]
pub struct RabbitBus(Arc<Inner>);

struct Inner {
    settings: Arc<RabbitSettings>,
    messaging_system: MessagingSystem,
    publishing: Publishing,
    /// A separate connection: a broker that is short of memory blocks publishing connections.
    consuming: Connections,
    publishes: Connections,
    /// Ends the subscriptions.
    stop: CancellationToken,
    /// Ends publishing and the connections.
    hang_up: CancellationToken,
    tasks: Mutex<Tasks>,
    metrics: BusMetrics,
    /// The open subscriptions.
    buffers: Mutex<Vec<Weak<PrefetchBuffer>>>,
    /// Concurrent readers of dead letters would hide them from each other.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Tasks {
    connections: JoinSet<()>,
    subscriptions: JoinSet<()>,
}

impl std::fmt::Debug for RabbitBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RabbitBus").field(&self.0.settings.url).finish()
    }
}

impl RabbitBus {
    /// Starts to connect, in the background of the current runtime, and reconnects until [`RabbitBus::close`].
    pub fn start(settings: RabbitSettings) -> Self {
        let settings = Arc::new(settings);
        let stop = CancellationToken::new();
        let mut connections = JoinSet::new();
        // Connections outlive their users, so that these can end in order.
        let hang_up = CancellationToken::new();
        let metrics = BusMetrics::default();
        let mut keep = |purpose| {
            let (current, keeping) =
                connection::keep(settings.clone(), purpose, metrics.clone(), hang_up.clone());
            connections.spawn(keeping);
            current
        };
        let (publishes, consuming) = (keep("publish"), keep("consume"));
        let (publishing, workers) =
            Publishing::start(settings.clone(), &publishes, metrics.clone(), &hang_up);
        for worker in workers {
            connections.spawn(worker);
        }
        let tasks = Mutex::new(Tasks { connections, subscriptions: JoinSet::new() });
        Self(Arc::new(Inner {
            messaging_system: settings.url.messaging_system(),
            settings,
            publishing,
            consuming,
            publishes,
            stop,
            hang_up,
            tasks,
            metrics,
            buffers: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
        }))
    }

    /// Whether both connections are up now.
    pub fn is_connected(&self) -> bool {
        self.0.publishes.is_up() && self.0.consuming.is_up()
    }

    /// Publishes a message without a receiver and waits for the broker's confirm: a broker that is short of memory or
    /// disk stays connected, but takes no messages.
    ///
    /// # Errors
    /// The reason why there was no confirm.
    pub async fn probe(&self, limit: Duration) -> Result<(), String> {
        match timeout(limit, self.0.publishing.probe()).await {
            // No queue takes it, as intended.
            Ok(Ok(()) | Err(PublishError::Unroutable)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => Err(match self.0.metrics.is_blocked() {
                true => "it takes no messages: out of memory, or disk full".to_owned(),
                false => "it does not confirm messages".to_owned(),
            }),
        }
    }

    /// Its metrics.
    pub fn metrics(&self) -> &BusMetrics {
        &self.0.metrics
    }

    /// The current state of the open subscriptions.
    pub fn subscriptions(&self) -> Vec<SubscriptionState> {
        let mut buffers = self.buffers();
        buffers.retain(|buffer| buffer.strong_count() > 0);
        buffers.iter().filter_map(Weak::upgrade).map(|buffer| buffer.state()).collect()
    }

    /// Waits until [`RabbitBus::is_connected`] equals the given value; `false` when the bus was closed meanwhile.
    pub async fn wait_until_connected(&self, connected: bool) -> bool {
        let (mut publishes, mut consuming) = (self.0.publishes.clone(), self.0.consuming.clone());
        while self.is_connected() != connected {
            let changed = tokio::select! {
                changed = publishes.changed() => changed,
                changed = consuming.changed() => changed,
            };
            if changed.is_err() {
                return false;
            }
        }
        true
    }

    /// Notifies `on_change` when the bus connects or disconnects, until it is closed. The bus starts disconnected, so
    /// the first value is `true`.
    pub async fn follow(&self, mut on_change: impl FnMut(bool)) {
        let mut connected = false;
        while self.wait_until_connected(!connected).await {
            connected = !connected;
            on_change(connected);
        }
    }

    /// Ends subscriptions, waits until all deliveries are settled (at most `limit`), and closes the connections.
    pub async fn close(&self, limit: Duration) {
        self.0.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks());
        let settled = async { while tasks.subscriptions.join_next().await.is_some() {} };
        if timeout(limit, settled).await.is_err() {
            tracing::warn!("the bus was closed with deliveries still unsettled");
        }
        self.0.hang_up.cancel();
        let gone = async { while tasks.connections.join_next().await.is_some() {} };
        drop(timeout(GOODBYE, gone).await);
    }

    fn buffers(&self) -> MutexGuard<'_, Vec<Weak<PrefetchBuffer>>> {
        // No code under this lock can panic halfway through a change.
        self.0.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        // No code under this lock can panic halfway through a change.
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Publisher for RabbitBus {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        let prefix = &self.0.settings.prefix;
        let mut results = Vec::with_capacity(batch.len());
        let mut messages = Vec::with_capacity(batch.len());
        for event in &batch {
            match wire::message(event, prefix) {
                Ok(message) => {
                    messages.push(message);
                    results.push(None);
                }
                Err(error) => results.push(Some(Err(error))),
            }
        }
        if messages.is_empty() {
            return results.into_iter().flatten().collect();
        }
        let mut published = self.0.publishing.publish(messages).await.into_iter();
        let missing = || Err(PublishError::Unavailable("the bus gave no result".to_owned()));
        results
            .into_iter()
            .map(|early| early.or_else(|| published.next()).unwrap_or_else(missing))
            .collect()
    }

    /// A quarter of a group: several calls share a group, and groups use the channels round robin.
    fn batch_size(&self) -> usize {
        (self.0.settings.publish_group / 4).max(1)
    }

    fn messaging_system(&self) -> MessagingSystem {
        self.0.messaging_system.clone()
    }
}

#[async_trait]
impl Subscriber for RabbitBus {
    async fn subscribe(&self, subscription: Subscription) -> Result<Deliveries, SubscribeError> {
        subscription.check()?;
        let inner = &self.0;
        let settings = inner.settings.clone();
        let shards = (subscription.shards, subscription.prefetch);
        let queue = subscription.queue.clone();
        let patterns = subscription.bindings.iter().map(|binding| binding.pattern.as_str());
        if let Some(pattern) = patterns.into_iter().find(|p| slots::is_mistaken_for_a_type(p)) {
            let why = format!("the pattern {pattern} would take an ordering slot for a type");
            return Err(SubscribeError::Invalid(why));
        }
        let topology = Topology::new(&settings, subscription);
        if topology.longest_name() > MAX_NAME_BYTES {
            return Err(SubscribeError::Invalid("a name is longer than AMQP's 255 bytes".into()));
        }
        let buffer = Arc::new(PrefetchBuffer::new(
            queue,
            settings.prefix.clone(),
            shards.1,
            shards.0,
            inner.publishing.clone(),
            inner.metrics.clone(),
        ));
        let stop = inner.stop.child_token();
        let subscribed = Arc::new(Subscribed::new(
            settings,
            inner.consuming.clone(),
            topology,
            buffer.clone(),
            stop.clone(),
            shards,
        ));
        let limit = inner.settings.subscribe_timeout;
        let ready = async {
            let connection = inner.consuming.clone().get().await?;
            subscribed.declare(&connection).await
        };
        match timeout(limit, ready).await.unwrap_or(Err(BrokerError::Slow)) {
            Ok(()) => {}
            Err(error) if error.is_contradiction() => {
                let why = "the queue exists with other properties; its number of shards and its bounds cannot change";
                return Err(SubscribeError::Invalid(format!("{why}: {error}")));
            }
            Err(error) => return Err(SubscribeError::Unavailable(error.into())),
        }
        let done = CancellationToken::new();
        let messaging_system = inner.messaging_system.clone();
        let source = Source { buffer: buffer.clone(), messaging_system, done: done.clone(), stop };
        // The connections are needed until the last delivery is settled.
        let bus = self.clone();
        self.buffers().push(Arc::downgrade(&buffer));
        let mut tasks = self.tasks();
        while tasks.subscriptions.try_join_next().is_some() {}
        tasks.subscriptions.spawn(async move {
            let _done = done.drop_guard();
            peers::consume(subscribed).await;
            drop(bus);
        });
        Ok(Deliveries::new(source))
    }

    /// The messages at the broker belong to all subscribers together.
    async fn backlog(&self) -> anyhow::Result<u64> {
        let inner = &self.0;
        let buffers: Vec<_> = self.buffers().iter().filter_map(Weak::upgrade).collect();
        let connection =
            inner.consuming.clone().get_within(inner.settings.subscribe_timeout).await?;
        let mut waiting = 0;
        // The broker first, then this process: a message that moves in between is counted twice and not missed.
        for buffer in &buffers {
            let shards = (0..buffer.shards()).map(async |shard| {
                let queue = topology::shard_queue(&inner.settings.prefix, &buffer.queue, shard);
                connection.depth(&queue).await
            });
            let depths = try_join_all(shards).await?;
            waiting += depths.into_iter().flatten().map(u64::from).sum::<u64>();
        }
        for buffer in buffers {
            let here = buffer.state();
            waiting += here.held + here.unsettled;
        }
        Ok(waiting)
    }
}

struct Source {
    buffer: Arc<PrefetchBuffer>,
    messaging_system: MessagingSystem,
    stop: CancellationToken,
    /// The shards are released.
    done: CancellationToken,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[async_trait]
impl DeliverySource for Source {
    async fn next(&mut self) -> Option<Delivery> {
        self.buffer.next().await
    }

    async fn close(&mut self) {
        self.stop.cancel();
        self.done.cancelled().await;
    }

    fn messaging_system(&self) -> MessagingSystem {
        self.messaging_system.clone()
    }
}
