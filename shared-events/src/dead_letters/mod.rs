//! Dead letters: events that could not be handled, kept for a person to look at.

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

/// An event that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// This record's id (UUID version 7: newer ones sort later).
    pub id: Uuid,
    /// The queue whose consumer gave it up.
    pub queue: String,
    /// The event's id, where its envelope could be read.
    pub event_id: Option<Uuid>,
    /// The topic it was published under.
    pub routing_key: String,
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
        routing_key: &str,
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
            routing_key: routing_key.to_owned(),
            reason,
            attempts,
            body: body.slice(..body.len().min(MAX_BODY_BYTES)),
            body_bytes: body.len() as u64,
            headers,
            failed_at,
        }
    }
}

/// Where dead letters are kept.
#[async_trait]
pub trait DeadLetterStore: Send + Sync {
    /// Keeps one, durably. The same event given up again by the same queue (after a crash, say) stays one record, with
    /// the first one's id and the latest reason, attempts and time.
    async fn put(&self, letter: DeadLetter) -> anyhow::Result<()>;

    /// The newest first, at most `limit` (and [`MAX_LIST`]) of them, below the id `before` if given.
    async fn list(&self, limit: u32, before: Option<Uuid>) -> anyhow::Result<Vec<DeadLetter>>;

    /// How many are kept.
    async fn count(&self) -> anyhow::Result<u64>;
}
