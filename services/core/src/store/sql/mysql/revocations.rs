//! The revocation log, and ending sessions so that it knows.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlConnection;
use tourin_shared_events::mysql::to_micros;

use super::{MysqlStore, time};
use crate::app::StoreError;
use crate::app::revocations::{Revocation, RevocationLog, RevocationPage};
use crate::app::sessions::PRUNED_PER_PASS;
use crate::domain::token::SessionId;

/// Removes sessions with their refresh tokens and appends them to the log.
pub(super) async fn end_sessions(
    conn: &mut MySqlConnection,
    sessions: &[SessionId],
    until: DateTime<Utc>,
) -> sqlx::Result<()> {
    if sessions.is_empty() {
        return Ok(());
    }
    for session in sessions {
        let id = session.to_string();
        sqlx::query("DELETE FROM sessions WHERE id = ?").bind(&id).execute(&mut *conn).await?;
    }
    // Numbers are given before the commit. Held until then, this lock makes the order of numbers
    // the order in which they appear, so that a follower who keeps his place misses none.
    sqlx::query("SELECT id FROM revocation_log WHERE id = 1 FOR UPDATE")
        .execute(&mut *conn)
        .await?;
    for session in sessions {
        sqlx::query("INSERT INTO revocations (session_id, until) VALUES (?, ?)")
            .bind(session.to_string())
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

impl MysqlStore {
    async fn read_revocations(
        &self,
        after: u64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<RevocationPage, StoreError> {
        let log_id: String = sqlx::query_scalar("SELECT log_id FROM revocation_log WHERE id = 1")
            .fetch_one(self.db.reader())
            .await?;
        let rows: Vec<(i64, String, i64)> = sqlx::query_as(
            "SELECT seq, session_id, until FROM revocations \
             WHERE seq > ? AND until > ? ORDER BY seq LIMIT ?",
        )
        // A place beyond what is counted to is beyond the end of the log.
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
}

#[async_trait]
impl RevocationLog for MysqlStore {
    async fn page_after(
        &self,
        after: u64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<RevocationPage, StoreError> {
        retried!(self.read_revocations(after, limit, now))
    }

    async fn prune_expired(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        retried!(async {
            let pruned =
                sqlx::query("DELETE FROM revocations WHERE until <= ? ORDER BY until LIMIT ?")
                    .bind(to_micros(now))
                    .bind(PRUNED_PER_PASS)
                    .execute(self.db.writer())
                    .await?;
            Ok(pruned.rows_affected())
        })
    }
}
