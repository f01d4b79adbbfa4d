//! The watermark: the number up to which every transaction has ended, so that no lower number can still appear.
//!
//! A missing number belongs to a transaction that has not committed yet, to one that was rolled back, or to a row that
//! was deleted. While no number is missing, there is nothing to check. For a missing number the reader waits a few
//! milliseconds, enough for a commit. Then it locks the gate: every appending transaction holds it shared until its
//! end, so an exclusive lock shows that all of them have ended. A process that has just started locks it too, because
//! it would otherwise read all rows that are kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::rows::unsigned;
use crate::mysql::Database;

/// The most numbers to check before locking the gate instead; more than a relay holds.
const NUMBERS: u32 = 4_096;
/// How often, and at which intervals, a missing number is looked for before the gate is locked.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(2);

/// The number below which this process knows of no missing number. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Watermark(Arc<AtomicU64>);

impl Watermark {
    /// The last result.
    fn known(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Finds a number at or above all numbers that are committed at the time of the call.
    pub(super) async fn find(&self, database: &Database) -> sqlx::Result<u64> {
        let mut goal = None;
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let known = self.known();
            let above: Vec<i64> =
                sqlx::query_scalar("SELECT seq FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?")
                    .bind(known)
                    .bind(NUMBERS)
                    .fetch_all(database.reader())
                    .await?;
            if above.len() >= NUMBERS as usize {
                break;
            }
            let goal = *goal.get_or_insert(above.last().map_or(known, |last| unsigned(*last)));
            let whole = (known + 1..)
                .zip(&above)
                .take_while(|(next, seq)| *next == unsigned(**seq))
                .last()
                .map_or(known, |(next, _)| next);
            self.0.fetch_max(whole, Ordering::AcqRel);
            if whole >= goal {
                return Ok(self.known());
            }
        }
        self.wait_for_open_transactions(database).await
    }

    /// Waits for the transactions that append now; later ones wait meanwhile.
    async fn wait_for_open_transactions(&self, database: &Database) -> sqlx::Result<u64> {
        let mut alone = database.write().await?;
        sqlx::query("SELECT id FROM outbox_gate WHERE id = 1 FOR UPDATE")
            .execute(&mut *alone)
            .await?;
        let last: Option<i64> =
            sqlx::query_scalar("SELECT MAX(seq) FROM outbox").fetch_one(&mut *alone).await?;
        alone.rollback().await?;
        self.0.fetch_max(unsigned(last.unwrap_or(0)), Ordering::AcqRel);
        Ok(self.known())
    }
}
