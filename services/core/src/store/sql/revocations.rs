//! The revocation log, and ending sessions with an entry in it.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_shared_events::mysql::to_micros;

use super::{Connection, Store, time};
use crate::app::StoreError;
use crate::app::revocations::{Revocation, RevocationLog, RevocationPage};
use crate::app::session_store::PRUNED_PER_PASS;
use crate::domain::token::SessionId;

/// Removes sessions with their refresh tokens and appends them to the log, until `until` or until
/// their last access token has expired, whichever is later.
pub(super) async fn end_sessions(
    conn: &mut Connection,
    sessions: &[SessionId],
    until: DateTime<Utc>,
) -> sqlx::Result<()> {
    if sessions.is_empty() {
        return Ok(());
    }
    let mut ended = Vec::with_capacity(sessions.len());
    for session in sessions {
        let id = session.to_string();
        // Locked, so that no access token is issued between the read and the removal.
        let of_tokens: Option<i64> = sqlx::query_scalar(concat!(
            "SELECT revoke_until FROM sessions WHERE id = ?",
            for_update!()
        ))
        .bind(&id)
        .fetch_optional(&mut *conn)
        .await?;
        sqlx::query("DELETE FROM sessions WHERE id = ?").bind(&id).execute(&mut *conn).await?;
        let until = to_micros(until).max(of_tokens.unwrap_or(0));
        ended.push(NewEntry { session: id, until, invalidates: None });
    }
    append(conn, &ended).await
}

/// An entry of the log before it has a number.
struct NewEntry<'a> {
    session: String,
    /// Microseconds since the epoch.
    until: i64,
    invalidates: Option<&'a str>,
}

/// Appends to the log.
async fn append(conn: &mut Connection, entries: &[NewEntry<'_>]) -> sqlx::Result<()> {
    // MySQL assigns numbers before the commit. This lock is held until the commit, so entries become visible in
    // the order of their numbers, and a follower that continues from the last number misses none.
    mysql_only!(
        sqlx::query("SELECT id FROM revocation_log WHERE id = 1 FOR UPDATE")
            .execute(&mut *conn)
            .await?
    );
    for entry in entries {
        sqlx::query("INSERT INTO revocations (session_id, until, invalidates) VALUES (?, ?, ?)")
            .bind(&entry.session)
            .bind(entry.until)
            .bind(entry.invalidates)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// A stored session id; an error if it is malformed.
pub(super) fn session_id(text: &str) -> Result<SessionId, StoreError> {
    SessionId::parse(text)
        .ok_or_else(|| StoreError::Failed(anyhow::anyhow!("a stored session id is malformed")))
}

#[async_trait]
impl RevocationLog for Store {
    async fn page_after(
        &self,
        after: u64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<RevocationPage, StoreError> {
        retried!(async {
            let log_id: String = sqlx::query_scalar(either!(
                sqlite: "SELECT id FROM revocation_log",
                mysql: "SELECT log_id FROM revocation_log",
            ))
            .fetch_one(self.db.reader())
            .await?;
            let rows: Vec<(i64, String, i64, Option<String>)> = sqlx::query_as(
                "SELECT seq, session_id, until, invalidates FROM revocations \
                 WHERE seq > ? AND until > ? ORDER BY seq LIMIT ?",
            )
            // A number above the database's range is after the end of the log.
            .bind(i64::try_from(after).unwrap_or(i64::MAX))
            .bind(to_micros(now))
            .bind(limit)
            .fetch_all(self.db.reader())
            .await?;
            let entries = rows
                .into_iter()
                .map(|(seq, session, until, invalidates)| {
                    Ok(Revocation {
                        seq: seq.unsigned_abs(),
                        session: session_id(&session)?,
                        invalidates,
                        until: time(until)?,
                    })
                })
                .collect::<Result<Vec<_>, StoreError>>()?;
            let next = entries.last().map_or(after, |last| last.seq);
            Ok(RevocationPage { log_id, next, entries })
        })
    }

    async fn append_canary(
        &self,
        canary: SessionId,
        until: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        retried!(async {
            let mut tx = self.db.write().await?;
            let entry = NewEntry {
                session: canary.to_string(),
                until: to_micros(until),
                invalidates: None,
            };
            append(&mut tx, &[entry]).await?;
            tx.commit().await?;
            Ok(())
        })
    }

    async fn invalidate(&self, tags: &[String], until: DateTime<Utc>) -> Result<(), StoreError> {
        let entry = |tag| NewEntry {
            session: SessionId::of_no_session().to_string(),
            until: to_micros(until),
            invalidates: Some(tag),
        };
        let entries: Vec<_> = tags.iter().map(String::as_str).map(entry).collect();
        retried!(async {
            let mut tx = self.db.write().await?;
            append(&mut tx, &entries).await?;
            tx.commit().await?;
            Ok(())
        })
    }

    async fn prune_expired(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        retried!(async {
            let mut tx = self.db.write().await?;
            let pruned = sqlx::query(either!(
                sqlite: "DELETE FROM revocations WHERE seq IN
                         (SELECT seq FROM revocations WHERE until <= ? LIMIT ?)",
                mysql: "DELETE FROM revocations WHERE until <= ? ORDER BY until LIMIT ?",
            ))
            .bind(to_micros(now))
            .bind(PRUNED_PER_PASS)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(pruned.rows_affected())
        })
    }
}
