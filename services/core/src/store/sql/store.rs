//! What both engines' stores have alike.

use chrono::{DateTime, Utc};
use tourin_chassis::health::Trouble;
use tourin_shared_events::events::Outgoing;

use super::{Connection, SYSTEM, Store, append, bounded, from_micros};
use crate::app::StoreError;
use crate::store::errors::{of_engine, trouble};
use crate::store::operation::operation;

impl Store {
    /// Makes a small write, to check that the database accepts writes.
    ///
    /// # Errors
    /// Why the database does not accept a write.
    pub async fn write_probe(&self) -> Result<(), Trouble> {
        bounded(self.db.write_probe()).await.map_err(|error: sqlx::Error| trouble(&error.into()))
    }

    /// Closes the connections when they are back in the pool.
    pub async fn close(&self) {
        self.db.close().await;
    }

    /// Wakes the relay after a transaction with events has committed.
    pub(crate) fn committed(&self) {
        self.wake.notify();
    }

    pub(super) async fn call<T>(
        &self,
        name: &'static str,
        collection: &'static str,
        run: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        operation(SYSTEM, &self.outcomes, (name, collection), run).await
    }
}

/// A stored time; an error if it is out of range.
pub(super) fn time(micros: i64) -> Result<DateTime<Utc>, StoreError> {
    from_micros(micros).map_err(StoreError::Failed)
}

/// Appends events to the outbox in the transaction of their change. Call it last before the commit.
pub(super) async fn record(
    conn: &mut Connection,
    events: &[Outgoing],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    append(conn, events, now).await.map_err(of_engine)
}
