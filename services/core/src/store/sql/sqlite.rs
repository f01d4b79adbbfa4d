//! The embedded store: one SQLite file, one writer, WAL.

/// Chooses this engine's version.
macro_rules! either {
    (sqlite: $sqlite:expr, mysql: $mysql:expr $(,)?) => {
        $sqlite
    };
}
/// Nothing: this engine does without.
macro_rules! mysql_only {
    ($what:expr) => {};
}
macro_rules! numbers {
    () => {
        "(SELECT key AS k, value AS v FROM json_each(?)) AS w"
    };
}
macro_rules! join {
    () => {
        " CROSS JOIN "
    };
}
/// The planner needs no hint.
macro_rules! by_index {
    ($name:ident) => {
        ""
    };
}
/// There is one writer for the file, so no row needs a lock.
macro_rules! for_update {
    () => {
        ""
    };
}
macro_rules! in_share_mode {
    () => {
        ""
    };
}
/// The later of a column's time and the bound one.
macro_rules! later_of {
    ($column:literal) => {
        concat!("MAX(", $column, ", ?)")
    };
}
/// No transaction is rolled back because of another one.
macro_rules! retried {
    ($attempt:expr) => {
        $attempt.await
    };
}

#[path = "accounts.rs"]
mod accounts;
#[path = "bookmarks.rs"]
mod bookmarks;
#[path = "member_content.rs"]
mod member_content;
#[path = "passes.rs"]
mod passes;
#[path = "reviews.rs"]
mod reviews;
#[path = "revocations.rs"]
mod revocations;
#[path = "sessions.rs"]
mod sessions;
#[path = "signals.rs"]
mod signals;
#[path = "spot_rows.rs"]
mod spot_rows;
#[path = "spot_writes.rs"]
mod spot_writes;
#[path = "spots.rs"]
mod spots;
#[path = "store.rs"]
mod store;
#[path = "views.rs"]
mod views;
#[path = "visitor_keys.rs"]
mod visitor_keys;

use std::path::Path;
use std::sync::Arc;

use sqlx::sqlite::SqliteRow as Row;
use sqlx::{Sqlite as Db, SqliteConnection as Connection, Transaction};
use tourin_chassis::health::Outcomes;
use tourin_shared_events::outbox::{SqliteOutbox, Wake, sqlite::append};
use tourin_shared_events::sqlite::{Database, Migration, from_micros};

use self::SqliteStore as Store;
#[cfg(test)]
pub(in crate::store) use self::spots::STATEMENTS;
use self::store::{record, time};
use crate::store::spot_index::LiveIndex;

/// The engine by OpenTelemetry's name.
const SYSTEM: &str = "sqlite";

/// The migrations of core's schema; the outbox has its own, in the same file.
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
    Migration {
        version: 5,
        description: "search index in memory",
        sql: include_str!("../../../migrations/sqlite/0005_search_in_memory.sql"),
    },
    Migration {
        version: 6,
        description: "columns as in MySQL",
        sql: include_str!("../../../migrations/sqlite/0006_columns_as_in_mysql.sql"),
    },
    Migration {
        version: 7,
        description: "how long revocations are kept",
        sql: include_str!("../../../migrations/sqlite/0007_revoke_until.sql"),
    },
    Migration {
        version: 8,
        description: "ids of deleted members",
        sql: include_str!("../../../migrations/sqlite/0008_deleted_ids.sql"),
    },
    Migration {
        version: 9,
        description: "key of the day for visitors",
        sql: include_str!("../../../migrations/sqlite/0009_visitor_key.sql"),
    },
    Migration {
        version: 10,
        description: "members as they are listed",
        sql: include_str!("../../../migrations/sqlite/0010_members_listed.sql"),
    },
    Migration {
        version: 11,
        description: "shared signals",
        sql: include_str!("../../../migrations/sqlite/0011_signals.sql"),
    },
    Migration {
        version: 12,
        description: "invalidations of cached responses",
        sql: include_str!("../../../migrations/sqlite/0012_invalidations.sql"),
    },
];

/// Core's ports on one SQLite file.
///
/// A method that writes uses one `BEGIN IMMEDIATE` transaction, including its events, and calls
/// [`SqliteStore::committed`] after the commit.
#[derive(Clone)]
pub struct SqliteStore {
    /// The file: one writer connection, a pool of readers.
    pub(crate) db: Database,
    /// Wakes the outbox relay; carries no data.
    pub(crate) wake: Wake,
    /// The outcomes of operations.
    pub(crate) outcomes: Outcomes,
    outbox: SqliteOutbox,
    index: Arc<LiveIndex>,
}

impl SqliteStore {
    /// Opens the file and migrates its schema. Creates a missing file with access for its owner
    /// only. `readers` is the number of reading connections.
    ///
    /// # Errors
    /// When the file cannot be opened or a migration fails.
    pub async fn open(path: &Path, readers: u32, wake: Wake) -> anyhow::Result<Self> {
        let db = Database::open(path, readers).await?;
        db.migrate(MIGRATIONS, "core_migrations").await?;
        db.prepare_probe().await?;
        let outbox = SqliteOutbox::open(db.clone()).await?;
        Ok(Self { db, wake, outcomes: Outcomes::default(), outbox, index: Arc::default() })
    }

    /// The outbox that this store's transactions append to.
    pub fn outbox(&self) -> SqliteOutbox {
        self.outbox.clone()
    }

    /// A read transaction on one snapshot.
    async fn snapshot(&self) -> sqlx::Result<Transaction<'static, Db>> {
        self.db.reader().begin().await
    }
}

/// Runs an operation of the database. The file's own time-outs bound the waits of a statement.
async fn bounded<T>(operation: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    operation.await
}
