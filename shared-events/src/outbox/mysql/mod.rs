//! The outbox in MySQL and MariaDB.
//!
//! # Order
//! A row gets its number when it is written, not when it commits, so a lower number can appear after a higher one. A
//! relay reads on from its last number and would miss that row. So it sees an event only once no lower number can
//! appear ([`watermark`]). Of two changes of the same thing, the second waits for the first one's commit (they lock the
//! same rows) before it gets its number, if events are appended last in their transaction. So dependent events have
//! numbers in order.

mod claims;
mod schema;
mod watermark;

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

use sqlx::mysql::MySqlRow as Row;
use sqlx::{MySql as Engine, MySqlConnection as Connection};

pub use self::append::append;
pub use self::schema::{MIGRATIONS, MIGRATIONS_TABLE};
pub use self::store::Outbox as MysqlOutbox;
use self::watermark::Watermark;
use super::sql::mysql as statements;
use crate::mysql::{Conflicts, Database, bounded, from_micros, to_micros};

/// Runs a transaction in bounded time, with retries after conflicts.
async fn transaction<T, F: Future<Output = sqlx::Result<T>>>(
    work: impl Fn() -> F,
) -> sqlx::Result<T> {
    let mut conflicts = Conflicts::default();
    loop {
        match bounded(work()).await {
            Err(error) if conflicts.again(&error).await => {}
            result => return result,
        }
    }
}
