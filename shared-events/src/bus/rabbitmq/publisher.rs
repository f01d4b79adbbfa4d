//! Publishes messages in groups, and confirms each group before its results are returned.
//!
//! A message that no queue takes is returned before its confirm, but the library attaches it to the next confirm of any
//! message. So one channel has one group in flight. When every message of the group is confirmed, every return has
//! arrived, and each is matched to its message by id and route.

use std::collections::HashSet;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::join_all;
use futures::poll;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, PublisherConfirm};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::RabbitSettings;
use super::connection::{BrokerError, Connection, Connections};
use super::metrics::BusMetrics;
use super::topology::declare_domain;
use super::wire::{self, Message};
use crate::bus::PublishError;

type Results = Vec<Result<(), PublishError>>;

/// Calls that wait for a channel; further calls wait for room.
const MAX_WAITING: usize = 1024;
/// How long the library may take to pass on confirms that arrived with the end of a connection.
const LAST_WORDS: Duration = Duration::from_millis(100);

struct Request {
    messages: Vec<Message>,
    reply: oneshot::Sender<Results>,
}

/// The handle for publishing.
#[derive(Clone)]
pub(super) struct Publishing {
    requests: mpsc::Sender<Request>,
    settings: Arc<RabbitSettings>,
    metrics: BusMetrics,
}

fn unavailable(why: impl std::fmt::Display) -> PublishError {
    PublishError::Unavailable(why.to_string())
}

impl Publishing {
    /// The handle, and the task behind it.
    pub(super) fn start(
        settings: Arc<RabbitSettings>,
        connections: &Connections,
        metrics: BusMetrics,
        stop: &CancellationToken,
    ) -> (Self, Vec<impl Future<Output = ()> + use<>>) {
        let (requests, receiver) = mpsc::channel(MAX_WAITING);
        let receiver = Arc::new(Mutex::new(receiver));
        let workers = (0..settings.publish_channels.max(1))
            .map(|_| {
                let worker = Worker {
                    settings: settings.clone(),
                    connections: connections.clone(),
                    requests: receiver.clone(),
                    open: None,
                };
                let stop = stop.clone();
                async move {
                    stop.run_until_cancelled_owned(worker.run()).await;
                }
            })
            .collect();
        (Self { requests, settings, metrics }, workers)
    }

    /// One result per message, in order.
    pub(super) async fn publish(&self, messages: Vec<Message>) -> Results {
        let _unconfirmed = self.metrics.unconfirmed(messages.len());
        let results = self.send_all(messages).await;
        results.iter().for_each(|result| self.metrics.count_result(result));
        results
    }

    async fn send_all(&self, messages: Vec<Message>) -> Results {
        let count = messages.len();
        let (reply, results) = oneshot::channel();
        let limit = self.settings.publish_wait;
        let handing_in = self.requests.send(Request { messages, reply });
        match timeout(limit, handing_in).await {
            Err(_elapsed) => return vec![Err(unavailable("too many wait to publish")); count],
            Ok(Err(_closed)) => return vec![Err(unavailable("the bus is closed")); count],
            Ok(Ok(())) => {}
        }
        results.await.unwrap_or_else(|_| vec![Err(unavailable("the bus is closed")); count])
    }

    /// Sends a message that no queue takes, without counting it.
    pub(super) async fn probe(&self) -> Result<(), PublishError> {
        let probe = wire::probe(&self.settings.prefix)?;
        let results = self.send_all(vec![probe]).await;
        results.into_iter().next().unwrap_or_else(|| Err(unavailable("the bus gave no result")))
    }

    pub(super) async fn publish_one(&self, message: Message) -> Result<(), PublishError> {
        let results = self.publish(vec![message]).await;
        results.into_iter().next().unwrap_or_else(|| Err(unavailable("the bus gave no result")))
    }
}

/// A channel in confirm mode.
struct Open {
    connection: Arc<Connection>,
    channel: Channel,
    /// Exchanges declared over this connection.
    declared: HashSet<ShortString>,
}

struct Worker {
    settings: Arc<RabbitSettings>,
    connections: Connections,
    requests: Arc<Mutex<mpsc::Receiver<Request>>>,
    open: Option<Open>,
}

impl Worker {
    async fn run(mut self) {
        while let Some(group) = self.gather().await {
            let messages = group.iter().flat_map(|request| request.messages.iter().cloned());
            let messages: Vec<Message> = messages.collect();
            let mut results = self.publish(&messages).await.into_iter();
            for request in group {
                let own = results.by_ref().take(request.messages.len()).collect();
                // The caller may be gone; it publishes again.
                drop(request.reply.send(own));
            }
        }
    }

    /// The waiting requests, up to a group. Abandoned requests are skipped: the caller may have repeated them.
    async fn gather(&self) -> Option<Vec<Request>> {
        let mut requests = self.requests.lock().await;
        let first = loop {
            let request = requests.recv().await?;
            if !request.reply.is_closed() {
                break request;
            }
        };
        let mut size = first.messages.len();
        let mut group = vec![first];
        while size < self.settings.publish_group {
            let Ok(request) = requests.try_recv() else { break };
            if !request.reply.is_closed() {
                size += request.messages.len();
                group.push(request);
            }
        }
        Some(group)
    }

    async fn publish(&mut self, messages: &[Message]) -> Results {
        let mut open = match self.open().await {
            Ok(open) => open,
            Err(error) => return vec![Err(unavailable(error)); messages.len()],
        };
        for message in messages.iter().filter(|message| message.to_domain) {
            if !open.declared.contains(&message.exchange) {
                let name = message.exchange.as_str();
                if let Err(error) = declare_domain(&open.connection, &open.channel, name).await {
                    return vec![Err(unavailable(error)); messages.len()];
                }
                open.declared.insert(message.exchange.clone());
            }
        }
        let limit = self.settings.confirm_timeout;
        let why = tokio::select! {
            biased;
            results = send(&open.channel, messages) => {
                if !results.iter().any(|r| matches!(r, Err(PublishError::Unavailable(_)))) {
                    self.open = Some(open);
                }
                return results;
            }
            () = sleep(limit) => BrokerError::Slow,
            () = lost(&open.connection) => BrokerError::Down,
        };
        // The channel is closed with it: its late confirms must not count for another group.
        vec![Err(unavailable(why)); messages.len()]
    }

    /// Takes the channel out; it is put back after a successful group.
    async fn open(&mut self) -> Result<Open, BrokerError> {
        let connection = self.connections.get_within(self.settings.publish_wait).await?;
        if let Some(open) = self.open.take()
            && open.connection.number == connection.number
            && open.channel.status().connected()
        {
            return Ok(open);
        }
        let channel = connection.channel().await?;
        connection.ask(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Open { connection, channel, declared: HashSet::new() })
    }
}

/// The connection ended, and its last confirms were received.
async fn lost(connection: &Connection) {
    connection.ended().await;
    sleep(LAST_WORDS).await;
}

/// Sends a group in order and waits for all its confirms.
async fn send(channel: &Channel, messages: &[Message]) -> Results {
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let mut sending = Vec::with_capacity(messages.len());
    for message in messages {
        let mut publishing = Box::pin(channel.basic_publish(
            message.exchange.clone(),
            message.routing_key.clone(),
            options,
            &message.body,
            message.properties.clone(),
        ));
        // The first poll fixes its place in the order. Waiting for each write would be slow.
        let early = match poll!(&mut publishing) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        };
        sending.push(async move {
            let written: PublisherConfirm = match early {
                Some(result) => result?,
                None => publishing.await?,
            };
            written.await
        });
    }
    let confirms: Vec<lapin::Result<Confirmation>> = join_all(sending).await;
    let mut returned = HashSet::new();
    for confirm in &confirms {
        if let Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) = confirm {
            returned.insert(route(
                &message.delivery.exchange,
                &message.delivery.routing_key,
                &message.delivery.properties,
            ));
        }
    }
    let results = messages.iter().zip(&confirms).map(|(message, confirm)| {
        let route = route(&message.exchange, &message.routing_key, &message.properties);
        match confirm {
            Ok(_) if returned.contains(&route) => Err(PublishError::Unroutable),
            Ok(Confirmation::Ack(_)) => Ok(()),
            Ok(Confirmation::Nack(_)) => {
                Err(PublishError::Rejected("the broker could not keep the message".to_owned()))
            }
            Ok(Confirmation::NotRequested) => Err(unavailable("the channel does not confirm")),
            Err(error) => Err(unavailable(error)),
        }
    });
    results.collect()
}

type Route = (String, String, Option<String>);

fn route(
    exchange: &ShortString,
    routing_key: &ShortString,
    properties: &lapin::BasicProperties,
) -> Route {
    let id = properties.message_id().as_ref().map(ToString::to_string);
    (exchange.to_string(), routing_key.to_string(), id)
}
