//! The bus port: what a service may expect of whatever carries its events.
//!
//! # The delivery contract
//! * **At least once.** A confirmed event reaches every queue whose bindings match it, and stays the bus's concern
//!   until a consumer settles it. A delivery that is dropped unsettled comes again.
//! * **In order per key.** While a delivery of an ordering key is unsettled or waiting for its retry, no other
//!   delivery of that key is handed out on that queue, to any subscriber. Other keys go on meanwhile.
//! * **Bind every type of a domain.** For each exchange some subscription must take every type, known or not: `user.#`
//!   on the exchange of members, say. What becomes of an event that no binding matches depends on the bus. In memory
//!   all bindings are known, so nobody misses it and it is confirmed. A broker cannot tell a type that nobody wants
//!   from a subscriber that has not come yet: the event is [`PublishError::Unroutable`], and its outbox keeps it, and
//!   what comes after it of its key, until some queue takes it. Nothing is lost, and the key waits for as long as it
//!   takes.
//! * **Declare before publishing.** A queue gets what is published once it is declared.
//! * **Bounded.** A subscriber never holds more than its prefetch; a full queue makes publishers wait.

pub mod in_process;
mod lanes;
pub mod rabbitmq;
mod reply_queue;
mod topic;
mod tries;

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
pub use reply_queue::{Answer, CORRELATION_ID, REPLY_EXCHANGE, REPLY_TO, ReplyQueue, ReplyQueues};
pub use topic::TopicPattern;

/// The exchange of commands and requests: each goes to the one queue that its routing key names.
pub const COMMAND_EXCHANGE: &str = "command.ex";

/// Why an event was not confirmed. It may or may not have been carried: publishing it again is always right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Nobody is known who wants the event, and somebody may come: on a broker, no queue is bound for its type; in
    /// memory, no queue at all is declared yet. Or the one queue that a command names is not there.
    #[error("no queue is there for it")]
    Unroutable,
    /// The bus took this event and gave it back; it may take it later (a queue may have been full).
    #[error("the bus refused the event: {0}")]
    Rejected(String),
    /// The bus can never take this event as it is: it is too large, or a name in it too long.
    #[error("the bus cannot carry the event: {0}")]
    Invalid(String),
    /// The bus cannot be reached or is shutting down.
    #[error("the bus is unavailable: {0}")]
    Unavailable(String),
}

/// What carries events, as traces name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// The kind of system.
    pub system: &'static str,
    /// Who events are given to, or come from: the broker, as it stands in the graph of services.
    pub peer: &'static str,
    /// The broker's host and port, where it has one.
    pub server: Option<(Arc<str>, u16)>,
}

impl Carrier {
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
    /// Returns one result per event, in the order given. `Ok` means that the bus will not lose it, or (never on a
    /// broker) that all bindings are known and none is for it. When the future is dropped, what becomes of the events
    /// is unknown; publish them again.
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Result<(), PublishError>>;

    /// How many events are best handed over in one call. Above 1 only where all of a call are confirmed within moments of
    /// each other, for the results come together: one that takes long would keep the others' from the caller.
    fn batch_size(&self) -> usize {
        1
    }

    /// How traces name it.
    fn carrier(&self) -> Carrier {
        Carrier::IN_PROCESS
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

/// A consumer's wish: a queue of its own, what goes into it, and how much of it at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The queue's name. Subscribers of one name share its events; queues of different names each get all of them.
    pub queue: String,
    /// What the queue is bound to.
    pub bindings: Vec<Binding>,
    /// The most deliveries this subscriber holds unsettled; at least 1.
    pub prefetch: usize,
    /// Into how many shards the queue is split by ordering key; at least 1, at most [`MAX_SHARDS`]. Each shard has one
    /// active subscriber at a time, so more subscribers than shards leave some standing by.
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
    /// The subscription itself is wrong; trying again will not help.
    #[error("invalid subscription: {0}")]
    Invalid(String),
    /// The bus cannot be reached or is shutting down.
    #[error("the bus is unavailable: {0}")]
    Unavailable(#[source] anyhow::Error),
}

/// The consuming side of the bus.
#[async_trait]
pub trait Subscriber: Send + Sync {
    /// Declares the queue with its bindings if need be, and starts to receive from it.
    ///
    /// # Errors
    /// [`SubscribeError::Invalid`] for a subscription that can never work, [`SubscribeError::Unavailable`] when the
    /// bus is out of reach.
    async fn subscribe(&self, subscription: Subscription) -> Result<Deliveries, SubscribeError>;

    /// How many events are still to come for the queues of this subscriber: those that wait, retries included, and
    /// those that are handed out here and not settled. What another subscriber of the same queue has taken is in its
    /// own backlog.
    ///
    /// # Errors
    /// When the bus is out of reach.
    async fn backlog(&self) -> anyhow::Result<u64>;
}

/// The deliveries of one subscriber. Dropping it ends the subscription; what other subscribers may have, they get.
pub struct Deliveries(Box<dyn DeliverySource>);

impl Deliveries {
    /// Wraps an adapter's source.
    pub fn new(source: impl DeliverySource + 'static) -> Self {
        Self(Box::new(source))
    }

    /// The next delivery; waits for one. `None` once the bus has ended for good.
    ///
    /// Safe to drop and call again (in `select!`): nothing is lost by it.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.0.next().await
    }

    /// How traces name what they come over.
    pub fn carrier(&self) -> Carrier {
        self.0.carrier()
    }

    /// Ends the subscription in good order: progress that is kept lazily is saved first. Settle or drop all deliveries
    /// before.
    pub async fn close(mut self) {
        self.0.close().await;
    }
}

impl std::fmt::Debug for Deliveries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deliveries")
    }
}

/// What an adapter implements to give [`Deliveries`].
#[async_trait]
pub trait DeliverySource: Send {
    /// See [`Deliveries::next`]; must be safe to drop at any await.
    async fn next(&mut self) -> Option<Delivery>;

    /// See [`Deliveries::close`].
    async fn close(&mut self) {}

    /// See [`Deliveries::carrier`].
    fn carrier(&self) -> Carrier {
        Carrier::IN_PROCESS
    }
}

/// One event, handed to a subscriber for settling.
#[derive(Debug)]
pub struct Delivery {
    /// The envelope as it came over the wire, not yet checked in any way.
    pub body: Bytes,
    /// The exchange it was published to.
    pub exchange: String,
    /// The topic it was published under.
    pub routing_key: String,
    /// The key by which it is ordered, where the publisher gave one.
    pub ordering_key: Option<String>,
    /// The transport's metadata.
    pub headers: BTreeMap<String, String>,
    /// From 1; grows with every redelivery this bus knows of, save those after a wait.
    pub attempt: u32,
    /// How often it was handed out and had to wait ([`Settlement::Wait`]), which was no attempt. Counted in memory: from
    /// 0 again when another process or connection gets it.
    pub waits: u32,
    /// How the bus learns of the outcome.
    pub settler: Settler,
}

impl Delivery {
    /// Tells the bus what became of it.
    ///
    /// # Errors
    /// [`SettleError`] when the bus could not record the outcome. It will deliver the event again.
    pub async fn settle(self, settlement: Settlement) -> Result<(), SettleError> {
        self.settler.0.settle(settlement).await
    }
}

/// The outcome of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The effect is committed (or there is none to have).
    Ack,
    /// Deliver it again after a while; its key waits, others do not.
    Retry {
        /// How long to wait at least.
        after: Duration,
    },
    /// Deliver it again after a while as if this had been no attempt: what its effect goes to is away.
    Wait {
        /// How long to wait at least.
        after: Duration,
    },
    /// Give up and keep it with the dead letters.
    DeadLetter {
        /// For the person who will look at it. Must not contain personal data.
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

/// What an adapter implements to learn of outcomes. When it is dropped without [`Settle::settle`] having finished, the
/// delivery was abandoned and must come again.
#[async_trait]
pub trait Settle: Send + Sync {
    /// See [`Delivery::settle`].
    async fn settle(self: Box<Self>, settlement: Settlement) -> Result<(), SettleError>;
}
