//! Ends sessions in Redis after an account has changed in MySQL.
//!
//! The transaction that changes the account also stores a note of the sessions to end. After the
//! commit they are ended and the note is removed. If the process stops in between, or Redis is
//! unreachable, the task here does it later: at least once, and idempotently.

use std::time::Duration;

use tourin_chassis::shutdown::Shutdown;

use super::store::MysqlRedisStore;

/// How often the notes are read.
const EVERY: Duration = Duration::from_millis(1_000);

/// The task that settles the remaining notes.
pub struct PendingRevocations(MysqlRedisStore);

impl PendingRevocations {
    /// A task for the notes of `store`.
    pub fn new(store: MysqlRedisStore) -> Self {
        Self(store)
    }

    /// Settles notes until `stop`.
    pub async fn run(self, stop: Shutdown) {
        let mut works = true;
        loop {
            match self.0.settle_pending().await {
                Ok(0) => works = true,
                Ok(settled) => {
                    works = true;
                    tracing::info!(settled, "sessions of changed accounts ended");
                }
                Err(error) => {
                    if works {
                        let error = format!("{:#}", anyhow::Error::from(error));
                        tracing::warn!(error, "the sessions of changed accounts are not ended yet");
                    }
                    works = false;
                }
            }
            tokio::select! {
                () = stop.begun() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }
}
