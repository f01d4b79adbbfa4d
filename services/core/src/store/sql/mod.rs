//! The ports on a database: SQLite, or MySQL and MariaDB.
//!
//! Each statement exists once. The files beside this one are compiled twice, as modules of [`sqlite`]
//! and of [`mysql`]; what they import from `super` is the engine's. Where the engines need different
//! SQL, `either!` has both versions. Smaller differences have a macro each, at the top of both
//! engines' files:
//!
//! | macro | stands for |
//! |---|---|
//! | `mysql_only!(statement)` | a statement that SQLite does without |
//! | `numbers!()` | a JSON array of numbers, bound as one value, as a table `w` with the columns `k` (position) and `v` |
//! | `join!()` | a join that reads the left table first |
//! | `by_index!(name)` | reads the table before it by this index |
//! | `for_update!()`, `in_share_mode!()` | lock the rows until the transaction ends |
//! | `later_of!(column)` | the later of a column's time and a bound one |
//! | `retried!(attempt)` | runs a future; repeats it when the server rolled it back because of a conflict |

/// Runs an operation of a port in its own span, reports its outcome to readiness, and repeats it after a
/// conflict. The attempt is an expression of a future, evaluated for each attempt.
macro_rules! operation {
    ($store:expr, $operation:literal, $collection:literal, $attempt:expr) => {
        $store.call($operation, $collection, async { retried!($attempt) }).await
    };
}

#[allow(clippy::duplicate_mod, reason = "compiled once per engine")]
pub mod mysql;
#[allow(clippy::duplicate_mod, reason = "compiled once per engine")]
pub mod sqlite;

/// A JSON array of numbers, to pass a list to the database as one value.
fn json_numbers(numbers: impl IntoIterator<Item = i64>) -> String {
    serde_json::Value::from_iter(numbers).to_string()
}

#[cfg(test)]
mod tests {
    use super::json_numbers;

    #[test]
    fn numbers_are_a_json_array() {
        assert_eq!(json_numbers([]), "[]");
        assert_eq!(json_numbers([1, -2]), "[1,-2]");
    }
}
