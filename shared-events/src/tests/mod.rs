//! Scenarios across modules, and the contract suites over this crate's adapters.

mod bus;
mod consumer;
mod dead_letters;
mod events;
mod journey;
mod mysql;
mod outbox;
mod relay;
mod sqlite;

use std::sync::Arc;

use tempfile::TempDir;
use tokio::time::timeout;
use tourin_testbed::{SOON, eventually};

use crate::sqlite::Database;

/// The future's output, within the time limit.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("it should not take so long")
}

/// A database in a separate folder; keep both.
async fn database() -> (Database, Arc<TempDir>) {
    let folder = Arc::new(TempDir::new().unwrap());
    let database = Database::open(&folder.path().join("test.db"), 2).await.unwrap();
    (database, folder)
}

/// The operator's command in `docs/operations.md` after a copy of the database was restored.
fn statements_after_a_restore(engine: &str) -> Vec<&'static str> {
    let manual = include_str!("../../../docs/operations.md");
    let block = manual.split("```sql").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let of_engine = block.split("-- ").find(|part| part.starts_with(engine)).unwrap();
    of_engine.lines().skip(1).filter(|line| !line.trim().is_empty()).collect()
}
