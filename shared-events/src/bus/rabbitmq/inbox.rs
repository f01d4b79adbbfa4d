//! Inboxes: queues for answers, which live a little longer than whoever reads them.

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

use super::link::{Link, LinkError, Links};
use super::topology::declare_domain;
use super::wire::{self, text};
use super::{RabbitBus, RabbitSettings};
use crate::bus::SubscribeError;
use crate::bus::styles::{Inbox, Inboxes, Letterbox, REPLY_EXCHANGE};

/// How long an inbox outlives the connection of its reader, in milliseconds: for reconnecting.
const EXPIRES_MS: i32 = 60_000;

struct Reader {
    settings: Arc<RabbitSettings>,
    links: Links,
    address: String,
    capacity: usize,
    letterbox: Letterbox,
}

#[async_trait]
impl Inboxes for RabbitBus {
    /// A classic queue, which expires a minute after its reader has gone.
    async fn open_inbox(&self, capacity: usize) -> Result<Inbox, SubscribeError> {
        let (sender, answers) = mpsc::channel(capacity.max(1));
        let (opened, ready) = oneshot::channel();
        let address = format!("inbox.{}", Uuid::now_v7().simple());
        let reader = Reader {
            settings: self.0.settings.clone(),
            links: self.0.consuming.clone(),
            address: address.clone(),
            capacity: capacity.max(1),
            letterbox: Letterbox(sender),
        };
        let receiving = AbortOnDropHandle::new(tokio::spawn(reader.run(opened)));
        match timeout(self.0.settings.subscribe_timeout, ready).await {
            Ok(Ok(())) => Ok(Inbox::new(address, answers, receiving)),
            Ok(Err(_)) | Err(_) => Err(SubscribeError::Unavailable(LinkError::Down.into())),
        }
    }
}

impl Reader {
    /// Ends with the bus or the inbox.
    async fn run(self, opened: oneshot::Sender<()>) {
        let (mut links, mut opened, mut failures) = (self.links.clone(), Some(opened), 0);
        while let Ok(link) = links.get().await {
            let Err(error) = self.read(&link, &mut opened).await;
            if self.letterbox.0.is_closed() {
                return;
            }
            failures += 1;
            tracing::debug!(inbox = self.address, failures, %error, "inbox lost, opening it again");
            sleep(self.settings.reconnect.after(failures.min(8))).await;
        }
    }

    async fn read(
        &self,
        link: &Link,
        opened: &mut Option<oneshot::Sender<()>>,
    ) -> Result<Infallible, LinkError> {
        let channel = link.channel().await?;
        let exchange = format!("{}{REPLY_EXCHANGE}", self.settings.prefix);
        declare_domain(link, &channel, &exchange).await?;
        let queue = format!("{}{}", self.settings.prefix, self.address);
        let mut arguments = FieldTable::default();
        arguments.insert("x-expires".into(), AMQPValue::LongInt(EXPIRES_MS));
        let capacity = i64::try_from(self.capacity).unwrap_or(i64::MAX);
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(capacity));
        arguments.insert("x-overflow".into(), text("reject-publish"));
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        link.ask(channel.queue_declare(queue.as_str().into(), options, arguments)).await?;
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        let address = self.address.as_str().into();
        let binding =
            channel.queue_bind(queue.as_str().into(), exchange.into(), address, options, none);
        link.ask(binding).await?;
        let prefetch = u16::try_from(self.capacity).unwrap_or(u16::MAX);
        link.ask(channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let consuming = channel.basic_consume(queue.into(), "".into(), options, none);
        let mut consumer = link.ask(consuming).await?;
        if let Some(opened) = opened.take() {
            // Whoever opens it may have given up; then the inbox is closed, and this ends with the first answer.
            let _ = opened.send(());
        }
        loop {
            let delivery = tokio::select! {
                delivery = consumer.next() => delivery.ok_or(LinkError::Cancelled)??,
                () = link.ended() => return Err(LinkError::Down),
            };
            if !self.letterbox.put(&delivery.data, wire::headers(&delivery.properties)).await {
                return Err(LinkError::Cancelled);
            }
            link.ask(delivery.acker.ack(BasicAckOptions::default())).await?;
        }
    }
}
