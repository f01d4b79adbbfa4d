//! Account changes when sessions are in Redis: the account's epoch, and the notes of sessions to end.
//!
//! Older sessions in this database are removed with the change too. Otherwise they would become valid
//! again if sessions move back to this database.

use chrono::{DateTime, Utc};
use sqlx::Row as _;
use tourin_shared_events::mysql::to_micros;

use super::accounts::{remove_member, replace_password};
use super::member_content::lock_member;
use super::revocations::session_id;
use super::{Connection, MysqlStore, Row, member_content, time};
use crate::app::StoreError;
use crate::app::accounts::PasswordChange;
use crate::app::session_store::OpenSession;
use crate::domain::account::MemberId;
use crate::domain::token::{SessionId, TokenHash};

/// Notes per read.
const PENDING: i64 = 100;

/// A note of sessions to end because the account has changed.
#[derive(Clone, Debug)]
pub(in crate::store) struct PendingRevocation {
    /// The id of the note's row.
    pub(in crate::store) id: u64,
    pub(in crate::store) member: MemberId,
    /// Sessions below this epoch end.
    pub(in crate::store) epoch: i64,
    /// The session that is kept.
    pub(in crate::store) keep: Option<KeptSession>,
    /// When the account changed.
    pub(in crate::store) noted_at: DateTime<Utc>,
    /// Until when the revocations are kept, if the sessions end at `noted_at`.
    pub(in crate::store) revoked_until: DateTime<Utc>,
}

/// The session that is kept, with its only refresh token from now on.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct KeptSession {
    pub(in crate::store) session: SessionId,
    /// `None` in notes of a version that kept the tokens.
    pub(in crate::store) token: Option<TokenHash>,
}

/// Stores a note to end the member's sessions below the account's epoch.
async fn note(
    conn: &mut Connection,
    member: &MemberId,
    keep: Option<KeptSession>,
    revoked_until: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<PendingRevocation, StoreError> {
    sqlx::query("DELETE FROM sessions WHERE member_id = ?")
        .bind(member.as_str())
        .execute(&mut *conn)
        .await?;
    sqlx::query("UPDATE members SET sessions_epoch = sessions_epoch + 1 WHERE id = ?")
        .bind(member.as_str())
        .execute(&mut *conn)
        .await?;
    let epoch: i64 = sqlx::query_scalar("SELECT sessions_epoch FROM members WHERE id = ?")
        .bind(member.as_str())
        .fetch_one(&mut *conn)
        .await?;
    let noted = sqlx::query(
        "INSERT INTO session_endings \
             (member_id, epoch, kept_session, kept_token, noted_at, revoked_until) \
         VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(member.as_str())
    .bind(epoch)
    .bind(keep.map(|keep| keep.session.to_string()))
    .bind(keep.and_then(|keep| keep.token).map(|token| token.0.to_vec()))
    .bind(to_micros(now))
    .bind(to_micros(revoked_until))
    .execute(conn)
    .await?;
    let member = member.clone();
    Ok(PendingRevocation {
        id: noted.last_insert_id(),
        member,
        epoch,
        keep,
        noted_at: now,
        revoked_until,
    })
}

impl MysqlStore {
    /// The account's epoch if it still has the verified password. Replaces the hash if a new one is
    /// given.
    pub(in crate::store) async fn verified_epoch(
        &self,
        open: &OpenSession,
    ) -> Result<Option<i64>, StoreError> {
        operation!(self, "select", "accounts", async {
            let known: Option<(String, i64)> =
                sqlx::query_as("SELECT password_hash, sessions_epoch FROM members WHERE id = ?")
                    .bind(open.member.as_str())
                    .fetch_optional(self.db.reader())
                    .await?;
            let Some((hash, epoch)) = known.filter(|(hash, _)| *hash == open.verified.0) else {
                return Ok(None);
            };
            let Some(fresh) = &open.rehashed else {
                return Ok(Some(epoch));
            };
            let replaced = sqlx::query(
                "UPDATE members SET password_hash = ? WHERE id = ? AND password_hash = ?",
            )
            .bind(&fresh.0)
            .bind(open.member.as_str())
            .bind(hash)
            .execute(self.db.writer())
            .await?;
            Ok((replaced.rows_affected() > 0).then_some(epoch))
        })
    }

    /// Raises the account's epoch to at least `known` and returns it, if the account still has the
    /// verified password.
    pub(in crate::store) async fn raise_epoch(
        &self,
        open: &OpenSession,
        known: i64,
    ) -> Result<Option<i64>, StoreError> {
        let hash = open.rehashed.as_ref().unwrap_or(&open.verified);
        operation!(self, "raise epoch", "accounts", async {
            let mut tx = self.db.write().await?;
            let raised = sqlx::query(
                "UPDATE members SET sessions_epoch = GREATEST(sessions_epoch, ?) \
                 WHERE id = ? AND password_hash = ?",
            )
            .bind(known)
            .bind(open.member.as_str())
            .bind(&hash.0)
            .execute(&mut *tx)
            .await?;
            if raised.rows_affected() == 0 {
                return Ok(None);
            }
            let epoch = sqlx::query_scalar("SELECT sessions_epoch FROM members WHERE id = ?")
                .bind(open.member.as_str())
                .fetch_one(&mut *tx)
                .await?;
            tx.commit().await?;
            Ok(Some(epoch))
        })
    }

    /// Changes the password and stores the note; `None` if the account is gone or has another
    /// password.
    pub(in crate::store) async fn change_password_and_note(
        &self,
        change: &PasswordChange,
    ) -> Result<Option<PendingRevocation>, StoreError> {
        operation!(self, "change password", "accounts", async {
            let mut tx = self.db.write().await?;
            if !replace_password(&mut tx, change).await? {
                return Ok(None);
            }
            let keep = Some(KeptSession { session: change.keep, token: Some(change.token) });
            let pending =
                note(&mut tx, &change.member, keep, change.revoked_until, change.now).await?;
            tx.commit().await?;
            Ok(Some(pending))
        })
    }

    /// Removes the account and the member's content, and stores the note; `None` if the account does
    /// not exist.
    pub(in crate::store) async fn delete_and_note(
        &self,
        id: &MemberId,
        revoked_until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Option<PendingRevocation>, StoreError> {
        operation!(self, "delete", "accounts", async {
            let mut tx = self.db.write().await?;
            if !lock_member(&mut tx, id.as_str()).await? {
                return Ok(None);
            }
            let events = member_content::erase(&mut tx, id.as_str(), now).await?;
            let pending = note(&mut tx, id, None, revoked_until, now).await?;
            remove_member(&mut tx, id, events, now).await?;
            tx.commit().await?;
            self.committed();
            Ok(Some(pending))
        })
    }

    /// The oldest notes.
    pub(in crate::store) async fn pending_revocations(
        &self,
    ) -> Result<Vec<PendingRevocation>, StoreError> {
        let rows = retried!(async {
            Ok(sqlx::query(
                "SELECT id, member_id, epoch, kept_session, kept_token, noted_at, revoked_until \
                 FROM session_endings ORDER BY id LIMIT ?",
            )
            .bind(PENDING)
            .fetch_all(self.db.reader())
            .await?)
        })?;
        rows.iter().map(pending).collect()
    }

    /// Removes a note after its sessions are ended.
    pub(in crate::store) async fn forget_pending(
        &self,
        pending: &PendingRevocation,
    ) -> Result<(), StoreError> {
        operation!(self, "delete", "endings", async {
            sqlx::query("DELETE FROM session_endings WHERE id = ?")
                .bind(pending.id)
                .execute(self.db.writer())
                .await?;
            Ok(())
        })
    }
}

fn pending(row: &Row) -> Result<PendingRevocation, StoreError> {
    let kept = row.try_get::<Option<&str>, _>("kept_session")?.map(session_id).transpose()?;
    let token: Option<Vec<u8>> = row.try_get("kept_token")?;
    let token = token.and_then(|token| token.try_into().ok()).map(TokenHash);
    Ok(PendingRevocation {
        id: row.try_get("id")?,
        member: MemberId::trusted(row.try_get::<String, _>("member_id")?),
        epoch: row.try_get("epoch")?,
        keep: kept.map(|session| KeptSession { session, token }),
        noted_at: time(row.try_get("noted_at")?)?,
        revoked_until: time(row.try_get("revoked_until")?)?,
    })
}
