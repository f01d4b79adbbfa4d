//! Dead letters in the broker: one durable queue, `<queue>.dead`, for each queue.
//!
//! A dead letter keeps its body, its headers (trace context included) and its key. Its own headers say which queue
//! dead-lettered it, why, after how many attempts, when, and where it was published at first.
//!
//! A queue cannot be read without taking messages from it. A reader takes all of them, unacknowledged, and returns them
//! by closing the channel. Meanwhile other readers would find the queue empty. So they wait for a lock: a queue that is
//! exclusive to one connection.

mod letter;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::RabbitBus;
use super::connection::{BrokerError, Connection};
use super::topology::dead_queue;
use crate::bus::PublishError;
use crate::dead_letters::{DeadLetter, DeadLetterStore, MAX_LIST, Settled};

pub(super) use letter::message;

/// How long the broker may take to requeue the messages of a look.
const PUT_BACK: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// The delay between attempts to get the lock.
const LOCK_AGAIN: Duration = Duration::from_millis(50);
/// How long the broker keeps a lock without a consumer, in milliseconds: a look may end between the declaration and the
/// consumer.
const LOCK_WITHOUT_READER_MS: u32 = 1_000;

/// The dead letters of some queues, read and written through the broker.
pub struct RabbitDeadLetters {
    bus: RabbitBus,
    queues: Vec<String>,
}

/// One letter with its messages: several when its event was dead-lettered several times.
struct Held {
    letter: DeadLetter,
    messages: Vec<Delivery>,
}

/// All letters of one queue, taken but not acknowledged.
struct Unacknowledged {
    channel: Channel,
    lock: Lock,
    letters: Vec<Held>,
    /// Messages that are not acknowledged.
    left: usize,
}

/// The lock on a queue: an exclusive queue that the broker deletes with its consumer, or when no consumer comes.
/// Dropping this value releases it soon, however the look ends.
struct Lock {
    name: String,
    channel: LockChannel,
    _reader: Consumer,
}

/// Closes the channel on drop. The library would not when its request for a consumer was abandoned.
struct LockChannel(Channel);

impl Drop for LockChannel {
    fn drop(&mut self) {
        // The first poll sends the request; the response does not matter.
        let _ = self.0.close(200, "OK".into()).now_or_never();
    }
}

impl Lock {
    async fn take(
        connection: &Connection,
        name: &str,
    ) -> Result<(LockChannel, Consumer), BrokerError> {
        let lock = LockChannel(connection.channel().await?);
        let channel = &lock.0;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        // Auto-delete begins with the consumer. A look that ends before would keep the queue for as long as its
        // connection lasts, and lock out all others.
        let mut arguments = FieldTable::default();
        arguments.insert("x-expires".into(), AMQPValue::LongUInt(LOCK_WITHOUT_READER_MS));
        connection.ask(channel.queue_declare(name.into(), options, arguments)).await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let reading = channel.basic_consume(name.into(), "".into(), options, FieldTable::default());
        let reader = connection.ask(reading).await?;
        Ok((lock, reader))
    }

    /// Releases the lock at once, for waiting readers.
    async fn release(self, connection: &Connection) -> Result<(), BrokerError> {
        let options = QueueDeleteOptions::default();
        let channel = &self.channel.0;
        connection.ask(channel.queue_delete(self.name.as_str().into(), options)).await?;
        connection.ask(channel.close(200, "OK".into())).await
    }
}

/// What to do with letters.
#[derive(Clone, Copy)]
enum Action {
    Replay,
    Discard,
}

impl RabbitDeadLetters {
    /// The dead letters of the named queues, without the prefix.
    pub fn new(bus: RabbitBus, queues: Vec<String>) -> Arc<Self> {
        Arc::new(Self { bus, queues })
    }

    /// About how many there are, for gauges: cheaper than [`DeadLetterStore::count`], which takes all of them. An event
    /// that was dead-lettered twice counts twice. Letters that another reader looks at do not count.
    ///
    /// # Errors
    /// When the broker is unreachable.
    pub async fn depth(&self) -> anyhow::Result<u64> {
        let connection = self.connection().await?;
        let mut messages = 0;
        for queue in &self.queues {
            let depth = connection.depth(&dead_queue(self.prefix(), queue)).await?;
            messages += u64::from(depth.unwrap_or_default());
        }
        Ok(messages)
    }

    fn prefix(&self) -> &str {
        &self.bus.0.settings.prefix
    }

    async fn connection(&self) -> Result<Arc<Connection>, BrokerError> {
        let inner = &self.bus.0;
        inner.consuming.clone().get_within(inner.settings.subscribe_timeout).await
    }

    /// Waits for the lock on a queue.
    async fn lock(&self, connection: &Connection, name: String) -> Result<Lock, BrokerError> {
        let deadline = Instant::now() + self.bus.0.settings.subscribe_timeout;
        loop {
            match Lock::take(connection, &name).await {
                Ok((channel, reader)) => return Ok(Lock { name, channel, _reader: reader }),
                // The lock is missing when it was just released over this connection, or its consumer came too late.
                Err(error)
                    if (error.is_locked() || error.is_missing()) && Instant::now() < deadline =>
                {
                    sleep(LOCK_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes all messages; `None` when the queue does not exist. Dropped halfway, it returns all of them.
    async fn take(
        &self,
        connection: &Connection,
        queue: &str,
    ) -> Result<Option<Unacknowledged>, BrokerError> {
        let name = dead_queue(self.prefix(), queue);
        if connection.depth(&name).await?.is_none() {
            return Ok(None);
        }
        let settings = &self.bus.0.settings;
        let lock = self.lock(connection, lock_name(&name)).await?;
        let channel = connection.channel().await?;
        let mut letters: Vec<Held> = Vec::new();
        let mut left = 0;
        // The queue's own bound may be exceeded a little.
        while left < 2 * settings.dead_max_letters as usize {
            let getting = channel.basic_get(name.as_str().into(), BasicGetOptions::default());
            let Some(message) = connection.ask(getting).await? else { break };
            left += 1;
            let delivery = message.delivery;
            let letter = letter::read(self.prefix(), queue, &delivery, settings.delivery_limit);
            let same = |held: &&mut Held| {
                held.letter.id == letter.id || held.letter.is_same_event(&letter)
            };
            match letters.iter_mut().find(same) {
                Some(held) => {
                    held.letter = DeadLetter { id: held.letter.id, ..letter };
                    held.messages.push(delivery);
                }
                None => letters.push(Held { letter, messages: vec![delivery] }),
            }
        }
        Ok(Some(Unacknowledged { channel, lock, letters, left }))
    }

    /// Returns the messages that were not acknowledged.
    async fn put_back(
        &self,
        connection: &Connection,
        queue: &str,
        taken: Unacknowledged,
    ) -> Result<(), BrokerError> {
        let name = dead_queue(self.prefix(), queue);
        connection.ask(taken.channel.close(200, "OK".into())).await?;
        // The broker requeues them asynchronously, and the next look should find them.
        let back = async {
            while connection.depth(&name).await?.is_some_and(|depth| (depth as usize) < taken.left)
            {
                sleep(LOOK_AGAIN).await;
            }
            Ok::<(), BrokerError>(())
        };
        if let Ok(failed) = timeout(PUT_BACK, back).await {
            failed?;
        }
        taken.lock.release(connection).await
    }

    async fn letters(&self) -> Result<Vec<DeadLetter>, BrokerError> {
        let _alone = self.bus.0.looking.lock().await;
        let connection = self.connection().await?;
        let mut letters = Vec::new();
        for queue in &self.queues {
            if let Some(mut taken) = self.take(&connection, queue).await? {
                letters.extend(taken.letters.drain(..).map(|held| held.letter));
                self.put_back(&connection, queue, taken).await?;
            }
        }
        Ok(letters)
    }

    async fn settle(&self, ids: &[Uuid], action: Action) -> anyhow::Result<Vec<Settled>> {
        let _alone = self.bus.0.looking.lock().await;
        let connection = self.connection().await?;
        let mut settled: HashMap<Uuid, Settled> = HashMap::new();
        for queue in &self.queues {
            if ids.iter().all(|id| settled.contains_key(id)) {
                break;
            }
            let Some(mut taken) = self.take(&connection, queue).await? else { continue };
            for id in ids {
                let Some(held) = taken.letters.iter().find(|held| held.letter.id == *id) else {
                    continue;
                };
                if settled.contains_key(id) {
                    continue;
                }
                let disposition = self.act(&connection, held, action).await?;
                if disposition == Settled::Done {
                    taken.left -= held.messages.len();
                }
                settled.insert(*id, disposition);
            }
            self.put_back(&connection, queue, taken).await?;
        }
        let disposition = |id: &Uuid| settled.get(id).cloned().unwrap_or(Settled::Gone);
        Ok(ids.iter().map(disposition).collect())
    }

    /// A replayed event is confirmed in its queue before its letter is deleted.
    async fn act(
        &self,
        connection: &Connection,
        held: &Held,
        action: Action,
    ) -> Result<Settled, BrokerError> {
        if let (Action::Replay, Some(message)) = (action, held.messages.last()) {
            let body = Bytes::copy_from_slice(&message.data);
            if held.letter.body_bytes > body.len() as u64 {
                return Ok(Settled::Failed(crate::dead_letters::CUT.to_owned()));
            }
            let published = match letter::replay(self.prefix(), &held.letter, &body) {
                Ok(message) => self.bus.0.publishing.publish_one(message).await,
                Err(error) => Err(error),
            };
            match published {
                Ok(()) => {}
                Err(PublishError::Unroutable) => {
                    return Ok(Settled::Failed("its queue does not exist".to_owned()));
                }
                Err(error) => return Ok(Settled::Failed(error.to_string())),
            }
        }
        for message in &held.messages {
            connection.ask(message.acker.ack(BasicAckOptions::default())).await?;
        }
        Ok(Settled::Done)
    }
}

fn lock_name(dead_queue: &str) -> String {
    format!("{dead_queue}.look")
}

#[async_trait]
impl DeadLetterStore for RabbitDeadLetters {
    /// Publishes to the dead queue of the letter's queue, which must exist.
    async fn put(&self, letter: DeadLetter) -> anyhow::Result<()> {
        let message = letter::of_letter(self.prefix(), &letter)?;
        Ok(self.bus.0.publishing.publish_one(message).await?)
    }

    /// An event that was dead-lettered twice is listed once.
    async fn list(&self, limit: u32, before: Option<Uuid>) -> anyhow::Result<Vec<DeadLetter>> {
        let mut letters = self.letters().await?;
        letters.retain(|letter| before.is_none_or(|before| letter.id < before));
        letters.sort_by_key(|letter| std::cmp::Reverse(letter.id));
        letters.truncate(usize::try_from(limit.min(MAX_LIST))?);
        Ok(letters)
    }

    /// An event that was dead-lettered twice is counted once.
    async fn count(&self) -> anyhow::Result<u64> {
        Ok(self.letters().await?.len() as u64)
    }

    async fn get(&self, id: Uuid) -> anyhow::Result<Option<DeadLetter>> {
        Ok(self.letters().await?.into_iter().find(|letter| letter.id == id))
    }

    /// Publishes each event to its queue and waits for the confirm.
    async fn replay(&self, ids: &[Uuid]) -> anyhow::Result<Vec<Settled>> {
        self.settle(ids, Action::Replay).await
    }

    async fn discard(&self, ids: &[Uuid]) -> anyhow::Result<Vec<Settled>> {
        self.settle(ids, Action::Discard).await
    }
}
