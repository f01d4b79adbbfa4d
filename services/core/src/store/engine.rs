//! The engine chosen by the settings.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::timeout;
use tourin_chassis::health::{Outcomes, Trouble};
use tourin_chassis::pruning::PassLog;
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::mysql::{Database, MysqlUrl, PoolSizes};
use tourin_shared_events::outbox::{OutboxStore, Wake};

use super::mysql::MysqlStore;
use super::redis::MysqlRedisStore;
use super::sqlite::SqliteStore;
use crate::app::StoreError;
use crate::app::accounts::AccountStore;
use crate::app::attempts::SharedAttempts;
use crate::app::bookmarks::BookmarkStore;
use crate::app::reviews::ReviewStore;
use crate::app::revocations::RevocationLog;
use crate::app::session_store::SessionStore;
use crate::app::signals::SignalStore;
use crate::app::spots::SpotStore;
use crate::app::views::ViewStore;
use crate::app::visitor_keys::VisitorKeyStore;

/// The database in the data folder.
pub(crate) const DATABASE_FILE: &str = "core.sqlite3";

/// All ports on one engine. Clones share its connections.
#[derive(Clone)]
pub enum Store {
    /// A file in the data folder.
    Sqlite(SqliteStore),
    /// A database on a server.
    Mysql(MysqlStore),
    /// A database on a server, with sessions and revocations in Redis.
    MysqlRedis(MysqlRedisStore),
}

/// Evaluates an expression on the database of any engine.
macro_rules! on_database {
    ($store:expr, $database:ident => $do:expr) => {
        match $store {
            Store::Sqlite($database) => $do,
            Store::Mysql($database) => $do,
            Store::MysqlRedis(both) => {
                let $database = both.mysql();
                $do
            }
        }
    };
}

/// The same, on the Redis-backed store if there is one.
macro_rules! on_all {
    ($store:expr, $engine:ident => $do:expr) => {
        match $store {
            Store::Sqlite($engine) => $do,
            Store::Mysql($engine) => $do,
            Store::MysqlRedis($engine) => $do,
        }
    };
}

impl Store {
    /// Opens the file in the data folder, which must exist.
    ///
    /// # Errors
    /// When the file cannot be opened or a migration fails.
    pub async fn open_sqlite(data_dir: &Path, readers: u32) -> anyhow::Result<SqliteStore> {
        SqliteStore::open(&data_dir.join(DATABASE_FILE), readers, Wake::new())
            .await
            .with_context(|| format!("--data-dir {}", data_dir.display()))
    }

    /// Opens a database on a server. Waits for the server without limit.
    ///
    /// # Errors
    /// When the address is invalid, the server refuses, or a migration fails.
    pub async fn open_mysql(url: &MysqlUrl, sizes: PoolSizes) -> anyhow::Result<MysqlStore> {
        MysqlStore::open(url, sizes, Wake::new()).await.context("--mysql-url")
    }

    /// The same for an operator's command: few connections, and at most `limit` for the server to
    /// answer. The migration has no limit.
    ///
    /// # Errors
    /// As [`Store::open_mysql`], and when the server does not answer within `limit`.
    pub async fn open_mysql_within(limit: Duration, url: &MysqlUrl) -> anyhow::Result<MysqlStore> {
        let sizes = PoolSizes { readers: 1, writers: 1 };
        let Ok(database) = timeout(limit, Database::open(url, sizes)).await else {
            bail!("--mysql-url: the database {url} did not answer within {limit:?}");
        };
        MysqlStore::on(database.context("--mysql-url")?, Wake::new()).await.context("--mysql-url")
    }

    /// The store with sessions in Redis, if that is the engine.
    pub fn with_redis(&self) -> Option<&MysqlRedisStore> {
        match self {
            Self::MysqlRedis(store) => Some(store),
            Self::Sqlite(_) | Self::Mysql(_) => None,
        }
    }

    /// The counts of failed log-ins that processes share, if the engine has them.
    pub fn shared_attempts(&self) -> Option<Arc<dyn SharedAttempts>> {
        self.with_redis().map(|store| Arc::new(store.clone()) as Arc<dyn SharedAttempts>)
    }

    /// The accounts.
    pub fn accounts(&self) -> Arc<dyn AccountStore> {
        on_all!(self, store => Arc::new(store.clone()))
    }

    /// The sessions.
    pub fn sessions(&self) -> Arc<dyn SessionStore> {
        on_all!(self, store => Arc::new(store.clone()))
    }

    /// The log of revocations.
    pub fn revocations(&self) -> Arc<dyn RevocationLog> {
        on_all!(self, store => Arc::new(store.clone()))
    }

    /// The spots.
    pub fn spots(&self) -> Arc<dyn SpotStore> {
        on_database!(self, store => Arc::new(store.clone()))
    }

    /// The bookmarks.
    pub fn bookmarks(&self) -> Arc<dyn BookmarkStore> {
        on_database!(self, store => Arc::new(store.clone()))
    }

    /// The reviews and their likes.
    pub fn reviews(&self) -> Arc<dyn ReviewStore> {
        on_database!(self, store => Arc::new(store.clone()))
    }

    /// The views.
    pub fn views(&self) -> Arc<dyn ViewStore> {
        on_all!(self, store => Arc::new(store.clone()))
    }

    /// The key of the day for visitors' pseudonyms.
    pub fn visitor_keys(&self) -> Arc<dyn VisitorKeyStore> {
        on_database!(self, store => Arc::new(store.clone()))
    }

    /// The queue of security events, and those that were received.
    pub fn signals(&self) -> Arc<dyn SignalStore> {
        on_database!(self, store => Arc::new(store.clone()))
    }

    /// The outbox that its transactions append to.
    pub fn outbox(&self) -> Arc<dyn OutboxStore> {
        on_database!(self, store => Arc::new(store.outbox()))
    }

    /// The last pruning of sessions and revocations, and the clock of their server.
    pub fn session_passes(&self) -> Arc<dyn PassLog> {
        on_all!(self, store => Arc::new(store.clone()))
    }

    /// The same for the outbox.
    pub fn outbox_passes(&self) -> Arc<dyn PassLog> {
        on_database!(self, store => Arc::new(store.clone()))
    }

    /// The signal that a committed transaction has appended to the outbox.
    pub fn wake(&self) -> Wake {
        on_database!(self, store => store.wake.clone())
    }

    /// Brings the search index up to date; the first time, reads it whole.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn refresh_search_index(&self) -> Result<(), StoreError> {
        on_database!(self, store => store.refresh_search_index().await)
    }

    /// Keeps the search index up to date until `stop`.
    pub(crate) async fn keep_search_index(self, stop: Shutdown) {
        on_database!(&self, store => store.clone().keep_search_index(stop).await);
    }

    /// Spots in the search index, and its bytes; `None` before it was read.
    pub(crate) fn search_index(&self) -> Option<(u64, usize)> {
        on_database!(self, store => store.search_index())
    }

    /// The use of each connection pool of the database, by name.
    pub(crate) fn pools(&self) -> Vec<(&'static str, PoolUse)> {
        on_database!(self, store => vec![
            ("readers", PoolUse::of(store.db.reader())),
            ("writers", PoolUse::of(store.db.writer())),
        ])
    }

    /// The outcomes of database operations.
    pub(crate) fn outcomes(&self) -> Outcomes {
        on_database!(self, store => store.outcomes.clone())
    }

    /// Makes a small write, to check that the database accepts writes.
    ///
    /// # Errors
    /// Why the database does not accept a write.
    pub(crate) async fn write_probe(&self) -> Result<(), Trouble> {
        on_database!(self, store => store.write_probe().await)
    }

    /// Closes the connections when they are back in the pool.
    pub async fn close(&self) {
        on_database!(self, store => store.close().await);
    }
}

/// The current use of a connection pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolUse {
    pub(crate) open: usize,
    pub(crate) idle: usize,
    pub(crate) max: usize,
}

impl PoolUse {
    fn of<D: sqlx::Database>(pool: &sqlx::Pool<D>) -> Self {
        Self {
            open: pool.size() as usize,
            idle: pool.num_idle(),
            max: pool.options().get_max_connections() as usize,
        }
    }
}
