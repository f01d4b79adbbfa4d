//! The database with limits and timeouts, and the forms of writes used here.

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

use super::errors::{DOWN, failed, port_error};
use crate::app::ports::PortError;
use crate::operation::{BreakerOpen, Engine, Operations, StoreMetrics};

/// How long connecting may take.
const CONNECT_TIMEOUT_MS: u64 = 2_000;
/// How long to wait for a suitable server, for example during an election.
const SERVER_SELECTION_TIMEOUT_MS: u64 = 2_000;
/// How long a read may take.
const READ_TIMEOUT_MS: u64 = 3_000;
/// How long a write of up to [`STATEMENTS`] statements, acknowledged by a majority, may take.
const WRITE_TIMEOUT_MS: u64 = 8_000;
/// How long a write to many documents, or building an index, may take.
const LONG_TIMEOUT_MS: u64 = 300_000;
/// Concurrent operations, each on its own connection.
const OPERATIONS: u32 = 32;
/// Statements in one command: few enough for a slow server to finish in time.
pub(super) const STATEMENTS: usize = 100;
/// Attempts to create a document while others do so too.
const INCREMENT_ATTEMPTS: u32 = 5;
/// MongoDB's code for a key that exists already.
const DUPLICATE_KEY: i32 = 11_000;

/// A database on MongoDB. Clones share its connections.
#[derive(Clone)]
pub(super) struct Connection {
    db: Database,
    address: String,
    pub(super) engine: Engine,
    /// Whether the last ping failed. Then operations fail at once until a ping succeeds. Otherwise
    /// every request during an outage would wait for the server selection timeout.
    is_down: Arc<AtomicBool>,
    /// Bounds the operations in progress. See [`size_pool`].
    operations: Operations,
}

/// One statement of an `update` command.
#[derive(Clone)]
pub(super) struct Statement {
    pub(super) query: Document,
    pub(super) update: Document,
}

pub(super) struct Index {
    pub(super) collection: &'static str,
    pub(super) name: &'static str,
    pub(super) keys: Document,
    pub(super) is_sparse: bool,
    /// The version of a geographic index. It is explicit because a server that adds the default
    /// itself may treat the same index, created again, as a different one.
    pub(super) sphere_version: Option<Sphere2DIndexVersion>,
}

/// The server's reply to a command that writes.
#[derive(Deserialize)]
struct Reply {
    n: i64,
    #[serde(rename = "writeErrors", default)]
    errors: Vec<WriteError>,
    /// The primary has written, but a majority has not confirmed it.
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

/// The outcome of statements that insert missing documents.
#[derive(Default)]
pub(super) struct Upserted {
    /// The number of statements that took effect.
    pub(super) matched: u64,
    /// The indexes of statements whose document exists and does not match.
    pub(super) refused: Vec<usize>,
}

impl Reply {
    /// How many statements took effect, and which were refused because their document exists. A
    /// write that may be rolled back is an error, because every write here can be repeated safely.
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
    pub(super) fn new(
        mut options: ClientOptions,
        default_database: &str,
        metrics: &StoreMetrics,
    ) -> anyhow::Result<Self> {
        options.app_name.get_or_insert_with(|| "tourin".to_owned());
        options.connect_timeout = Some(Duration::from_millis(CONNECT_TIMEOUT_MS));
        options.server_selection_timeout = Some(Duration::from_millis(SERVER_SELECTION_TIMEOUT_MS));
        let operations = *options.max_pool_size.get_or_insert(OPERATIONS);
        size_pool(&mut options, operations);
        // Read from the primary: writes depend on what was read.
        options.selection_criteria = None;
        let hosts: Vec<String> = options.hosts.iter().map(ToString::to_string).collect();
        let name = options.default_database.clone();
        let engine = Engine::of_server("mongodb", metrics);
        let commands = engine.commands.clone();
        options.command_event_handler = Some(EventHandler::callback(move |event| {
            if matches!(event, CommandEvent::Started(_)) {
                commands.inc();
            }
        }));
        // The driver's error is dropped, because it may contain the password.
        let client =
            Client::with_options(options).ok().context("conflicting options in the URL")?;
        Ok(Self {
            db: client.database(name.as_deref().unwrap_or(default_database)),
            address: hosts.join(","),
            engine,
            is_down: Arc::default(),
            operations: Operations::bounded("mongodb", metrics, operations),
        })
    }

    /// The servers' addresses, without credentials.
    pub(super) fn address(&self) -> String {
        self.address.clone()
    }

    fn collection(&self, name: &str) -> Collection<Document> {
        self.db.collection(name)
    }

    /// Whether a primary answers.
    pub(super) async fn ping(&self) -> Result<(), PortError> {
        let answer = with_timeout(READ_TIMEOUT_MS, self.db.run_command(doc! { "ping": 1 })).await;
        let is_down = matches!(answer, Err(PortError::Unavailable(_)));
        self.is_down.store(is_down, Ordering::Relaxed);
        answer.map(drop)
    }

    /// The time of the server's clock, or `None` if the server does not report it.
    pub(super) async fn time(&self) -> Result<Option<DateTime<Utc>>, PortError> {
        let hello = self.run(READ_TIMEOUT_MS, self.db.run_command(doc! { "hello": 1 })).await?;
        let time = hello.get_datetime("localTime").ok();
        Ok(time.and_then(|time| DateTime::from_timestamp_millis(time.timestamp_millis())))
    }

    async fn run<T>(
        &self,
        timeout_ms: u64,
        operation: impl IntoFuture<Output = mongodb::error::Result<T>>,
    ) -> Result<T, PortError> {
        if self.is_down.load(Ordering::Relaxed) {
            return Err(PortError::unavailable(BreakerOpen("mongodb")));
        }
        let with_permit = async {
            let _under_way = self.operations.begin().await;
            operation.await
        };
        with_timeout(timeout_ms, with_permit).await
    }

    pub(super) async fn create_indexes(&self, indexes: &[Index]) -> Result<(), PortError> {
        for index in indexes {
            let options = IndexOptions::builder()
                .name(index.name.to_owned())
                .sparse(index.is_sparse.then_some(true))
                .sphere_2d_index_version(index.sphere_version.clone())
                .build();
            let model = IndexModel::builder().keys(index.keys.clone()).options(options).build();
            let collection = self.collection(index.collection);
            self.run(LONG_TIMEOUT_MS, collection.create_index(model)).await?;
        }
        Ok(())
    }

    pub(super) async fn get<T: DeserializeOwned + Send + Sync + Unpin>(
        &self,
        collection: &str,
        query: Document,
        projection: Document,
    ) -> Result<Option<T>, PortError> {
        let collection = self.db.collection::<T>(collection);
        let found = collection.find_one(query).projection(projection);
        self.run(READ_TIMEOUT_MS, found.max_time(Duration::from_millis(READ_TIMEOUT_MS))).await
    }

    /// Finds documents. `sort` may be empty. A `limit` of 0 means no limit.
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
        self.run(READ_TIMEOUT_MS, async { found.await?.try_collect().await }).await
    }

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
        self.run(READ_TIMEOUT_MS, async { found.await?.try_collect().await }).await
    }

    /// Updates documents that match. Returns how many did.
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

    /// Updates documents that match, and inserts missing ones. Each query has an `_id` and the
    /// condition of the statement.
    ///
    /// If a document exists but does not match, the server tries to insert it again and refuses. The
    /// loser of two concurrent inserts is refused, too, but might match now, so refused statements
    /// are retried once. A statement that is refused again does not match its document.
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

    /// Inserts documents. Those whose `_id` exists already are refused.
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
            let reply = self.run(WRITE_TIMEOUT_MS, self.db.run_command(command)).await?;
            let (count, refused) = outcome(reply)?;
            inserted.matched += count;
            inserted.refused.extend(refused.into_iter().map(|index| chunk * STATEMENTS + index));
        }
        Ok(inserted)
    }

    /// Sends one `update` command. Returns how many statements took effect, and which were refused
    /// because their document exists but does not match.
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
        // The driver's bulk write needs MongoDB 8. Writes are journaled before they are confirmed, so
        // that the end of the server's process loses nothing.
        let command = doc! {
            "update": collection,
            "updates": updates,
            "ordered": false,
            "writeConcern": { "w": "majority", "j": true },
        };
        let reply = self.run(WRITE_TIMEOUT_MS, self.db.run_command(command)).await?;
        outcome(reply)
    }

    /// Adds one to a field of a document, which is inserted if missing. Returns the new value.
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
            match self.run(WRITE_TIMEOUT_MS, increment).await {
                Ok(Some(document)) => {
                    return document
                        .get_i64(field)
                        .map_err(|error| PortError::failed(anyhow!("mongodb: {error}")));
                }
                // A concurrent caller has inserted the document.
                Ok(None) | Err(PortError::Failed(_)) if attempt < INCREMENT_ATTEMPTS => {}
                Ok(None) => {
                    return Err(PortError::failed(anyhow!(
                        "mongodb: the document was not returned"
                    )));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Updates every matching document of a collection. Returns how many matched.
    pub(super) async fn update_all(
        &self,
        collection: &str,
        query: Document,
        update: Document,
    ) -> Result<u64, PortError> {
        let collection = self.collection(collection);
        let updated = self.run(LONG_TIMEOUT_MS, collection.update_many(query, update)).await?;
        Ok(updated.matched_count)
    }

    /// Deletes every matching document of a collection. Returns how many.
    pub(super) async fn delete_all(
        &self,
        collection: &str,
        query: Document,
    ) -> Result<u64, PortError> {
        let collection = self.collection(collection);
        let deleted = self.run(LONG_TIMEOUT_MS, collection.delete_many(query)).await?;
        Ok(deleted.deleted_count)
    }

    #[cfg(test)]
    pub(super) async fn drop_database(&self) {
        self.db.drop().await.unwrap();
    }
}

/// Makes the driver's pool so large that no operation waits in its queue. Operations wait for one of
/// `operations` permits instead.
///
/// For each event in its pool the driver (3.9) removes one waiter from its queue, even a waiter that
/// has timed out. If more waiters have timed out than events follow, each new waiter stays behind
/// them until it times out, too: after a short slowness the server would stay unavailable for ever.
///
/// There are twice as many connections as operations, because connections of cancelled operations
/// may still be connecting. All may connect at once; the driver's default is two.
fn size_pool(options: &mut ClientOptions, operations: u32) {
    let connections = operations.saturating_mul(2);
    options.max_pool_size = Some(connections);
    options.max_connecting = Some(connections);
}

fn outcome(reply: Document) -> Result<(u64, Vec<usize>), PortError> {
    let reply: Reply = mongodb::bson::deserialize_from_document(reply)
        .map_err(|error| PortError::failed(anyhow!("mongodb: {error}")))?;
    reply.outcome()
}

async fn with_timeout<T>(
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
