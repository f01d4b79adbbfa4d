//! Dead letters: events that could not be handled, kept for a person to look at, to replay or to discard.
//!
//! # Replay
//! A letter is replayed into the queue whose consumer gave it up, and into no other: the effects at other queues are
//! had already. It comes as it was (exchange, routing key, ordering key, headers, body) with the header [`REPLAYED`]
//! besides, behind whatever else of its key waits there. The letter goes only when its event is safe: on RabbitMQ when
//! the broker has confirmed it, with the embedded stores when the consumer has settled it. A crash in between makes the
//! event come twice, which consumers dedupe by its id; it never loses it.
//!
//! With the embedded stores the bus runs in another process than the operator's command. The command only marks the
//! letter in the database ([`Settled::Accepted`]); the subscriber of its queue looks for marks about once a second
//! ([`ReplayRequests`]), also after a restart.

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

/// The most bytes of a body that are kept; 256 KiB, what a consumer accepts by default.
pub const MAX_BODY_BYTES: usize = 256 * 1024;

/// The most dead letters one call of [`DeadLetterStore::list`] returns.
pub const MAX_LIST: u32 = 500;

/// Why a letter cannot be replayed.
pub(crate) const CUT: &str = "its body was too long to be kept whole";

/// The header of a replayed event: how often it has been replayed.
pub const REPLAYED: &str = "x-tourin-replayed";

/// An event that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// This record's id (UUID version 7: newer ones sort later).
    pub id: Uuid,
    /// The queue whose consumer gave it up.
    pub queue: String,
    /// The event's id, where its envelope could be read.
    pub event_id: Option<Uuid>,
    /// The exchange it was published to; empty when that is not known any more.
    pub exchange: String,
    /// The topic it was published under.
    pub routing_key: String,
    /// The key by which it is ordered, where the publisher gave one.
    pub ordering_key: Option<String>,
    /// Why it was given up.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// The envelope as it came, cut at [`MAX_BODY_BYTES`].
    pub body: Bytes,
    /// How long the body was before it was cut, in bytes.
    pub body_bytes: u64,
    /// The transport's metadata.
    pub headers: BTreeMap<String, String>,
    /// When it was given up.
    pub failed_at: DateTime<Utc>,
    /// It is marked for replay, and the subscriber of its queue has not settled it yet.
    pub replay_requested: bool,
}

/// Where an event was on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The exchange it was published to.
    pub exchange: String,
    /// The topic it was published under.
    pub routing_key: String,
    /// The key by which it is ordered, where the publisher gave one.
    pub ordering_key: Option<String>,
}

impl DeadLetter {
    /// A new record; cuts the body.
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

    /// The headers of its replay: its own, and how often it has been replayed with that.
    pub fn replay_headers(&self) -> BTreeMap<String, String> {
        let before = self.headers.get(REPLAYED).and_then(|count| count.parse::<u32>().ok());
        let mut headers = self.headers.clone();
        headers.insert(REPLAYED.to_owned(), before.unwrap_or(0).saturating_add(1).to_string());
        headers
    }

    /// The body was cut, so that it is not the event any more.
    pub fn is_cut(&self) -> bool {
        self.body_bytes > self.body.len() as u64
    }

    /// Whether this and the other are of the same event, given up by the same queue.
    pub fn is_same_event(&self, other: &Self) -> bool {
        self.event_id.is_some() && self.event_id == other.event_id && self.queue == other.queue
    }
}

/// What became of one letter that was to be replayed or discarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is replayed or discarded: the letter is gone.
    Done,
    /// It is marked for replay. The letter goes once the running subscriber of its queue has settled the event.
    Accepted,
    /// There is no such letter (any more). Nothing was done in its place.
    Gone,
    /// It is still there, for this reason.
    Failed(String),
}

/// Where dead letters are kept.
#[async_trait]
pub trait DeadLetterStore: Send + Sync {
    /// Keeps one, durably. The same event given up again by the same queue (after a crash or a replay, say) stays one
    /// record, with the first one's id and the latest reason, attempts, headers and time.
    async fn put(&self, letter: DeadLetter) -> anyhow::Result<()>;

    /// The newest first, at most `limit` (and [`MAX_LIST`]) of them, below the id `before` if given.
    async fn list(&self, limit: u32, before: Option<Uuid>) -> anyhow::Result<Vec<DeadLetter>>;

    /// How many are kept.
    async fn count(&self) -> anyhow::Result<u64>;

    /// The letter of this id, if it is still there.
    async fn get(&self, id: Uuid) -> anyhow::Result<Option<DeadLetter>>;

    /// Replays exactly these letters, as they are listed now: one answer for each id, in the order given. What was
    /// given up since then, or is not named, is not touched. Of several letters with the same ordering key the order
    /// is that of `ids`.
    ///
    /// # Errors
    /// When the letters are out of reach. Then some may have been replayed; the others are still there.
    async fn replay(&self, ids: &[Uuid]) -> anyhow::Result<Vec<Settled>>;

    /// Deletes exactly these letters for good: one answer for each id, in the order given.
    ///
    /// # Errors
    /// When the letters are out of reach. Then some may have been deleted; the others are still there.
    async fn discard(&self, ids: &[Uuid]) -> anyhow::Result<Vec<Settled>>;

    /// Where replays wait for the subscriber, for stores that cannot reach it themselves.
    fn replay_requests(&self) -> Option<&dyn ReplayRequests> {
        None
    }
}

/// Replays that were asked for, by this process or another, and are the running subscriber's to carry out.
#[async_trait]
pub trait ReplayRequests: Send + Sync {
    /// The letters of a queue that are marked, oldest mark first, at most `limit`.
    async fn requested(&self, queue: &str, limit: u32) -> anyhow::Result<Vec<DeadLetter>>;

    /// The event of a marked letter is settled: the letter goes. Not so when it was given up again meanwhile, which
    /// takes the mark away.
    async fn carried_out(&self, id: Uuid) -> anyhow::Result<()>;
}
