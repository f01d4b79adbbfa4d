//! The embedded store: one SQLite file, one writer, WAL.

mod accounts;
mod bookmarks;
mod grams;
mod map;
mod member_content;
mod pages;
mod reviews;
mod revocations;
mod search;
mod sessions;
mod spot_writes;
mod spots;
mod views;

use std::path::Path;

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use tourin_chassis::health::{Outcomes, Trouble};
use tourin_shared_events::events::Outgoing;
use tourin_shared_events::outbox::{SqliteOutbox, Wake, sqlite::append};
use tourin_shared_events::sqlite::{Database, Migration, from_micros};

pub use self::spots::SqliteSpots;
#[cfg(test)]
pub(in crate::store) use self::spots::statements;
use super::errors::{of_engine, trouble};
use crate::app::StoreError;

/// The steps of core's own schema; the outbox has its own, in the same file.
const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        description: "accounts, sessions, revocations",
        sql: include_str!("../../../migrations/sqlite/0001_accounts.sql"),
    },
    Migration {
        version: 2,
        description: "spots, bookmarks, reviews",
        sql: include_str!("../../../migrations/sqlite/0002_spots.sql"),
    },
    Migration {
        version: 3,
        description: "passes of pruning",
        sql: include_str!("../../../migrations/sqlite/0003_passes.sql"),
    },
    Migration {
        version: 4,
        description: "names to search by",
        sql: include_str!("../../../migrations/sqlite/0004_member_names.sql"),
    },
];

/// Core's ports on one SQLite file.
///
/// A method that writes does so in one `BEGIN IMMEDIATE` transaction, with the events it causes,
/// and calls [`SqliteStore::committed`] after the commit.
#[derive(Clone)]
pub struct SqliteStore {
    /// The file: one writer connection, a pool of readers.
    pub(crate) db: Database,
    /// Wakes the outbox relay; carries no data.
    pub(crate) wake: Wake,
    /// How what is asked of it ends.
    pub(crate) outcomes: Outcomes,
    outbox: SqliteOutbox,
}

impl SqliteStore {
    /// Opens the file, creating it for its owner only if need be, and brings its schema up to date.
    /// `readers` is the number of reading connections.
    ///
    /// # Errors
    /// When the file cannot be opened or a migration fails.
    pub async fn open(path: &Path, readers: u32, wake: Wake) -> anyhow::Result<Self> {
        let db = Database::open(path, readers).await?;
        db.migrate(MIGRATIONS, "core_migrations").await?;
        db.prepare_probe().await?;
        let outbox = SqliteOutbox::open(db.clone()).await?;
        Ok(Self { db, wake, outcomes: Outcomes::default(), outbox })
    }

    /// The outbox that this store's transactions append to.
    pub fn outbox(&self) -> SqliteOutbox {
        self.outbox.clone()
    }

    /// Makes a small write, to know whether the database takes one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn write_probe(&self) -> Result<(), Trouble> {
        self.db.write_probe().await.map_err(|error| trouble(&error.into()))
    }

    /// Closes the connections once they are given back.
    pub async fn close(&self) {
        self.db.close().await;
    }

    /// Tells the relay that a transaction with events has committed.
    pub(crate) fn committed(&self) {
        self.wake.notify();
    }
}

/// A stored time; one that no date can be is a fault.
fn time(micros: i64) -> Result<DateTime<Utc>, StoreError> {
    from_micros(micros).map_err(StoreError::Failed)
}

/// Appends events to the outbox, inside the transaction of the change that they tell of.
async fn record(
    conn: &mut SqliteConnection,
    events: &[Outgoing],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    append(conn, events, now).await.map_err(of_engine)
}
