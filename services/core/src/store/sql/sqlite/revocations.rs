//! The revocation log, and ending sessions so that it knows.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use tourin_shared_events::sqlite::to_micros;

use super::{SqliteStore, time};
use crate::app::StoreError;
use crate::app::revocations::{Revocation, RevocationLog, RevocationPage};
use crate::app::sessions::PRUNED_PER_PASS;
use crate::domain::token::SessionId;

/// Removes sessions with their refresh tokens and appends them to the log.
pub(super) async fn end_sessions(
    conn: &mut SqliteConnection,
    sessions: &[SessionId],
    until: DateTime<Utc>,
) -> sqlx::Result<()> {
    for session in sessions {
        let id = session.to_string();
        sqlx::query("DELETE FROM sessions WHERE id = ?1").bind(&id).execute(&mut *conn).await?;
        sqlx::query("INSERT INTO revocations (session_id, until) VALUES (?1, ?2)")
            .bind(&id)
            .bind(to_micros(until))
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// A stored session id; one that does not read is a fault.
pub(super) fn session_id(text: &str) -> Result<SessionId, StoreError> {
    SessionId::parse(text)
        .ok_or_else(|| StoreError::Failed(anyhow::anyhow!("a stored session id does not read")))
}

#[async_trait]
impl RevocationLog for SqliteStore {
    async fn page_after(
        &self,
        after: u64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<RevocationPage, StoreError> {
        let (log_id,): (String,) =
            sqlx::query_as("SELECT id FROM revocation_log").fetch_one(self.db.reader()).await?;
        let rows: Vec<(i64, String, i64)> = sqlx::query_as(
            "SELECT seq, session_id, until FROM revocations \
             WHERE seq > ?1 AND until > ?2 ORDER BY seq LIMIT ?3",
        )
        // A place beyond what SQLite counts to is beyond the end of the log.
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(to_micros(now))
        .bind(limit)
        .fetch_all(self.db.reader())
        .await?;
        let entries = rows
            .into_iter()
            .map(|(seq, session, until)| {
                Ok(Revocation {
                    seq: seq.unsigned_abs(),
                    session: session_id(&session)?,
                    until: time(until)?,
                })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        let next = entries.last().map_or(after, |last| last.seq);
        Ok(RevocationPage { log_id, next, entries })
    }

    async fn prune_expired(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        let mut tx = self.db.write().await?;
        let pruned = sqlx::query(
            "DELETE FROM revocations WHERE seq IN
                 (SELECT seq FROM revocations WHERE until <= ?1 LIMIT ?2)",
        )
        .bind(to_micros(now))
        .bind(PRUNED_PER_PASS)
        .execute(&mut *tx)
        .await?
        .rows_affected();
        tx.commit().await?;
        Ok(pruned)
    }
}
