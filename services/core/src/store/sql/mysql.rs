//! The store on a server: MySQL 8, or MariaDB 10.6 or newer.
//!
//! # Transactions
//! Each method of a port is one transaction. Those that write run under READ COMMITTED and lock the
//! rows that they depend on, in this order: the member (shared; exclusive when the account changes),
//! the session or the review, the log of revocations or the catalogue, and last the outbox. If a
//! deadlock still occurs, the server rolls one transaction back, and it is retried a bounded number
//! of times ([`retried`]).
//!
//! # The SQL dialect
//! Only what MySQL 8 and MariaDB 10.6 both have; all tests run on MariaDB, the contract suites on MySQL as well.
//! - Collations: `utf8mb4_bin` or a binary type. Only MySQL has `utf8mb4_0900_*`, only MariaDB
//!   `*_nopad_*`; `utf8mb4_bin` sorts by code point and pads with spaces on both.
//! - No `RETURNING` (MariaDB only), no `INSERT ... AS new` (MySQL only): `VALUES(column)`.
//! - Locks: `FOR UPDATE`, and `LOCK IN SHARE MODE` rather than `FOR SHARE` (MySQL only).
//!   Both have `SKIP LOCKED`.
//! - Lists by `JSON_TABLE`, first in a `STRAIGHT_JOIN`, with `FORCE INDEX` where the planner errs. No
//!   `LATERAL`, no functional or descending index, no `JSON` column type, no `UUID` type.
//! - Neither uses an index for `(a, b) > (?, ?)`: write `a >= ? AND (a > ? OR b > ?)`.
//! - SQL for only one of them goes into its executable comment: `/*M!100100 ... */`,
//!   `/*!80000 ... */`.

/// Chooses this engine's version.
macro_rules! either {
    (sqlite: $sqlite:expr, mysql: $mysql:expr $(,)?) => {
        $mysql
    };
}
macro_rules! mysql_only {
    ($what:expr) => {
        $what;
    };
}
macro_rules! numbers {
    () => {
        "JSON_TABLE(?, '$[*]' COLUMNS (k FOR ORDINALITY, v BIGINT PATH '$')) AS w"
    };
}
macro_rules! join {
    () => {
        " STRAIGHT_JOIN "
    };
}
macro_rules! by_index {
    ($name:ident) => {
        concat!(" FORCE INDEX (", stringify!($name), ")")
    };
}
macro_rules! for_update {
    () => {
        " FOR UPDATE"
    };
}
/// A shared lock.
macro_rules! in_share_mode {
    () => {
        " LOCK IN SHARE MODE"
    };
}
/// The later of a column's time and the bound one.
macro_rules! later_of {
    ($column:literal) => {
        concat!("GREATEST(", $column, ", ?)")
    };
}
/// A rolled-back operation has had no effect, so it is retried. Attempts and their time are bounded.
macro_rules! retried {
    ($attempt:expr) => {{
        let mut conflicts = super::Retries::default();
        loop {
            match tourin_shared_events::mysql::bounded($attempt).await {
                Err(error) if conflicts.again(&error).await => {}
                result => break result,
            }
        }
    }};
}

#[path = "accounts.rs"]
mod accounts;
#[path = "bookmarks.rs"]
mod bookmarks;
#[path = "member_content.rs"]
mod member_content;
#[path = "passes.rs"]
mod passes;
#[path = "pending_revocations.rs"]
mod pending_revocations;
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

use std::sync::Arc;

use anyhow::Context as _;
use sqlx::mysql::{MySqlConnection as Connection, MySqlRow as Row};
use sqlx::{MySql as Db, Transaction};
use tourin_chassis::health::Outcomes;
use tourin_chassis::telemetry::Span;
use tourin_shared_events::mysql::{
    Conflicts, Database, Migration, MysqlUrl, PoolSizes, bounded, from_micros,
};
use tourin_shared_events::outbox::{MysqlOutbox, Wake, mysql::append};

use self::MysqlStore as Store;
pub(in crate::store) use self::pending_revocations::PendingRevocation;
#[cfg(test)]
pub(in crate::store) use self::spots::STATEMENTS;
use self::store::{record, time};
use crate::app::StoreError;
use crate::store::errors::engine_error;
use crate::store::spot_index::LiveIndex;

/// The engine by OpenTelemetry's name.
const SYSTEM: &str = "mysql";

/// The migrations of core's schema; the outbox has its own, in the same database.
const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        description: "accounts, sessions, revocations",
        sql: include_str!("../../../migrations/mysql/0001_accounts.sql"),
    },
    Migration {
        version: 2,
        description: "spots, bookmarks, reviews",
        sql: include_str!("../../../migrations/mysql/0002_spots.sql"),
    },
    Migration {
        version: 3,
        description: "passes of pruning",
        sql: include_str!("../../../migrations/mysql/0003_passes.sql"),
    },
    Migration {
        version: 4,
        description: "names to search by",
        sql: include_str!("../../../migrations/mysql/0004_member_names.sql"),
    },
    Migration {
        version: 5,
        description: "search index in memory",
        sql: include_str!("../../../migrations/mysql/0005_search_in_memory.sql"),
    },
    Migration {
        version: 6,
        description: "how long revocations are kept",
        sql: include_str!("../../../migrations/mysql/0006_revoke_until.sql"),
    },
    Migration {
        version: 7,
        description: "ids of deleted members",
        sql: include_str!("../../../migrations/mysql/0007_deleted_ids.sql"),
    },
    Migration {
        version: 8,
        description: "key of the day for visitors",
        sql: include_str!("../../../migrations/mysql/0008_visitor_key.sql"),
    },
    Migration {
        version: 9,
        description: "members as they are listed",
        sql: include_str!("../../../migrations/mysql/0009_members_listed.sql"),
    },
    Migration {
        version: 10,
        description: "shared signals",
        sql: include_str!("../../../migrations/mysql/0010_signals.sql"),
    },
    Migration {
        version: 11,
        description: "invalidations of cached responses",
        sql: include_str!("../../../migrations/mysql/0011_invalidations.sql"),
    },
];

/// Core's ports on one database of a server. Clones share its connections.
#[derive(Clone)]
pub struct MysqlStore {
    pub(crate) db: Database,
    /// Wakes the outbox relay; carries no data.
    pub(crate) wake: Wake,
    /// The outcomes of operations.
    pub(crate) outcomes: Outcomes,
    outbox: MysqlOutbox,
    index: Arc<LiveIndex>,
}

impl MysqlStore {
    /// Opens the database and migrates its schema. Waits for the server without limit; drop the
    /// future to stop waiting.
    ///
    /// # Errors
    /// When the address is invalid, the server refuses, or a migration fails.
    pub async fn open(url: &MysqlUrl, sizes: PoolSizes, wake: Wake) -> anyhow::Result<Self> {
        Self::on(Database::open(url, sizes).await?, wake).await
    }

    /// Migrates the schema of an open database.
    ///
    /// # Errors
    /// When a migration fails.
    pub async fn on(db: Database, wake: Wake) -> anyhow::Result<Self> {
        db.migrate(MIGRATIONS, "core_migrations").await?;
        let outbox = MysqlOutbox::open(db.clone()).await.context("the outbox")?;
        db.prepare_probe().await?;
        Ok(Self { db, wake, outcomes: Outcomes::default(), outbox, index: Arc::default() })
    }

    /// The outbox that this store's transactions append to.
    pub fn outbox(&self) -> MysqlOutbox {
        self.outbox.clone()
    }

    /// A read transaction on one snapshot.
    async fn snapshot(&self) -> sqlx::Result<Transaction<'static, Db>> {
        self.db.snapshot().await
    }
}

/// Counts the conflicts of one operation.
#[derive(Default)]
struct Retries(Conflicts);

impl Retries {
    async fn again(&mut self, error: &StoreError) -> bool {
        match engine_error(error) {
            Some(error) => {
                let again = self.0.again(error).await;
                if again {
                    Span::current().annotate("retry", &[("reason", "conflict")]);
                }
                again
            }
            None => false,
        }
    }
}
