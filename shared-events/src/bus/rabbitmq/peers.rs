//! Replicas of a subscriber discover each other, so that they share the shards of its queue.
//!
//! Every replica announces its name in a fanout exchange and hears the others. From the names each computes which
//! replica should have which shard, and releases the shards of others. This is only about fairness: the broker decides
//! which replica consumes a shard, so a temporary disagreement does no harm.

use std::sync::Arc;

use futures::StreamExt as _;
use lapin::Consumer;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use tokio::time::{Instant, interval, sleep};

use super::connection::{BrokerError, Connection};
use super::shard::Subscribed;

/// Consumes the shards of a subscription until it is stopped, and announces this replica to the others meanwhile.
pub(super) async fn consume(subscribed: Arc<Subscribed>) {
    let peers = Peers(subscribed.clone());
    tokio::select! {
        () = subscribed.consume() => {}
        () = peers.run(), if subscribed.has_shards_to_share() => {}
    }
    subscribed.buffer.end_all();
}

/// Announces this replica and listens for the others.
struct Peers(Arc<Subscribed>);

impl Peers {
    /// Never ends; drop it.
    async fn run(&self) {
        let mut connections = self.0.connections.clone();
        let mut failures = 0;
        loop {
            let Ok(connection) = connections.get().await else {
                return std::future::pending().await;
            };
            let called = Instant::now();
            let error = match self.call(&connection).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            if called.elapsed() > self.0.settings.reconnect.max {
                failures = 0;
            }
            failures += 1;
            let queue = &self.0.buffer.queue;
            tracing::debug!(queue, failures, %error, "cannot reach the other replicas");
            sleep(self.0.settings.reconnect.after(failures)).await;
        }
    }

    async fn call(&self, connection: &Connection) -> Result<std::convert::Infallible, BrokerError> {
        self.0.declare(connection).await?;
        let channel = connection.channel().await?;
        let mut calls = self.listen(connection, &channel).await?;
        let mut time = interval(self.0.settings.peer_interval);
        let me = self.0.membership.me.to_string();
        loop {
            tokio::select! {
                // Announces the stop, so that the others take over at once.
                () = self.0.stop.cancelled() => {
                    self.announce(connection, &channel, &format!("-{me}")).await?;
                    return std::future::pending().await;
                }
                call = calls.next() => match call {
                    Some(call) => self.0.membership.receive(&call?.data),
                    None => return Err(BrokerError::Cancelled),
                },
                _ = time.tick() => self.announce(connection, &channel, &me).await?,
            }
        }
    }

    async fn listen(
        &self,
        connection: &Connection,
        channel: &Channel,
    ) -> Result<Consumer, BrokerError> {
        let none = FieldTable::default;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = connection.ask(channel.queue_declare("".into(), options, none())).await?;
        let exchange = self.0.topology.peers();
        let options = QueueBindOptions::default();
        let name = queue.name().clone();
        connection
            .ask(channel.queue_bind(name.clone(), exchange.into(), "".into(), options, none()))
            .await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        connection.ask(channel.basic_consume(name, "".into(), options, none())).await
    }

    async fn announce(
        &self,
        connection: &Connection,
        channel: &Channel,
        what: &str,
    ) -> Result<(), BrokerError> {
        let exchange = self.0.topology.peers().into();
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default();
        let saying =
            channel.basic_publish(exchange, "".into(), options, what.as_bytes(), properties);
        connection.ask(saying).await.map(drop)
    }
}
