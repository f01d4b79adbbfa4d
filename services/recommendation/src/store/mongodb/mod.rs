//! Histories and the replica of spots on MongoDB 4.2 or newer.
//!
//! There are no transactions over several documents, so that a single server without replica set is
//! enough. A member's complete history is one document, which changes atomically. The document lists
//! the resulting updates of other documents until they are done. These updates are idempotent.
//! Writes are sent as `update` commands of many statements.

mod collections;
mod connection;
mod errors;
mod history;
mod member;
mod passes;
mod recorder;
mod spots;
mod url;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use mongodb::bson::doc;
use mongodb::options::ClientOptions;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::pruning::PassLog;

use self::connection::{Connection, Statement};
pub use self::url::{InvalidMongodbUrl, MongodbUrl};
use crate::app::ports::{HistoryStore, PortError, SpotReplica};
use crate::operation::{Engine, StoreMetrics};
use crate::servers::Server;
use crate::store::HistoryRules;
use uuid::Uuid;

/// The database if the URL does not name one.
const DEFAULT_DATABASE: &str = "tourin_recommendation";

/// The collection of readiness's small writes.
const PROBE: &str = "write_probe";
/// The number of its documents: enough to make conflicts between processes unlikely, and bounded.
const PROBES: u128 = 1_024;

#[cfg(test)]
pub(super) use self::tests::TestDatabase;

/// The stores on MongoDB.
pub struct Documents {
    /// Members' histories.
    pub histories: Arc<dyn HistoryStore>,
    /// The replica of spots.
    pub spots: Arc<dyn SpotReplica>,
    /// When the histories were pruned last.
    pub passes: Arc<dyn PassLog>,
    /// The MongoDB server.
    pub server: Arc<dyn Server>,
}

/// Opens the stores on the MongoDB at `url`. Nothing is sent before the first use.
///
/// # Errors
/// When the servers cannot be looked up. The message does not repeat the URL.
pub async fn open(
    url: &MongodbUrl,
    rules: HistoryRules,
    clock: SharedClock,
    metrics: &StoreMetrics,
) -> anyhow::Result<Documents> {
    open_with(url, rules, clock, metrics, |_| {}).await
}

/// [`open`] with adjusted options of the driver.
async fn open_with(
    url: &MongodbUrl,
    rules: HistoryRules,
    clock: SharedClock,
    metrics: &StoreMetrics,
    adjust: impl FnOnce(&mut ClientOptions),
) -> anyhow::Result<Documents> {
    let mut options =
        ClientOptions::parse(url.expose()).await.ok().context("its servers cannot be looked up")?;
    adjust(&mut options);
    let connection = Connection::new(options, DEFAULT_DATABASE, metrics)?;
    let recorder = recorder::Recorder::start(recorder::Recording {
        connection: connection.clone(),
        rules,
        clock,
    });
    Ok(Documents {
        histories: Arc::new(history::MongoHistories::new(connection.clone(), recorder, rules)),
        spots: Arc::new(spots::MongoSpots::new(connection.clone())),
        passes: Arc::new(passes::MongoPasses(connection.clone())),
        server: Arc::new(MongoServer {
            address: connection.address(),
            connection,
            probe: i64::try_from(Uuid::new_v4().as_u128() % PROBES).unwrap_or_default(),
        }),
    })
}

struct MongoServer {
    connection: Connection,
    address: String,
    /// The id of this process's document in [`PROBE`].
    probe: i64,
}

#[async_trait]
impl Server for MongoServer {
    fn engine(&self) -> &Engine {
        &self.connection.engine
    }

    fn address(&self) -> &str {
        &self.address
    }

    async fn prepare(&self) -> Result<(), PortError> {
        self.connection.ping().await?;
        spots::prepare(&self.connection).await?;
        self.connection.create_indexes(&history::indexes()).await
    }

    async fn write_probe(&self) -> Result<(), PortError> {
        // The ping decides whether requests are sent: a server that refuses writes can still be read.
        self.connection.ping().await?;
        let write = Statement {
            query: doc! { "_id": self.probe },
            update: doc! { "$currentDate": { "written_at": true } },
        };
        self.connection.upsert_where(PROBE, &[write]).await.map(drop)
    }
}
