//! Who else subscribes to the queue, so that replicas share its shards.
//!
//! Every replica calls its name into a fanout exchange and hears the others. From the names each reckons which shard
//! should be whose, and gives up what should be another's. That is about fairness alone: who may consume a shard is
//! the broker's decision, so replicas that disagree for a while do no harm.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use lapin::Consumer;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use tokio::time::{Instant, interval, sleep};
use uuid::Uuid;

use super::link::{Link, LinkError};
use super::shard::Subscribed;

/// Calls that may be missed before a replica counts as gone.
const MISSED_CALLS: u32 = 4;
/// The most names that are kept; more replicas than the most shards have nothing to share.
const MAX_NAMES: usize = 1024;

/// The replicas that were heard of lately, this one included.
pub(super) struct Roll {
    me: Uuid,
    call_every: Duration,
    heard: Mutex<BTreeMap<Uuid, Instant>>,
}

impl Roll {
    pub(super) fn new(call_every: Duration) -> Self {
        Self { me: Uuid::now_v7(), call_every, heard: Mutex::default() }
    }

    /// Whether a shard should be another replica's.
    pub(super) fn is_for_another(&self, shard: usize) -> bool {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = self.call_every * MISSED_CALLS;
        heard.retain(|name, at| *name == self.me || at.elapsed() < limit);
        heard.entry(self.me).or_insert_with(Instant::now);
        heard.keys().nth(shard % heard.len()) != Some(&self.me)
    }

    fn hear(&self, call: &[u8]) {
        let Ok(text) = std::str::from_utf8(call) else { return };
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gone) = text.strip_prefix('-') {
            if let Ok(name) = gone.parse() {
                heard.remove(&name);
            }
        } else if let Ok(name) = text.parse()
            && (heard.len() < MAX_NAMES || heard.contains_key(&name))
        {
            heard.insert(name, Instant::now());
        }
    }
}

/// Calls and listens.
pub(super) struct Peers(Arc<Subscribed>);

impl Peers {
    pub(super) fn new(subscribed: Arc<Subscribed>) -> Self {
        Self(subscribed)
    }

    /// Never ends; drop it.
    pub(super) async fn run(&self) {
        let mut links = self.0.links.clone();
        let mut failures = 0;
        loop {
            let Ok(link) = links.get().await else {
                return std::future::pending().await;
            };
            let called = Instant::now();
            let error = match self.call(&link).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            if called.elapsed() > self.0.settings.reconnect.max {
                failures = 0;
            }
            failures += 1;
            let queue = &self.0.mailbox.queue;
            tracing::debug!(queue, failures, %error, "replicas not heard");
            sleep(self.0.settings.reconnect.after(failures)).await;
        }
    }

    async fn call(&self, link: &Link) -> Result<std::convert::Infallible, LinkError> {
        self.0.declare(link).await?;
        let channel = link.channel().await?;
        let mut calls = self.listen(link, &channel).await?;
        let mut time = interval(self.0.settings.peer_interval);
        let me = self.0.roll.me.to_string();
        loop {
            tokio::select! {
                // Stopping, it says so, for the others to take over at once.
                () = self.0.stop.cancelled() => {
                    self.say(link, &channel, &format!("-{me}")).await?;
                    return std::future::pending().await;
                }
                call = calls.next() => match call {
                    Some(call) => self.0.roll.hear(&call?.data),
                    None => return Err(LinkError::Cancelled),
                },
                _ = time.tick() => self.say(link, &channel, &me).await?,
            }
        }
    }

    async fn listen(&self, link: &Link, channel: &Channel) -> Result<Consumer, LinkError> {
        let none = FieldTable::default;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = link.ask(channel.queue_declare("".into(), options, none())).await?;
        let exchange = self.0.topology.peers();
        let options = QueueBindOptions::default();
        let name = queue.name().clone();
        link.ask(channel.queue_bind(name.clone(), exchange.into(), "".into(), options, none()))
            .await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        link.ask(channel.basic_consume(name, "".into(), options, none())).await
    }

    async fn say(&self, link: &Link, channel: &Channel, what: &str) -> Result<(), LinkError> {
        let exchange = self.0.topology.peers().into();
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default();
        let saying =
            channel.basic_publish(exchange, "".into(), options, what.as_bytes(), properties);
        link.ask(saying).await.map(drop)
    }
}
