//! The queue of signals, and the events that were received.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_shared_events::sqlite::to_micros;
use uuid::Uuid;

use super::revocations::session_id;
use super::{Store, time};
use crate::app::StoreError;
use crate::app::signals::{QueuedSignal, SignalCursor, SignalStore};
use crate::domain::token::SessionId;

#[async_trait]
impl SignalStore for Store {
    async fn cursor(&self) -> Result<SignalCursor, StoreError> {
        retried!(async {
            let (log_id, position): (String, i64) =
                sqlx::query_as("SELECT log_id, position FROM signal_cursor WHERE id = 1")
                    .fetch_one(self.db.reader())
                    .await?;
            Ok(SignalCursor { log_id, position: position.unsigned_abs() })
        })
    }

    async fn queue(
        &self,
        (from, to): (&SignalCursor, &SignalCursor),
        sessions: &[SessionId],
        max: u64,
        now: DateTime<Utc>,
    ) -> Result<Option<u64>, StoreError> {
        operation!(self, "queue", "signals", async {
            let mut tx = self.db.write().await?;
            // Locks the row: another process then finds the cursor moved.
            let moved = sqlx::query(
                "UPDATE signal_cursor SET log_id = ?, position = ? \
                 WHERE id = 1 AND log_id = ? AND position = ?",
            )
            .bind(&to.log_id)
            .bind(i64::try_from(to.position).unwrap_or(i64::MAX))
            .bind(&from.log_id)
            .bind(i64::try_from(from.position).unwrap_or(i64::MAX))
            .execute(&mut *tx)
            .await?;
            if moved.rows_affected() == 0 {
                return Ok(None);
            }
            let queued: i64 =
                sqlx::query_scalar("SELECT COUNT(*) FROM signal_queue").fetch_one(&mut *tx).await?;
            let room = usize::try_from(max.saturating_sub(queued.unsigned_abs()));
            let room = room.unwrap_or(usize::MAX).min(sessions.len());
            for session in &sessions[..room] {
                sqlx::query(
                    "INSERT INTO signal_queue (jti, session_id, noted_at, due_at) \
                     VALUES (?, ?, ?, ?)",
                )
                .bind(Uuid::new_v4().to_string())
                .bind(session.to_string())
                .bind(to_micros(now))
                .bind(to_micros(now))
                .execute(&mut *tx)
                .await?;
            }
            tx.commit().await?;
            Ok(Some((sessions.len() - room) as u64))
        })
    }

    async fn claim(
        &self,
        limit: u32,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> Result<Vec<QueuedSignal>, StoreError> {
        // Mostly nothing is due, which a read shows without a lock.
        let due: Option<i64> = retried!(async {
            Ok::<_, StoreError>(
                sqlx::query_scalar("SELECT seq FROM signal_queue WHERE due_at <= ? LIMIT 1")
                    .bind(to_micros(now))
                    .fetch_optional(self.db.reader())
                    .await?,
            )
        })?;
        if due.is_none() {
            return Ok(Vec::new());
        }
        operation!(self, "claim", "signals", async {
            let mut tx = self.db.write().await?;
            let rows: Vec<(i64, String, String, i64, i64)> = sqlx::query_as(concat!(
                "SELECT seq, jti, session_id, noted_at, attempts FROM signal_queue \
                 WHERE due_at <= ? ORDER BY due_at, seq LIMIT ?",
                for_update!()
            ))
            .bind(to_micros(now))
            .bind(limit)
            .fetch_all(&mut *tx)
            .await?;
            let mut claimed = Vec::with_capacity(rows.len());
            for (seq, jti, session, noted_at, attempts) in rows {
                sqlx::query(
                    "UPDATE signal_queue SET due_at = ?, attempts = attempts + 1 WHERE seq = ?",
                )
                .bind(to_micros(until))
                .bind(seq)
                .execute(&mut *tx)
                .await?;
                claimed.push(QueuedSignal {
                    seq,
                    jti,
                    session: session_id(&session)?,
                    noted_at: time(noted_at)?,
                    attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
                });
            }
            tx.commit().await?;
            Ok(claimed)
        })
    }

    async fn remove(&self, seq: i64) -> Result<(), StoreError> {
        operation!(self, "delete", "signals", async {
            let mut tx = self.db.write().await?;
            sqlx::query("DELETE FROM signal_queue WHERE seq = ?")
                .bind(seq)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            Ok(())
        })
    }

    async fn postpone(&self, seq: i64, due_at: DateTime<Utc>) -> Result<(), StoreError> {
        operation!(self, "postpone", "signals", async {
            let mut tx = self.db.write().await?;
            sqlx::query("UPDATE signal_queue SET due_at = ? WHERE seq = ?")
                .bind(to_micros(due_at))
                .bind(seq)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            Ok(())
        })
    }

    async fn prune_signals(
        &self,
        before: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<(u64, u64), StoreError> {
        operation!(self, "prune", "signals", async {
            let mut tx = self.db.write().await?;
            let pruned = sqlx::query("DELETE FROM signal_queue WHERE noted_at <= ?")
                .bind(to_micros(before))
                .execute(&mut *tx)
                .await?;
            sqlx::query("DELETE FROM signals_received WHERE kept_until <= ?")
                .bind(to_micros(now))
                .execute(&mut *tx)
                .await?;
            let left: i64 =
                sqlx::query_scalar("SELECT COUNT(*) FROM signal_queue").fetch_one(&mut *tx).await?;
            tx.commit().await?;
            Ok((pruned.rows_affected(), left.unsigned_abs()))
        })
    }

    async fn is_received(&self, digest: &[u8; 32]) -> Result<bool, StoreError> {
        retried!(async {
            let known: Option<i64> =
                sqlx::query_scalar("SELECT kept_until FROM signals_received WHERE digest = ?")
                    .bind(digest.as_slice())
                    .fetch_optional(self.db.reader())
                    .await?;
            Ok(known.is_some())
        })
    }

    async fn note_received(
        &self,
        digest: &[u8; 32],
        until: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        operation!(self, "note", "signals", async {
            let mut tx = self.db.write().await?;
            sqlx::query(either!(
                sqlite: "INSERT INTO signals_received (digest, kept_until) VALUES (?, ?)
                         ON CONFLICT DO NOTHING",
                mysql: "INSERT IGNORE INTO signals_received (digest, kept_until) VALUES (?, ?)",
            ))
            .bind(digest.as_slice())
            .bind(to_micros(until))
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(())
        })
    }
}
