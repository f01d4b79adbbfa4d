//! What went wrong on the way to the database, and what may be tried again.

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

/// Whether two transactions were in each other's way and this one was rolled back: a deadlock (1213), or a lock waited for
/// in vain (1205). Doing the same again is safe and mostly succeeds.
pub fn is_conflict(error: &sqlx::Error) -> bool {
    matches!(number(error), Some(1205 | 1213))
}

/// Whether a row was not added because its key is there already.
pub fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|cause| cause.is_unique_violation())
}

/// Whether the server is out of reach, overloaded, or for the moment not what it should be; not a fault of the statement.
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

/// Why a server that answers does not do what anybody asks, by the error's number.
fn known_refusal(number: u16) -> Option<&'static str> {
    match number {
        // InnoDB says "the table is full" (1114) of a full disk; 3, 20 and 1026 are the server's own files.
        1021 | 1114 | 3 | 20 | 1026 => Some("disk full"),
        // From the storage engine: mostly what the system said of a file.
        1030 => Some("storage error"),
        1290 | 1792 | 1836 => Some("read-only"),
        1040 | 1041 | 1203 | 1226 => Some("too many connections, or out of memory"),
        1044 | 1045 | 1049 | 1142 => Some("no access"),
        1205 | 1213 => Some("locks are not released"),
        1317 | 1969 | 3024 => Some("statements take too long"),
        _ => None,
    }
}

/// Why a server that answers refuses the work, in words for an operator; `None` for one that does not answer.
pub fn refusal(error: &sqlx::Error) -> Option<String> {
    match number(error) {
        Some(1053 | 1077 | 1080 | 1927) | None => None,
        Some(number) => Some(match known_refusal(number) {
            Some(words) => words.to_owned(),
            None => format!("error {number}"),
        }),
    }
}

/// Whether asking again will not help: wrong user, password or database, or a TLS demand that cannot be met.
pub(super) fn is_refused_for_good(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => true,
        _ => matches!(number(error), Some(1044 | 1045 | 1049 | 1698)),
    }
}

/// Counts how often one transaction met a conflict, and says whether to try again.
#[derive(Debug, Default)]
pub struct Conflicts(u32);

impl Conflicts {
    /// Waits a little and answers `true` when the error is a conflict and attempts are left (6 in all).
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
