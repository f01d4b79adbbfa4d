//! Reply queues, which outlive their reader's connection by a minute.

use std::convert::Infallible;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::connection::{BrokerError, Connection, Connections};
use super::topology::declare_domain;
use super::wire::{self, text};
use super::{RabbitBus, RabbitSettings};
use crate::bus::{REPLY_EXCHANGE, ReplyQueue, ReplyQueues, ReplySender, SubscribeError};

/// How long a reply queue outlives its reader's connection, in milliseconds: time to reconnect.
const EXPIRES_MS: i32 = 60_000;

struct Reader {
    settings: Arc<RabbitSettings>,
    connections: Connections,
    address: String,
    capacity: usize,
    replies: ReplySender,
}

#[async_trait]
impl ReplyQueues for RabbitBus {
    /// A classic queue, which expires a minute after its reader is gone.
    async fn open_reply_queue(&self, capacity: usize) -> Result<ReplyQueue, SubscribeError> {
        let (sender, replies) = mpsc::channel(capacity.max(1));
        let (opened, ready) = oneshot::channel();
        let address = format!("inbox.{}", Uuid::now_v7().simple());
        let reader = Reader {
            settings: self.0.settings.clone(),
            connections: self.0.consuming.clone(),
            address: address.clone(),
            capacity: capacity.max(1),
            replies: ReplySender(sender),
        };
        let receiving = AbortOnDropHandle::new(tokio::spawn(reader.run(opened)));
        match timeout(self.0.settings.subscribe_timeout, ready).await {
            Ok(Ok(())) => Ok(ReplyQueue::new(address, replies, receiving)),
            Ok(Err(_)) | Err(_) => Err(SubscribeError::Unavailable(BrokerError::Down.into())),
        }
    }
}

impl Reader {
    /// Ends with the bus or the reply queue.
    async fn run(self, opened: oneshot::Sender<()>) {
        let (mut connections, mut opened, mut failures) =
            (self.connections.clone(), Some(opened), 0);
        while let Ok(connection) = connections.get().await {
            let Err(error) = self.read(&connection, &mut opened).await;
            if self.replies.0.is_closed() {
                return;
            }
            failures += 1;
            tracing::debug!(queue = self.address, failures, %error, "reply queue lost, opening it again");
            sleep(self.settings.reconnect.after(failures.min(8))).await;
        }
    }

    async fn read(
        &self,
        connection: &Connection,
        opened: &mut Option<oneshot::Sender<()>>,
    ) -> Result<Infallible, BrokerError> {
        let channel = connection.channel().await?;
        let exchange = format!("{}{REPLY_EXCHANGE}", self.settings.prefix);
        declare_domain(connection, &channel, &exchange).await?;
        let queue = format!("{}{}", self.settings.prefix, self.address);
        let mut arguments = FieldTable::default();
        arguments.insert("x-expires".into(), AMQPValue::LongInt(EXPIRES_MS));
        let capacity = i64::try_from(self.capacity).unwrap_or(i64::MAX);
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(capacity));
        arguments.insert("x-overflow".into(), text("reject-publish"));
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        connection.ask(channel.queue_declare(queue.as_str().into(), options, arguments)).await?;
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        let address = self.address.as_str().into();
        let binding =
            channel.queue_bind(queue.as_str().into(), exchange.into(), address, options, none);
        connection.ask(binding).await?;
        let prefetch = u16::try_from(self.capacity).unwrap_or(u16::MAX);
        connection.ask(channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let consuming = channel.basic_consume(queue.into(), "".into(), options, none);
        let mut consumer = connection.ask(consuming).await?;
        if let Some(opened) = opened.take() {
            // The caller may be gone. Then the reply queue is closed, and this loop ends with the first reply.
            let _ = opened.send(());
        }
        loop {
            let delivery = tokio::select! {
                delivery = consumer.next() => delivery.ok_or(BrokerError::Cancelled)??,
                () = connection.ended() => return Err(BrokerError::Down),
            };
            if !self.replies.put(&delivery.data, wire::headers(&delivery.properties)).await {
                return Err(BrokerError::Cancelled);
            }
            connection.ask(delivery.acker.ack(BasicAckOptions::default())).await?;
        }
    }
}
