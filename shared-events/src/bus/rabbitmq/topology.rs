//! The broker's exchanges and queues: their names, and the order of their declaration.

use futures::future::try_join_all;
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::RabbitSettings;
use super::connection::{BrokerError, Connection};
use super::slots::{self, SLOTS};
use super::wire::text;
use crate::bus::Subscription;

/// One subscription's exchanges and queues.
#[derive(Clone, Debug)]
pub(super) struct Topology {
    prefix: String,
    subscription: Subscription,
    delivery_limit: u32,
    shard_max_bytes: u64,
    dead_max_bytes: u64,
    dead_max_letters: u32,
}

/// The queue of a queue's dead letters.
pub(super) fn dead_queue(prefix: &str, queue: &str) -> String {
    format!("{prefix}{queue}.dead")
}

/// The exchange that distributes a queue's slots over its shards.
pub(super) fn slots_exchange(prefix: &str, queue: &str) -> String {
    format!("{prefix}{queue}.slots")
}

fn durable_exchange() -> ExchangeDeclareOptions {
    ExchangeDeclareOptions { durable: true, ..Default::default() }
}

fn durable_queue() -> QueueDeclareOptions {
    QueueDeclareOptions { durable: true, ..Default::default() }
}

/// The topic exchange of a domain, as its publisher declares it.
pub(super) async fn declare_domain(
    connection: &Connection,
    channel: &Channel,
    exchange: &str,
) -> Result<(), BrokerError> {
    let none = FieldTable::default();
    let declaring =
        channel.exchange_declare(exchange.into(), ExchangeKind::Topic, durable_exchange(), none);
    connection.ask(declaring).await
}

/// The topic exchange of a domain, as a consumer needs it: declared only if it is missing. So a consumer's user may do
/// without the permission to configure exchanges of others where these exist.
async fn require_domain(connection: &Connection, exchange: &str) -> Result<(), BrokerError> {
    let channel = connection.channel().await?;
    let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
    let none = FieldTable::default();
    let looking = channel.exchange_declare(exchange.into(), ExchangeKind::Topic, options, none);
    match connection.ask(looking).await {
        Ok(()) => connection.ask(channel.close(200, "OK".into())).await,
        // The broker has closed the channel.
        Err(error) if error.is_missing() => {
            let channel = connection.channel().await?;
            declare_domain(connection, &channel, exchange).await?;
            connection.ask(channel.close(200, "OK".into())).await
        }
        Err(error) => Err(error),
    }
}

/// The queue of one shard.
pub(super) fn shard_queue(prefix: &str, queue: &str, shard: usize) -> String {
    format!("{prefix}{queue}.shard.{shard}")
}

impl Topology {
    pub(super) fn new(settings: &RabbitSettings, subscription: Subscription) -> Self {
        Self {
            prefix: settings.prefix.clone(),
            subscription,
            delivery_limit: settings.delivery_limit,
            shard_max_bytes: settings.shard_max_bytes,
            dead_max_bytes: settings.dead_max_bytes,
            dead_max_letters: settings.dead_max_letters,
        }
    }

    /// The length of the longest name; AMQP allows 255 bytes.
    pub(super) fn longest_name(&self) -> usize {
        let exchanges = self.subscription.bindings.iter().map(|b| b.exchange.len());
        let exchange = self.prefix.len() + exchanges.max().unwrap_or_default();
        let pattern = self.subscription.bindings.iter().map(|b| b.pattern.len()).max();
        exchange.max(self.shard(self.subscription.shards).len()).max(pattern.unwrap_or_default())
    }

    pub(super) fn shard(&self, shard: usize) -> String {
        shard_queue(&self.prefix, &self.subscription.queue, shard)
    }

    /// The fanout exchange by which replicas of one subscriber discover each other.
    pub(super) fn peers(&self) -> String {
        format!("{}{}.peers", self.prefix, self.subscription.queue)
    }

    /// The fanout exchange for messages without a slot.
    fn rest(&self) -> String {
        format!("{}{}.rest", self.prefix, self.subscription.queue)
    }

    /// Declares what is missing.
    ///
    /// Dead letters come first and the bindings to the domains last: no event arrives before all slots have their
    /// shards.
    pub(super) async fn declare(&self, connection: &Connection) -> Result<(), BrokerError> {
        let channel = connection.channel().await?;
        let none = FieldTable::default;
        let dead = dead_queue(&self.prefix, &self.subscription.queue);
        let slots = slots_exchange(&self.prefix, &self.subscription.queue);
        let fanout = |name: String| {
            channel.exchange_declare(name.into(), ExchangeKind::Fanout, durable_exchange(), none())
        };
        connection.ask(fanout(dead.clone())).await?;
        connection.ask(fanout(self.peers())).await?;
        connection.ask(fanout(self.rest())).await?;
        let declaring =
            channel.queue_declare(dead.as_str().into(), durable_queue(), self.dead_arguments());
        connection.ask(declaring).await?;
        self.bind(connection, &channel, &dead, &dead, "").await?;

        let mut otherwise = FieldTable::default();
        otherwise.insert("alternate-exchange".into(), text(&self.rest()));
        let kind = ExchangeKind::Direct;
        let declaring =
            channel.exchange_declare(slots.as_str().into(), kind, durable_exchange(), otherwise);
        connection.ask(declaring).await?;
        for shard in 0..self.subscription.shards {
            let arguments = self.shard_arguments(shard, &dead);
            let queue = self.shard(shard);
            let declaring = channel.queue_declare(queue.into(), durable_queue(), arguments);
            connection.ask(declaring).await?;
        }
        self.bind(connection, &channel, &self.shard(0), &self.rest(), "").await?;
        self.bind_slots(connection, &channel, &slots).await?;
        for binding in &self.subscription.bindings {
            let domain = format!("{}{}", self.prefix, binding.exchange);
            require_domain(connection, &domain).await?;
            let binding = channel.exchange_bind(
                slots.as_str().into(),
                domain.into(),
                binding.pattern.as_str().into(),
                ExchangeBindOptions::default(),
                none(),
            );
            connection.ask(binding).await?;
        }
        connection.ask(channel.close(200, "OK".into())).await
    }

    /// One binding for each slot, sent without waiting for responses. The response to the channel's next request comes
    /// after them, and is a failure when one of them failed.
    async fn bind_slots(
        &self,
        connection: &Connection,
        channel: &Channel,
        exchange: &str,
    ) -> Result<(), BrokerError> {
        let shards = self.subscription.shards;
        let binds = (0..SLOTS).map(|slot| {
            channel.queue_bind(
                self.shard(slot % shards).into(),
                exchange.into(),
                slots::routing_key(slot).into(),
                QueueBindOptions { nowait: true },
                FieldTable::default(),
            )
        });
        connection.ask(try_join_all(binds)).await.map(drop)
    }

    async fn bind(
        &self,
        connection: &Connection,
        channel: &Channel,
        queue: &str,
        exchange: &str,
        routing_key: &str,
    ) -> Result<(), BrokerError> {
        let options = QueueBindOptions::default();
        let none = FieldTable::default();
        let binding =
            channel.queue_bind(queue.into(), exchange.into(), routing_key.into(), options, none);
        connection.ask(binding).await
    }

    fn shard_arguments(&self, shard: usize, dead: &str) -> FieldTable {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("quorum"));
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        // With a limit, a requeued message stays at the head of the queue. Without one it goes to the tail and loses
        // its order.
        arguments.insert("x-delivery-limit".into(), number(self.delivery_limit.into()));
        arguments.insert("x-dead-letter-exchange".into(), text(dead));
        // Names the source of a dead letter. It also makes a subscription with another number of shards fail, since a
        // queue's arguments cannot change: another number would break the order of keys.
        let place = format!("shard {shard} of {}", self.subscription.shards);
        arguments.insert("x-dead-letter-routing-key".into(), text(&place));
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        // A full shard refuses, and the event stays in the publisher's outbox.
        arguments.insert("x-overflow".into(), text("reject-publish"));
        arguments.insert("x-max-length-bytes".into(), number(self.shard_max_bytes));
        arguments
    }

    fn dead_arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("quorum"));
        // A look takes dead letters and returns them. By default RabbitMQ 4 would drop them after twenty returns.
        arguments.insert("x-delivery-limit".into(), number(1_000_000_000));
        // A dead letter that does not fit stays, unacknowledged, in its shard.
        arguments.insert("x-overflow".into(), text("reject-publish"));
        arguments.insert("x-max-length-bytes".into(), number(self.dead_max_bytes));
        arguments.insert("x-max-length".into(), number(self.dead_max_letters.into()));
        arguments
    }
}

fn number(value: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(value).unwrap_or(i64::MAX))
}
