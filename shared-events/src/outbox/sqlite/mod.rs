//! The outbox in SQLite.

mod claims;
mod schema;

#[allow(clippy::duplicate_mod, reason = "compiled once for each engine: see outbox/sql")]
#[path = "../sql/append.rs"]
mod append;
#[allow(clippy::duplicate_mod, reason = "compiled once for each engine: see outbox/sql")]
#[path = "../sql/operators.rs"]
mod operators;
#[allow(clippy::duplicate_mod, reason = "compiled once for each engine: see outbox/sql")]
#[path = "../sql/rows.rs"]
mod rows;
#[allow(clippy::duplicate_mod, reason = "compiled once for each engine: see outbox/sql")]
#[path = "../sql/store.rs"]
mod store;

use sqlx::sqlite::SqliteRow as Row;
use sqlx::{Sqlite as Engine, SqliteConnection as Connection};

pub use self::append::append;
pub use self::schema::{MIGRATIONS, MIGRATIONS_TABLE};
pub use self::store::Outbox as SqliteOutbox;
use super::sql::sqlite as statements;
use crate::sqlite::{Database, from_micros, to_micros};

/// The watermark has no limit here: with one writer, numbers follow the order of commits.
#[derive(Clone, Copy, Debug, Default)]
struct Watermark(());

impl Watermark {
    async fn find(self, _: &Database) -> sqlx::Result<u64> {
        Ok(u64::MAX)
    }
}

/// Runs a transaction. With one writer there are no conflicts.
async fn transaction<T, F: Future<Output = sqlx::Result<T>>>(
    work: impl Fn() -> F,
) -> sqlx::Result<T> {
    work().await
}

/// Runs an operation, which is bounded by itself: by the local file and the limit on waiting for a lock.
async fn bounded<T>(operation: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    operation.await
}
