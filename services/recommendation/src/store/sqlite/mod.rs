//! The embedded stores: one SQLite file, one writer, WAL.

mod history;
mod landmark;
mod passes;
mod spots;
#[cfg(test)]
mod tests;
mod trend;
mod writer;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::pruning::PassLog;
use tourin_shared_events::dead_letters::SqliteDeadLetters;
use tourin_shared_events::sqlite::{Database, Migration, is_unreachable, write_probe};

use self::writer::{Change, Writer};
use super::{HistoryRules, Stores};
use crate::app::ports::PortError;
use crate::domain::spot::SpotId;
use crate::domain::trend::TrendRules;
use crate::operation::{Engine, StoreMetrics};
use crate::servers::Server;

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        description: "trend, histories, spots",
        sql: include_str!("../../../migrations/sqlite/0001_stores.sql"),
    },
    Migration {
        version: 2,
        description: "resyncs by number",
        sql: include_str!("../../../migrations/sqlite/0002_resync_generations.sql"),
    },
    Migration {
        version: 3,
        description: "whether a resync has ended",
        sql: include_str!("../../../migrations/sqlite/0003_whole_replica.sql"),
    },
    Migration {
        version: 4,
        description: "versions, jumps of the clock, passes of pruning",
        sql: include_str!("../../../migrations/sqlite/0004_versions.sql"),
    },
    Migration {
        version: 5,
        description: "no cursors of core's events",
        sql: include_str!("../../../migrations/sqlite/0005_no_cursors.sql"),
    },
];
/// Connections for concurrent reads.
const READERS: u32 = 4;
/// Records of one kind that one transaction removes. Events wait during a transaction.
const PRUNE_BATCH: i64 = 2_000;
/// The maximum number of records that a pass removes: about 3,000 per second until the next pass,
/// more than a file takes in. A wrong clock that passes its check does not empty the stores at once.
const PRUNED_PER_PASS: u64 = 200_000;

/// Opens the stores in `file`.
///
/// # Errors
/// When the file cannot be opened or migrated.
pub async fn open(
    file: &Path,
    trend_rules: TrendRules,
    history_rules: HistoryRules,
    clock: SharedClock,
) -> anyhow::Result<Stores> {
    let db = Database::open(file, READERS).await?;
    db.migrate(MIGRATIONS, "recommendation_migrations").await?;
    let dead_letters = SqliteDeadLetters::open(db.clone()).await?;
    db.prepare_probe().await?;
    let writer = Writer::start(db.clone());
    let engine = Engine::embedded("sqlite");
    let embedded = File {
        address: file.display().to_string(),
        writer: writer.clone(),
        engine: engine.clone(),
    };
    let (file, by) = (db.clone(), writer.clone());
    let trend =
        trend::SqliteTrend::open(file, by, engine.clone(), trend_rules, clock.now()).await?;
    let failure = writer.failure();
    let passes: Arc<dyn PassLog> = Arc::new(passes::SqlitePasses::new(db.clone(), writer.clone()));
    Ok(Stores {
        held: None,
        metrics: StoreMetrics::default(),
        failure,
        trend: Arc::new(trend),
        histories: Arc::new(history::SqliteHistories::new(
            db.clone(),
            writer.clone(),
            engine.clone(),
            history_rules,
        )),
        spots: Arc::new(spots::SqliteSpots::new(db, writer, engine)),
        trend_passes: Arc::clone(&passes),
        history_passes: passes,
        dead_letters: Arc::new(dead_letters),
        trend_server: None,
        document_server: None,
        embedded: Some(Arc::new(embedded)),
    })
}

impl From<sqlx::Error> for PortError {
    fn from(error: sqlx::Error) -> Self {
        if is_unreachable(&error) { Self::unavailable(error) } else { Self::failed(error) }
    }
}

/// The file as a [`Server`], for readiness.
struct File {
    address: String,
    writer: Writer,
    engine: Engine,
}

/// A small write in the queue of the changes of events.
struct Probe;

#[async_trait]
impl Change for Probe {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        write_probe(connection).await
    }
}

#[async_trait]
impl Server for File {
    fn engine(&self) -> &Engine {
        &self.engine
    }

    fn address(&self) -> &str {
        &self.address
    }

    /// The file is already open and migrated.
    async fn prepare(&self) -> Result<(), PortError> {
        Ok(())
    }

    async fn write_probe(&self) -> Result<(), PortError> {
        self.writer.commit(Probe).await
    }
}

/// Repeats a step that removes up to [`PRUNE_BATCH`] records until it removes fewer. Returns the
/// total.
async fn prune_all<F>(step: impl Fn() -> F) -> Result<u64, PortError>
where
    F: Future<Output = Result<u64, PortError>>,
{
    let mut removed = 0;
    loop {
        let batch = step().await?;
        removed += batch;
        if batch < PRUNE_BATCH.unsigned_abs() || removed >= PRUNED_PER_PASS {
            return Ok(removed);
        }
    }
}

/// Runs a statement that deletes up to a number of rows from before a time, by these two parameters, with
/// [`PRUNE_BATCH`] as the number. Returns how many it deleted.
async fn delete_before<T>(
    connection: &mut SqliteConnection,
    statement: &'static str,
    before: T,
) -> sqlx::Result<u64>
where
    T: for<'q> sqlx::Encode<'q, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite> + Send + 'static,
{
    let deleted = sqlx::query(statement).bind(before).bind(PRUNE_BATCH).execute(connection).await?;
    Ok(deleted.rows_affected())
}

/// A number of rows as SQLite's integer, saturating.
fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// A duration in microseconds, saturating.
fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

fn ids_as_json(ids: &[SpotId]) -> String {
    let numbers: Vec<i64> = ids.iter().map(|id| id.number()).collect();
    serde_json::Value::from(numbers).to_string()
}
