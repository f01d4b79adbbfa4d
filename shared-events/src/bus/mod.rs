//! The bus port: what a service may expect of the transport of its events.
//!
//! # The delivery contract
//! * **At least once.** A confirmed event reaches every queue whose bindings match it, and the bus keeps it until a
//!   consumer settles it. A delivery that is dropped unsettled is delivered again.
//! * **In order per key.** While a delivery of an ordering key is unsettled or waiting for its retry, the queue
//!   delivers no other event of that key to any subscriber. Other keys continue.
//! * **Bind every type of a domain.** For each exchange some subscription must take every type, known or not: for
//!   example `user.#` on the exchange of members. In memory all bindings are known, so an event that no binding matches
//!   is confirmed. A broker cannot tell a type without consumers from a consumer that has not subscribed yet. The event
//!   is [`PublishError::Unroutable`] there, and its outbox keeps it, with all later events of its key, until a queue
//!   takes it. Nothing is lost, but the key waits.
//! * **Declare before publishing.** A queue receives only events that are published after its declaration.
//! * **Bounded.** A subscriber never holds more than its prefetch. A full queue makes publishers wait.

mod attempts;
pub mod in_process;
mod lanes;
pub mod rabbitmq;
mod reply_queue;
mod topic;

#[cfg(any(test, feature = "testing"))]
pub mod contract;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::events::Outgoing;

pub(crate) use lanes::{LaneKey, Lanes};
pub(crate) use reply_queue::ReplySender;
pub use reply_queue::{CORRELATION_ID, REPLY_EXCHANGE, REPLY_TO, Reply, ReplyQueue, ReplyQueues};
pub use topic::TopicPattern;

/// The exchange of commands and requests. Each goes to the one queue that its routing key names.
pub const COMMAND_EXCHANGE: &str = "command.ex";

/// Why an event was not confirmed. The bus may have carried it all the same: publishing it again is always right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue takes the event yet. On a broker no queue is bound for its type; in memory no queue is declared at all.
    /// Or the queue that a command names does not exist.
    #[error("there is no queue for it")]
    Unroutable,
    /// The bus returned this event and may accept it later (a queue may have been full).
    #[error("the bus refused the event: {0}")]
    Rejected(String),
    /// The bus can never carry this event: it is too large, or a name in it is too long.
    #[error("the bus cannot carry the event: {0}")]
    Invalid(String),
    /// The bus cannot be reached or is shutting down.
    #[error("the bus is unavailable: {0}")]
    Unavailable(String),
}

/// The messaging system, as traces name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessagingSystem {
    /// The kind of system.
    pub system: &'static str,
    /// The peer in the graph of services: the broker.
    pub peer: &'static str,
    /// The broker's host and port, if it has one.
    pub server: Option<(Arc<str>, u16)>,
}

impl MessagingSystem {
    /// The bus in memory.
    pub const IN_PROCESS: Self = Self { system: "tourin", peer: "tourin", server: None };

    /// The RabbitMQ at this host and port.
    pub fn rabbitmq(host: &str, port: u16) -> Self {
        Self { system: "rabbitmq", peer: "rabbitmq", server: Some((host.into(), port)) }
    }
}

/// The publishing side of the bus.
#[async_trait]
pub trait Publisher: Send + Sync {
    /// Publishes events in order and waits until each is confirmed or failed.
    ///
    /// Returns one result per event, in the order given. `Ok` means that the bus will not lose the event, or (never on
    /// a broker) that all bindings are known and none matches it. When the future is dropped, the outcome of the events
    /// is unknown: publish them again.
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Result<(), PublishError>>;

    /// The best number of events for one call. It is above 1 only where all events of a call are confirmed at nearly
    /// the same time: the results come together, so one slow event delays the others.
    fn batch_size(&self) -> usize {
        1
    }

    /// Its messaging system, for traces.
    fn messaging_system(&self) -> MessagingSystem {
        MessagingSystem::IN_PROCESS
    }
}

/// What one queue takes from one exchange.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Binding {
    /// The domain's exchange.
    pub exchange: String,
    /// A topic pattern over routing keys: words separated by dots, `*` for one word, `#` for any number of them.
    pub pattern: String,
}

impl Binding {
    /// Binds `exchange` by `pattern`.
    pub fn new(exchange: impl Into<String>, pattern: impl Into<String>) -> Self {
        Self { exchange: exchange.into(), pattern: pattern.into() }
    }
}

/// A consumer's subscription: its queue, the queue's bindings and its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The queue's name. Subscribers of the same name share its events. Queues of different names each get all of them.
    pub queue: String,
    /// The queue's bindings.
    pub bindings: Vec<Binding>,
    /// The most unsettled deliveries of this subscriber; at least 1.
    pub prefetch: usize,
    /// The number of shards into which the queue is split by ordering key; at least 1, at most [`MAX_SHARDS`]. Each
    /// shard has one active subscriber at a time, so subscribers beyond the number of shards stand by.
    pub shards: usize,
}

/// The most shards a queue may have.
pub const MAX_SHARDS: usize = 256;

impl Subscription {
    /// A subscription with a prefetch of 256 and 8 shards.
    pub fn new(queue: impl Into<String>, bindings: Vec<Binding>) -> Self {
        Self { queue: queue.into(), bindings, prefetch: 256, shards: 8 }
    }

    fn check(&self) -> Result<Vec<(String, TopicPattern)>, SubscribeError> {
        let wrong = |what: &str| Err(SubscribeError::Invalid(what.to_owned()));
        if self.queue.is_empty() {
            return wrong("the queue needs a name");
        }
        if self.prefetch == 0 {
            return wrong("prefetch must be at least 1");
        }
        if !(1..=MAX_SHARDS).contains(&self.shards) {
            return wrong("shards must be 1 to 256");
        }
        if self.bindings.is_empty() {
            return wrong("at least one binding is needed");
        }
        Ok(self
            .bindings
            .iter()
            .map(|b| (b.exchange.clone(), TopicPattern::new(&b.pattern)))
            .collect())
    }
}

/// Why a subscription failed.
#[derive(Debug, thiserror::Error)]
pub enum SubscribeError {
    /// The subscription is invalid. A retry does not help.
    #[error("invalid subscription: {0}")]
    Invalid(String),
    /// The bus cannot be reached or is shutting down.
    #[error("the bus is unavailable: {0}")]
    Unavailable(#[source] anyhow::Error),
}

/// The consuming side of the bus.
#[async_trait]
pub trait Subscriber: Send + Sync {
    /// Declares the queue with its bindings if necessary, and starts to receive from it.
    ///
    /// # Errors
    /// [`SubscribeError::Invalid`] for an invalid subscription, [`SubscribeError::Unavailable`] when the bus is out of
    /// reach.
    async fn subscribe(&self, subscription: Subscription) -> Result<Deliveries, SubscribeError>;

    /// The events that the queues of this subscriber still have to settle: waiting events, retries included, and
    /// unsettled deliveries of this process. Unsettled deliveries of another subscriber are in its own backlog.
    ///
    /// # Errors
    /// When the bus is unreachable.
    async fn backlog(&self) -> anyhow::Result<u64>;
}

/// The deliveries of one subscriber. Dropping it ends the subscription, and other subscribers get its unsettled events.
pub struct Deliveries(Box<dyn DeliverySource>);

impl Deliveries {
    /// Wraps an adapter's source.
    pub fn new(source: impl DeliverySource + 'static) -> Self {
        Self(Box::new(source))
    }

    /// Waits for the next delivery. `None` once the bus has ended.
    ///
    /// Safe to drop and call again (in `select!`): no delivery is lost.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.0.next().await
    }

    /// The messaging system, for traces.
    pub fn messaging_system(&self) -> MessagingSystem {
        self.0.messaging_system()
    }

    /// Ends the subscription and saves progress that is kept lazily. Settle or drop all deliveries before the call.
    pub async fn close(mut self) {
        self.0.close().await;
    }
}

impl std::fmt::Debug for Deliveries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deliveries")
    }
}

/// The adapter's side of [`Deliveries`].
#[async_trait]
pub trait DeliverySource: Send {
    /// See [`Deliveries::next`]. Must be safe to drop at any await.
    async fn next(&mut self) -> Option<Delivery>;

    /// See [`Deliveries::close`].
    async fn close(&mut self) {}

    /// See [`Deliveries::messaging_system`].
    fn messaging_system(&self) -> MessagingSystem {
        MessagingSystem::IN_PROCESS
    }
}

/// One event, delivered to a subscriber that must settle it.
#[derive(Debug)]
pub struct Delivery {
    /// The envelope as received, not validated.
    pub body: Bytes,
    /// The exchange of its publication.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// Its ordering key, if the publisher set one.
    pub ordering_key: Option<String>,
    /// The transport's metadata.
    pub headers: BTreeMap<String, String>,
    /// From 1. Grows with every redelivery that this bus knows of, except redeliveries after a wait.
    pub attempt: u32,
    /// How often it was delivered and had to wait ([`Settlement::Wait`]), which is not an attempt. Counted in memory:
    /// starts at 0 again in another process or connection.
    pub waits: u32,
    /// Notifies the bus of the outcome.
    pub settler: Settler,
}

impl Delivery {
    /// Notifies the bus of the outcome.
    ///
    /// # Errors
    /// [`SettleError`] when the bus could not record the outcome. It then delivers the event again.
    pub async fn settle(self, settlement: Settlement) -> Result<(), SettleError> {
        self.settler.0.settle(settlement).await
    }
}

/// The outcome of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The effect is committed, or the event has no effect.
    Ack,
    /// Deliver it again after a delay. Its key waits, other keys do not.
    Retry {
        /// The shortest delay.
        after: Duration,
    },
    /// Deliver it again after a delay, without counting an attempt: a dependency of its effect is down.
    Wait {
        /// The shortest delay.
        after: Duration,
    },
    /// Move it to the dead letters.
    DeadLetter {
        /// For the operator. Must not contain personal data.
        reason: String,
    },
}

/// The bus could not record a settlement.
#[derive(Debug, thiserror::Error)]
#[error("the settlement was not recorded: {0}")]
pub struct SettleError(#[source] pub anyhow::Error);

/// An adapter's handle on one delivery.
pub struct Settler(Box<dyn Settle>);

impl Settler {
    /// Wraps an adapter's handle.
    pub fn new(settle: impl Settle + 'static) -> Self {
        Self(Box::new(settle))
    }
}

impl std::fmt::Debug for Settler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Settler")
    }
}

/// The adapter's side of a settlement. A handle that is dropped before [`Settle::settle`] has finished means an
/// abandoned delivery, which must be delivered again.
#[async_trait]
pub trait Settle: Send + Sync {
    /// See [`Delivery::settle`].
    async fn settle(self: Box<Self>, settlement: Settlement) -> Result<(), SettleError>;
}
