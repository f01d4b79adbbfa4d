//! Ending sessions in Redis because an account has changed in MySQL.
//!
//! The transaction that changes the account notes what is to be ended; after the commit it is ended
//! and the note removed. A process that stops between the two, or finds Redis away, leaves the note to
//! the task here, which does the same: at least once, and twice is as good as once.

use std::time::Duration;

use tourin_chassis::shutdown::Shutdown;

use super::store::MysqlRedisStore;

/// How often the notes are looked through. One that is there is being dealt with, or was left.
const EVERY: Duration = Duration::from_millis(1_000);

/// The task that settles what was left.
pub struct PendingRevocations(MysqlRedisStore);

impl PendingRevocations {
    /// For what `store` leaves.
    pub fn new(store: MysqlRedisStore) -> Self {
        Self(store)
    }

    /// Looks through the notes until `stop`.
    pub async fn run(self, stop: Shutdown) {
        let mut works = true;
        loop {
            match self.0.settle_pending().await {
                Ok(0) => works = true,
                Ok(settled) => {
                    works = true;
                    tracing::info!(settled, "ended the sessions of accounts that had changed");
                }
                Err(error) => {
                    if works {
                        let error = format!("{:#}", anyhow::Error::from(error));
                        tracing::warn!(error, "sessions of changed accounts are still to be ended");
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
