//! Shared signals: ended sessions are told to a receiver elsewhere, and a transmitter elsewhere ends
//! members' sessions here.

pub mod receive;
pub mod transmit;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::StoreError;
use crate::domain::token::SessionId;

/// Up to where the log of ended sessions has been queued.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignalCursor {
    /// The log's id; empty before the first time.
    pub log_id: String,
    /// The position in it.
    pub position: u64,
}

/// An ended session that the receiver is to be told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedSignal {
    /// Its number in the queue.
    pub seq: i64,
    /// The event's id, the same at each attempt.
    pub jti: String,
    /// The session.
    pub session: SessionId,
    /// When it was queued, milliseconds after the session had ended.
    pub noted_at: DateTime<Utc>,
    /// Attempts before this one.
    pub attempts: u32,
}

/// The queue, and the events that were received. All processes of core share them.
#[async_trait]
pub trait SignalStore: Send + Sync {
    /// Up to where the log has been queued.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn cursor(&self) -> Result<SignalCursor, StoreError>;

    /// Queues the sessions and moves the cursor from one place to another, in one transaction. Does neither
    /// if the cursor is not at the first: another process has queued them. Sessions above `max` in the queue are left out; returns
    /// how many were, or `None` if nothing was done.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn queue(
        &self,
        from_to: (&SignalCursor, &SignalCursor),
        sessions: &[SessionId],
        max: u64,
        now: DateTime<Utc>,
    ) -> Result<Option<u64>, StoreError>;

    /// Takes the oldest signals that are due, at most `limit`. Others do not get them until `until`.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn claim(
        &self,
        limit: u32,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> Result<Vec<QueuedSignal>, StoreError>;

    /// Removes a signal that needs no further attempt.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn remove(&self, seq: i64) -> Result<(), StoreError>;

    /// Keeps a signal for another attempt at `due_at`.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn postpone(&self, seq: i64, due_at: DateTime<Utc>) -> Result<(), StoreError>;

    /// Removes signals queued before `before`, and received events kept until `now`; returns the number of
    /// signals, and how many are left.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn prune_signals(
        &self,
        before: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<(u64, u64), StoreError>;

    /// Whether an event has taken effect before.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn is_received(&self, digest: &[u8; 32]) -> Result<bool, StoreError>;

    /// Remembers an event that has taken effect.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn note_received(
        &self,
        digest: &[u8; 32],
        until: DateTime<Utc>,
    ) -> Result<(), StoreError>;
}
