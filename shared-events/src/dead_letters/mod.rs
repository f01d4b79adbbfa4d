//! Dead letters: events that could not be handled, kept for an operator to inspect, replay or discard.
//!
//! # Replay
//! A letter is replayed into the queue whose consumer dead-lettered it, and into no other: the other queues have
//! handled the event already. It arrives unchanged (exchange, routing key, ordering key, headers, body) with one more
//! header, [`REPLAYED`], behind the events of its key that wait there. The letter is deleted only when its event is
//! safe: on RabbitMQ when the broker has confirmed it, with the embedded stores when the consumer has settled it. After
//! a crash in between, the event arrives twice and consumers dedupe it by its id; it is never lost.
//!
//! With the embedded stores the bus runs in another process than the operator's command. The command only marks the
//! letter in the database ([`Settled::Accepted`]). The subscriber of its queue looks for marks about once a second
//! ([`DeadLetterStore::requested`]), also after a restart.

pub mod sqlite;

#[cfg(any(test, feature = "testing"))]
pub mod contract;
#[cfg(any(test, feature = "testing"))]
mod memory;

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

#[cfg(any(test, feature = "testing"))]
pub use memory::MemoryDeadLetters;
pub use sqlite::SqliteDeadLetters;

/// The most bytes of a body that are kept: 256 KiB, a consumer's default limit.
pub const MAX_BODY_BYTES: usize = 256 * 1024;

/// The most dead letters one call of [`DeadLetterStore::list`] returns.
pub const MAX_LIST: u32 = 500;

/// Why a letter cannot be replayed.
pub(crate) const CUT: &str = "its body was too long to be kept whole";

/// The header of a replayed event: how often it has been replayed.
pub const REPLAYED: &str = "x-tourin-replayed";

/// An event that was dead-lettered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// This record's id (UUID version 7: newer ones sort later).
    pub id: Uuid,
    /// The queue whose consumer dead-lettered it.
    pub queue: String,
    /// The event's id, if its envelope could be read.
    pub event_id: Option<Uuid>,
    /// The exchange of its publication; empty when unknown.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// Its ordering key, if the publisher set one.
    pub ordering_key: Option<String>,
    /// Why it was dead-lettered.
    pub reason: String,
    /// The number of attempts.
    pub attempts: u32,
    /// The envelope as received, cut at [`MAX_BODY_BYTES`].
    pub body: Bytes,
    /// The length of the body before it was cut, in bytes.
    pub body_bytes: u64,
    /// The transport's metadata.
    pub headers: BTreeMap<String, String>,
    /// When it was dead-lettered.
    pub failed_at: DateTime<Utc>,
    /// It is marked for replay, and the subscriber of its queue has not settled it yet.
    pub replay_requested: bool,
}

/// How an event was routed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The exchange of its publication.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// Its ordering key, if the publisher set one.
    pub ordering_key: Option<String>,
}

impl DeadLetter {
    /// A new record, with a bounded body.
    #[expect(
        clippy::too_many_arguments,
        reason = "one per field, which have nothing else in common"
    )]
    pub fn new(
        queue: &str,
        event_id: Option<Uuid>,
        route: Route,
        reason: String,
        attempts: u32,
        body: &Bytes,
        headers: BTreeMap<String, String>,
        failed_at: DateTime<Utc>,
    ) -> Self {
        Self {
            id: Uuid::now_v7(),
            queue: queue.to_owned(),
            event_id,
            exchange: route.exchange,
            routing_key: route.routing_key,
            ordering_key: route.ordering_key,
            reason,
            attempts,
            body: body.slice(..body.len().min(MAX_BODY_BYTES)),
            body_bytes: body.len() as u64,
            headers,
            failed_at,
            replay_requested: false,
        }
    }

    /// The headers of its replay: its own, and the number of replays, this one included.
    pub fn replay_headers(&self) -> BTreeMap<String, String> {
        let before = self.headers.get(REPLAYED).and_then(|count| count.parse::<u32>().ok());
        let mut headers = self.headers.clone();
        headers.insert(REPLAYED.to_owned(), before.unwrap_or(0).saturating_add(1).to_string());
        headers
    }

    /// The body was cut, so it is no longer the complete event.
    pub fn is_cut(&self) -> bool {
        self.body_bytes > self.body.len() as u64
    }

    /// Whether both letters are of the same event in the same queue.
    pub fn is_same_event(&self, other: &Self) -> bool {
        self.event_id.is_some() && self.event_id == other.event_id && self.queue == other.queue
    }
}

/// The outcome of a replay or discard of one letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is replayed or discarded, and the letter is deleted.
    Done,
    /// It is marked for replay. The letter is deleted once the running subscriber of its queue has settled the event.
    Accepted,
    /// The letter does not exist (any more). Nothing was done.
    Gone,
    /// The letter is kept, for this reason.
    Failed(String),
}

/// The store of dead letters.
#[async_trait]
pub trait DeadLetterStore: Send + Sync {
    /// Keeps a letter, durably. The same event, dead-lettered again by the same queue (for example, after a crash or a
    /// replay), stays one record. It has the id of the first one and the latest reason, attempts, headers and time.
    async fn put(&self, letter: DeadLetter) -> anyhow::Result<()>;

    /// The newest first, at most `limit` (and [`MAX_LIST`]) of them, below the id `before` if given.
    async fn list(&self, limit: u32, before: Option<Uuid>) -> anyhow::Result<Vec<DeadLetter>>;

    /// The number of letters.
    async fn count(&self) -> anyhow::Result<u64>;

    /// The letter of this id, if it exists.
    async fn get(&self, id: Uuid) -> anyhow::Result<Option<DeadLetter>>;

    /// Replays exactly these letters: one result for each id, in the order given. Letters that are not named, or were
    /// added since, are not touched. Letters with the same ordering key are replayed in the order of `ids`.
    ///
    /// # Errors
    /// When the store is unreachable. Some letters may have been replayed; the others are kept.
    async fn replay(&self, ids: &[Uuid]) -> anyhow::Result<Vec<Settled>>;

    /// Deletes exactly these letters: one result for each id, in the order given.
    ///
    /// # Errors
    /// When the store is unreachable. Some letters may have been deleted; the others are kept.
    async fn discard(&self, ids: &[Uuid]) -> anyhow::Result<Vec<Settled>>;

    /// The letters of a queue that this or another process has marked for replay, oldest mark first, at most `limit`.
    /// The running subscriber replays them. None in a store that replays by itself.
    async fn requested(&self, _queue: &str, _limit: u32) -> anyhow::Result<Vec<DeadLetter>> {
        Ok(Vec::new())
    }

    /// Deletes a marked letter whose event is settled. Keeps it when the event was dead-lettered again meanwhile, which
    /// removes the mark.
    async fn finish_replay(&self, _id: Uuid) -> anyhow::Result<()> {
        Ok(())
    }
}
