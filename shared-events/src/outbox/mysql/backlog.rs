//! The bound on what waits, and how much that is.

use super::{signed, unsigned};
use crate::mysql::{Database, from_micros};
use crate::outbox::Depth;
use crate::outbox::backlog::refused_from;

pub(super) async fn depth(database: &Database) -> anyhow::Result<Depth> {
    let (pending, oldest, rejected): (i64, Option<i64>, i64) = sqlx::query_as(
        "SELECT COUNT(*),
             (SELECT recorded_at FROM outbox FORCE INDEX (outbox_waiting)
              WHERE published_at IS NULL AND rejected_at IS NULL ORDER BY seq LIMIT 1),
             (SELECT COUNT(*) FROM outbox FORCE INDEX (outbox_waiting)
              WHERE published_at IS NULL AND rejected_at > 0)
         FROM outbox FORCE INDEX (outbox_waiting) WHERE published_at IS NULL AND rejected_at IS NULL",
    )
    .fetch_one(database.reader())
    .await?;
    Ok(Depth {
        pending: unsigned(pending),
        oldest: oldest.map(from_micros).transpose()?,
        rejected: unsigned(rejected),
    })
}

pub(super) async fn keep_bound(
    database: &Database,
    max_pending: Option<u64>,
) -> sqlx::Result<bool> {
    // All numbers from the oldest that waits: at least as many as wait. Two steps into indexes.
    let (full, span): (bool, Option<i64>) = sqlx::query_as(
        "SELECT is_full <> 0, (SELECT MAX(seq) FROM outbox)
             - (SELECT seq FROM outbox FORCE INDEX (outbox_waiting)
                WHERE published_at IS NULL AND rejected_at IS NULL ORDER BY seq LIMIT 1) + 1
         FROM outbox_gate WHERE id = 1",
    )
    .fetch_one(database.reader())
    .await?;
    let now = match max_pending.map(|max| refused_from(max, full)) {
        Some(bound) if span.is_some_and(|span| unsigned(span) >= bound) => {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT COUNT(*) FROM (SELECT 1 FROM outbox FORCE INDEX (outbox_waiting)
                 WHERE published_at IS NULL AND rejected_at IS NULL LIMIT ?) AS w",
            )
            .bind(signed(bound))
            .fetch_one(database.reader())
            .await?;
            unsigned(waiting) >= bound
        }
        _ => false,
    };
    if now != full {
        // Waits for those who are appending right now.
        sqlx::query("UPDATE outbox_gate SET is_full = ? WHERE id = 1")
            .bind(now)
            .execute(database.writer())
            .await?;
    }
    Ok(now)
}
