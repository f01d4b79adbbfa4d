//! The database with bounds on everything, and the two shapes that writes have here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use mongodb::event::EventHandler;
use mongodb::event::command::CommandEvent;
use mongodb::options::{
    ClientOptions, FindOneAndUpdateOptions, IndexOptions, ReturnDocument, Sphere2DIndexVersion,
    WriteConcern,
};
use mongodb::{Client, Collection, Database, IndexModel};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::errors::{DOWN, failed, port_error};
use crate::app::ports::PortError;
use crate::servers::{BreakerOpen, ServerStats};

/// How long making a connection may take.
const CONNECT_TIMEOUT_MS: u64 = 2_000;
/// How long a server that can take a command is looked for, as while a new primary is elected.
const SERVER_SELECTION_TIMEOUT_MS: u64 = 2_000;
/// How long a read may take.
const READ_TIMEOUT_MS: u64 = 3_000;
/// How long a write may take: up to [`STATEMENTS`] of them, acknowledged by a majority.
const WRITE_TIMEOUT_MS: u64 = 8_000;
/// How long writes over a whole collection, and building an index, may take.
const LONG_TIMEOUT_MS: u64 = 300_000;
/// Operations at the same time, each on a connection of its own.
const OPERATIONS: u32 = 32;
/// Statements in one command: few enough for a slow server to be done with them in time.
pub(super) const STATEMENTS: usize = 100;
/// Attempts to make a document that others make at the same time.
const INCREMENT_ATTEMPTS: u32 = 5;
/// MongoDB's code for a key that is there already.
const DUPLICATE_KEY: i32 = 11_000;

/// A database on MongoDB. Clones share its connections.
#[derive(Clone)]
pub(super) struct Connection {
    db: Database,
    address: String,
    stats: Arc<ServerStats>,
    /// The last look at the server found it gone: until the next finds it back nothing else waits
    /// for it. Otherwise every request of an outage would wait as long as a server is looked for.
    is_away: Arc<AtomicBool>,
    /// A permit for each operation that may be under way. See [`never_queueing`].
    turns: Arc<Semaphore>,
}

/// One statement of an `update` command.
#[derive(Clone)]
pub(super) struct Statement {
    /// Which document.
    pub(super) query: Document,
    /// What becomes of it.
    pub(super) update: Document,
}

/// An index: collection, name, keys and options.
pub(super) struct Index {
    pub(super) collection: &'static str,
    pub(super) name: &'static str,
    pub(super) keys: Document,
    /// Only documents that have the field are in it.
    pub(super) is_sparse: bool,
    /// The version of a geographic one. Said aloud, because a server that fills it in itself may
    /// take the same index, asked for again, for another one.
    pub(super) sphere_version: Option<Sphere2DIndexVersion>,
}

/// What a server says to an `update` command.
#[derive(Deserialize)]
struct Reply {
    n: i64,
    #[serde(rename = "writeErrors", default)]
    errors: Vec<WriteError>,
    /// The primary has written, but a majority has not confirmed that it did.
    #[serde(rename = "writeConcernError")]
    unconfirmed: Option<WriteConcernError>,
}

#[derive(Deserialize)]
struct WriteError {
    index: i64,
    code: i32,
    errmsg: String,
}

#[derive(Deserialize)]
struct WriteConcernError {
    code: i32,
    #[serde(default)]
    errmsg: String,
}

/// What became of the statements of an `update` command that makes what is not there.
#[derive(Default)]
pub(super) struct Upserted {
    /// How many took effect.
    pub(super) matched: u64,
    /// Which did not, because their document is there and does not match.
    pub(super) refused: Vec<usize>,
}

impl Reply {
    /// How many statements took effect, and which were refused because their document is there. An
    /// effect that may yet be rolled back is none: all that is sent here bears being sent again.
    fn outcome(self) -> Result<(u64, Vec<usize>), PortError> {
        let mut refused = Vec::new();
        for WriteError { index, code, errmsg } in self.errors {
            if code != DUPLICATE_KEY {
                let error = anyhow!("mongodb refused a write: {errmsg} ({code})");
                return Err(port_error(Some(code), DOWN.contains(&code), error));
            }
            refused.extend(usize::try_from(index));
        }
        if let Some(WriteConcernError { code, errmsg }) = self.unconfirmed {
            let error = anyhow!("mongodb: no majority confirmed a write: {errmsg} ({code})");
            return Err(port_error(Some(code), true, error));
        }
        Ok((u64::try_from(self.n).unwrap_or_default(), refused))
    }
}

impl Connection {
    /// The database that the options name, or `default_database`.
    pub(super) fn new(mut options: ClientOptions, default_database: &str) -> anyhow::Result<Self> {
        options.app_name.get_or_insert_with(|| "tourin".to_owned());
        options.connect_timeout = Some(Duration::from_millis(CONNECT_TIMEOUT_MS));
        options.server_selection_timeout = Some(Duration::from_millis(SERVER_SELECTION_TIMEOUT_MS));
        let operations = *options.max_pool_size.get_or_insert(OPERATIONS);
        never_queueing(&mut options, operations);
        // Conditions are checked against what was read: only the primary's truth will do.
        options.selection_criteria = None;
        let hosts: Vec<String> = options.hosts.iter().map(ToString::to_string).collect();
        let name = options.default_database.clone();
        let stats = Arc::new(ServerStats::bounded(operations));
        let counted = Arc::clone(&stats);
        options.command_event_handler = Some(EventHandler::callback(move |event| {
            if matches!(event, CommandEvent::Started(_)) {
                counted.count();
            }
        }));
        // The options may hold a password, and so may what the driver says about them.
        let client = Client::with_options(options).ok().context("options that contradict")?;
        Ok(Self {
            db: client.database(name.as_deref().unwrap_or(default_database)),
            address: hosts.join(","),
            stats,
            is_away: Arc::default(),
            turns: Arc::new(Semaphore::new(operations as usize)),
        })
    }

    /// What was asked of the server: every command of the driver, and nothing twice.
    pub(super) fn stats(&self) -> Arc<ServerStats> {
        Arc::clone(&self.stats)
    }

    /// Where the servers are, without credentials.
    pub(super) fn address(&self) -> String {
        self.address.clone()
    }

    fn collection(&self, name: &str) -> Collection<Document> {
        self.db.collection(name)
    }

    /// Whether a server answers that can take writes.
    pub(super) async fn ping(&self) -> Result<(), PortError> {
        let answer = within(READ_TIMEOUT_MS, self.db.run_command(doc! { "ping": 1 })).await;
        let is_away = matches!(answer, Err(PortError::Unavailable(_)));
        self.is_away.store(is_away, Ordering::Relaxed);
        answer.map(drop)
    }

    /// The time by the server's own clock; `None` of a server that does not tell.
    pub(super) async fn time(&self) -> Result<Option<DateTime<Utc>>, PortError> {
        let hello = self.within(READ_TIMEOUT_MS, self.db.run_command(doc! { "hello": 1 })).await?;
        let told = hello.get_datetime("localTime").ok();
        Ok(told.and_then(|time| DateTime::from_timestamp_millis(time.timestamp_millis())))
    }

    async fn within<T>(
        &self,
        timeout_ms: u64,
        operation: impl IntoFuture<Output = mongodb::error::Result<T>>,
    ) -> Result<T, PortError> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(PortError::unavailable(BreakerOpen("mongodb")));
        }
        let in_turn = async {
            let _in_hand = self.stats.operation();
            // It is never closed.
            let _turn = self.turns.acquire().await;
            operation.await
        };
        within(timeout_ms, in_turn).await
    }

    /// Creates those of the indexes that are not there.
    pub(super) async fn create_indexes(&self, indexes: &[Index]) -> Result<(), PortError> {
        for index in indexes {
            let options = IndexOptions::builder()
                .name(index.name.to_owned())
                .sparse(index.is_sparse.then_some(true))
                .sphere_2d_index_version(index.sphere_version.clone())
                .build();
            let model = IndexModel::builder().keys(index.keys.clone()).options(options).build();
            let collection = self.collection(index.collection);
            self.within(LONG_TIMEOUT_MS, collection.create_index(model)).await?;
        }
        Ok(())
    }

    /// One document by its id.
    pub(super) async fn get<T: DeserializeOwned + Send + Sync + Unpin>(
        &self,
        collection: &str,
        query: Document,
        projection: Document,
    ) -> Result<Option<T>, PortError> {
        let collection = self.db.collection::<T>(collection);
        let found = collection.find_one(query).projection(projection);
        self.within(READ_TIMEOUT_MS, found.max_time(Duration::from_millis(READ_TIMEOUT_MS))).await
    }

    /// The documents of a query; `sort` may be empty, a `limit` of 0 is none.
    pub(super) async fn find<T: DeserializeOwned + Send + Sync + Unpin>(
        &self,
        collection: &str,
        query: Document,
        projection: Document,
        sort: Document,
        limit: i64,
    ) -> Result<Vec<T>, PortError> {
        let collection = self.db.collection::<T>(collection);
        let found = collection
            .find(query)
            .projection(projection)
            .sort(sort)
            .limit(limit)
            .max_time(Duration::from_millis(READ_TIMEOUT_MS));
        self.within(READ_TIMEOUT_MS, async { found.await?.try_collect().await }).await
    }

    /// What an aggregation makes of a collection.
    pub(super) async fn aggregate<T: DeserializeOwned + Send + Sync + Unpin>(
        &self,
        collection: &str,
        pipeline: Vec<Document>,
    ) -> Result<Vec<T>, PortError> {
        let collection = self.collection(collection);
        let found = collection
            .aggregate(pipeline)
            .max_time(Duration::from_millis(READ_TIMEOUT_MS))
            .with_type::<T>();
        self.within(READ_TIMEOUT_MS, async { found.await?.try_collect().await }).await
    }

    /// Changes documents that are there and match. Returns how many did.
    pub(super) async fn update(
        &self,
        collection: &str,
        statements: &[Statement],
    ) -> Result<u64, PortError> {
        let mut matched = 0;
        for statements in statements.chunks(STATEMENTS) {
            matched += self.send(collection, statements, false).await?.0;
        }
        Ok(matched)
    }

    /// Changes documents that match, and makes those that are not there. Each query names an `_id`
    /// and what must be so for the statement to take effect.
    ///
    /// A document that is there without matching makes the server try to insert it anew, and fail.
    /// So does a race of two inserts, whose loser might match now: it is tried once more. What is
    /// refused even then is refused for what its document says.
    pub(super) async fn upsert_where(
        &self,
        collection: &str,
        statements: &[Statement],
    ) -> Result<Upserted, PortError> {
        let mut upserted = Upserted::default();
        for (chunk, statements) in statements.chunks(STATEMENTS).enumerate() {
            let (count, losers) = self.send(collection, statements, true).await?;
            let again: Vec<Statement> =
                losers.iter().filter_map(|index| statements.get(*index)).cloned().collect();
            let (count_again, refused) = self.send(collection, &again, true).await?;
            upserted.matched += count + count_again;
            let refused = refused.into_iter().filter_map(|index| losers.get(index));
            upserted.refused.extend(refused.map(|index| chunk * STATEMENTS + index));
        }
        Ok(upserted)
    }

    /// Adds documents. Those whose `_id` is there already are refused.
    pub(super) async fn insert(
        &self,
        collection: &str,
        documents: &[Document],
    ) -> Result<Upserted, PortError> {
        let mut inserted = Upserted::default();
        for (chunk, documents) in documents.chunks(STATEMENTS).enumerate() {
            let command = doc! {
                "insert": collection,
                "documents": documents,
                "ordered": false,
                "writeConcern": { "w": "majority", "j": true },
            };
            let reply = self.within(WRITE_TIMEOUT_MS, self.db.run_command(command)).await?;
            let (count, refused) = outcome(reply)?;
            inserted.matched += count;
            inserted.refused.extend(refused.into_iter().map(|index| chunk * STATEMENTS + index));
        }
        Ok(inserted)
    }

    /// Sends one command. Returns how many statements took effect, and which ones were refused
    /// because the document is there but does not match.
    async fn send(
        &self,
        collection: &str,
        statements: &[Statement],
        upsert: bool,
    ) -> Result<(u64, Vec<usize>), PortError> {
        if statements.is_empty() {
            return Ok((0, Vec::new()));
        }
        let updates: Vec<Document> = statements
            .iter()
            .map(|statement| {
                doc! { "q": &statement.query, "u": &statement.update, "upsert": upsert }
            })
            .collect();
        // Not the driver's bulk write: that needs MongoDB 8. In the journal before it is confirmed, so
        // that the end of the server's process costs nothing, whatever its defaults.
        let command = doc! {
            "update": collection,
            "updates": updates,
            "ordered": false,
            "writeConcern": { "w": "majority", "j": true },
        };
        let reply = self.within(WRITE_TIMEOUT_MS, self.db.run_command(command)).await?;
        outcome(reply)
    }

    /// Adds one to a number of a document, which is made if need be, and returns what it is then.
    pub(super) async fn increment(
        &self,
        collection: &str,
        id: &str,
        field: &str,
    ) -> Result<i64, PortError> {
        let options = FindOneAndUpdateOptions::builder()
            .upsert(true)
            .return_document(ReturnDocument::After)
            .write_concern(WriteConcern::majority())
            .build();
        let (query, update) = (doc! { "_id": id }, doc! { "$inc": { field: 1_i64 } });
        let collection = self.collection(collection);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let increment = collection
                .find_one_and_update(query.clone(), update.clone())
                .with_options(options.clone());
            match self.within(WRITE_TIMEOUT_MS, increment).await {
                Ok(Some(document)) => {
                    return document
                        .get_i64(field)
                        .map_err(|error| PortError::failed(anyhow!("mongodb: {error}")));
                }
                // Somebody else has made the document at the same moment.
                Ok(None) | Err(PortError::Failed(_)) if attempt < INCREMENT_ATTEMPTS => {}
                Ok(None) => return Err(PortError::failed(anyhow!("mongodb: no document"))),
                Err(error) => return Err(error),
            }
        }
    }

    /// Changes every document of a collection that matches. Returns how many did.
    pub(super) async fn update_all(
        &self,
        collection: &str,
        query: Document,
        update: Document,
    ) -> Result<u64, PortError> {
        let collection = self.collection(collection);
        let updated = self.within(LONG_TIMEOUT_MS, collection.update_many(query, update)).await?;
        Ok(updated.matched_count)
    }

    /// Deletes every document of a collection that matches. Returns how many did.
    pub(super) async fn delete_all(
        &self,
        collection: &str,
        query: Document,
    ) -> Result<u64, PortError> {
        let collection = self.collection(collection);
        let deleted = self.within(LONG_TIMEOUT_MS, collection.delete_many(query)).await?;
        Ok(deleted.deleted_count)
    }

    #[cfg(test)]
    pub(super) async fn drop_database(&self) {
        self.db.drop().await.unwrap();
    }
}

/// Sets the driver's pool up so that nobody ever waits in its queue; who has to wait does so for one
/// of `operations` permits.
///
/// The driver (3.9) takes one waiter out of its queue for each thing that happens in the pool, and a
/// waiter that has given up is one as well. Once more have given up than things go on happening,
/// each new one stands behind them until it gives up too: a server that was slow for a moment would
/// stay out of reach for ever.
///
/// Twice as many connections as operations, because those that were given up may be left in the
/// making for a while; and as many in the making as there may be, where the driver's default is two.
fn never_queueing(options: &mut ClientOptions, operations: u32) {
    let connections = operations.saturating_mul(2);
    options.max_pool_size = Some(connections);
    options.max_connecting = Some(connections);
}

/// What a server says to a command that writes.
fn outcome(reply: Document) -> Result<(u64, Vec<usize>), PortError> {
    let reply: Reply = mongodb::bson::deserialize_from_document(reply)
        .map_err(|error| PortError::failed(anyhow!("mongodb: {error}")))?;
    reply.outcome()
}

async fn within<T>(
    timeout_ms: u64,
    operation: impl IntoFuture<Output = mongodb::error::Result<T>>,
) -> Result<T, PortError> {
    match tokio::time::timeout(Duration::from_millis(timeout_ms), operation).await {
        Ok(answer) => answer.map_err(failed),
        Err(_) => Err(PortError::unavailable(anyhow!("mongodb: no answer in {timeout_ms} ms"))),
    }
}

#[cfg(test)]
mod tests;
