//! Database errors, and which of them allow a retry.

use std::time::Duration;

use sqlx::mysql::MySqlDatabaseError;

use crate::backoff::Backoff;

/// Attempts at one transaction, the first included.
const ATTEMPTS: u32 = 6;
const BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(5), max: Duration::from_millis(200), jitter: 0.8 };

fn number(error: &sqlx::Error) -> Option<u16> {
    let cause = error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?;
    Some(cause.number())
}

/// Whether two transactions conflicted and this one was rolled back: a deadlock (1213) or a lock wait time-out (1205).
/// A retry is safe and mostly succeeds.
pub fn is_conflict(error: &sqlx::Error) -> bool {
    matches!(number(error), Some(1205 | 1213))
}

/// Whether a row was not added because its key exists already.
pub fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|cause| cause.is_unique_violation())
}

/// Whether the server is unreachable, overloaded, or temporarily unfit. Not a fault of the statement.
pub fn is_unreachable(error: &sqlx::Error) -> bool {
    use sqlx::Error as E;
    match error {
        E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed | E::Io(_) | E::Tls(_) => true,
        // A cut connection may leave half a packet.
        E::Protocol(_) | E::BeginFailed => true,
        E::Database(cause) => match number(error) {
            Some(number) => {
                // Shutting down; killed.
                matches!(number, 1053 | 1077 | 1080 | 1927)
                    || known_refusal(number).is_some()
                    || cause.code().is_some_and(|state| state.starts_with("08"))
            }
            None => false,
        },
        _ => false,
    }
}

/// Why a running server refuses all work, by the error's number.
fn known_refusal(number: u16) -> Option<&'static str> {
    match number {
        // InnoDB reports a full disk as "the table is full" (1114); 3, 20 and 1026 are the server's own files.
        1021 | 1114 | 3 | 20 | 1026 => Some("disk full"),
        // From the storage engine: mostly the operating system's error on a file.
        1030 => Some("storage error"),
        1290 | 1792 | 1836 => Some("read-only"),
        1040 | 1041 | 1203 | 1226 => Some("too many connections, or out of memory"),
        1044 | 1045 | 1049 | 1142 => Some("no access"),
        1205 | 1213 => Some("locks are not released"),
        1317 | 1969 | 3024 => Some("statements take too long"),
        _ => None,
    }
}

/// Why a running server refuses the work, for an operator; `None` when the server does not answer.
pub fn refusal(error: &sqlx::Error) -> Option<String> {
    match number(error) {
        Some(1053 | 1077 | 1080 | 1927) | None => None,
        Some(number) => Some(match known_refusal(number) {
            Some(words) => words.to_owned(),
            None => format!("error {number}"),
        }),
    }
}

/// Whether a retry does not help: wrong user, password or database, or an unmet TLS requirement.
pub(super) fn is_permanent_refusal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => true,
        _ => matches!(number(error), Some(1044 | 1045 | 1049 | 1698)),
    }
}

/// Counts the conflicts of one transaction, and decides whether to retry.
#[derive(Debug, Default)]
pub struct Conflicts(u32);

impl Conflicts {
    /// Waits a little and returns `true` when the error is a conflict and attempts are left (6 in all).
    pub async fn again(&mut self, error: &sqlx::Error) -> bool {
        if !is_conflict(error) {
            return false;
        }
        self.0 += 1;
        if self.0 >= ATTEMPTS {
            return false;
        }
        tracing::debug!(%error, attempt = self.0, "transaction rolled back; trying again");
        tokio::time::sleep(BACKOFF.after(self.0)).await;
        true
    }
}
