//! Sessions and their refresh tokens.
//!
//! Whoever changes the tokens of a session locks the session's row first.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::MySqlExecutor;
use sqlx::mysql::MySqlConnection;
use tourin_shared_events::mysql::to_micros;

use super::revocations::{end_sessions, session_id};
use super::{MysqlStore, time};
use crate::app::StoreError;
use crate::app::sessions::{OpenSession, Opened, PRUNED_PER_PASS, Rotation, SessionStore};
use crate::domain::account::{Account, Email, MemberId, Name};
use crate::domain::session::{SessionPolicy, SessionTimes, TokenPlace, Verdict};
use crate::domain::token::{Salt, SessionId, TokenHash};

/// Sessions removed per transaction by the pruner.
const PRUNED_AT_ONCE: i64 = 500;
/// How many such transactions make a pass.
const BATCHES_PER_PASS: i64 = PRUNED_PER_PASS / PRUNED_AT_ONCE;

/// The member's sessions, the newest first.
pub(super) async fn sessions_of(
    executor: impl MySqlExecutor<'_>,
    member: &MemberId,
) -> Result<Vec<SessionId>, StoreError> {
    let rows: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM sessions WHERE member_id = ? ORDER BY started_at DESC, id DESC",
    )
    .bind(member.as_str())
    .fetch_all(executor)
    .await?;
    rows.iter().map(|id| session_id(id)).collect()
}

/// A refresh token in its family.
struct Presented {
    generation: i64,
    place: TokenPlace,
    salt: Option<Salt>,
    session: SessionId,
    member: MemberId,
    times: SessionTimes,
}

#[derive(sqlx::FromRow)]
struct PresentedRow {
    generation: i64,
    used_at: Option<i64>,
    salt: Option<Vec<u8>>,
    session_id: String,
    member_id: String,
    started_at: i64,
    renewed_at: i64,
    current_generation: i64,
}

/// The session that a token belongs to.
async fn session_of(
    executor: impl MySqlExecutor<'_>,
    hash: &TokenHash,
) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar("SELECT session_id FROM refresh_tokens WHERE hash = ?")
        .bind(hash.0.as_slice())
        .fetch_optional(executor)
        .await
}

async fn presented(
    executor: impl MySqlExecutor<'_>,
    hash: &TokenHash,
) -> Result<Option<Presented>, StoreError> {
    let row: Option<PresentedRow> = sqlx::query_as(
        "SELECT t.generation, t.used_at, t.salt, t.session_id, s.member_id, s.started_at, \
                s.renewed_at, s.generation AS current_generation \
         FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id WHERE t.hash = ?",
    )
    .bind(hash.0.as_slice())
    .fetch_optional(executor)
    .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let salt = row.salt.and_then(|salt| salt.try_into().ok()).map(Salt);
    let place = match (row.used_at, &salt) {
        (None, _) => TokenPlace::Current,
        (Some(at), Some(_)) if row.generation + 1 == row.current_generation => {
            TokenPlace::JustUsed { at: time(at)? }
        }
        // Also one whose salt is forgotten: its successor cannot be given again.
        _ => TokenPlace::UsedBefore,
    };
    Ok(Some(Presented {
        generation: row.generation,
        place,
        salt,
        session: session_id(&row.session_id)?,
        member: MemberId::trusted(row.member_id),
        times: SessionTimes {
            started_at: time(row.started_at)?,
            renewed_at: time(row.renewed_at)?,
        },
    }))
}

async fn insert_token(
    conn: &mut MySqlConnection,
    session: SessionId,
    token: &TokenHash,
    generation: i64,
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO refresh_tokens (hash, session_id, generation) VALUES (?, ?, ?)")
        .bind(token.0.as_slice())
        .bind(session.to_string())
        .bind(generation)
        .execute(conn)
        .await?;
    Ok(())
}

/// Uses the presented token up and makes its successor current.
async fn advance(
    conn: &mut MySqlConnection,
    used: &Presented,
    salt: &Salt,
    successor: &TokenHash,
    remembered: u32,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    let session = used.session.to_string();
    let next = used.generation + 1;
    // The token before this one leads nowhere any more.
    sqlx::query(
        "UPDATE refresh_tokens SET salt = NULL, salted_at = NULL \
         WHERE session_id = ? AND generation = ?",
    )
    .bind(&session)
    .bind(used.generation - 1)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "UPDATE refresh_tokens SET used_at = ?, salted_at = ?, salt = ? \
         WHERE session_id = ? AND generation = ?",
    )
    .bind(to_micros(now))
    .bind(to_micros(now))
    .bind(salt.0.as_slice())
    .bind(&session)
    .bind(used.generation)
    .execute(&mut *conn)
    .await?;
    insert_token(conn, used.session, successor, next).await?;
    sqlx::query("UPDATE sessions SET generation = ?, renewed_at = ? WHERE id = ?")
        .bind(next)
        .bind(to_micros(now))
        .bind(&session)
        .execute(&mut *conn)
        .await?;
    sqlx::query("DELETE FROM refresh_tokens WHERE session_id = ? AND generation < ?")
        .bind(&session)
        .bind(next - i64::from(remembered.max(1)))
        .execute(&mut *conn)
        .await?;
    Ok(())
}

impl MysqlStore {
    async fn try_open(
        &self,
        open: &OpenSession,
        policy: &SessionPolicy,
    ) -> Result<Opened, StoreError> {
        let mut tx = self.db.write().await?;
        // Locked: of many who log in at once, each counts the sessions of those before.
        let known: Option<String> =
            sqlx::query_scalar("SELECT password_hash FROM members WHERE id = ? FOR UPDATE")
                .bind(open.member.as_str())
                .fetch_optional(&mut *tx)
                .await?;
        if known.is_none_or(|hash| hash != open.verified.0) {
            return Ok(Opened::Stale);
        }
        if let Some(fresh) = &open.rehashed {
            sqlx::query("UPDATE members SET password_hash = ? WHERE id = ?")
                .bind(&fresh.0)
                .bind(open.member.as_str())
                .execute(&mut *tx)
                .await?;
        }
        let mut ended = sessions_of(&mut *tx, &open.member).await?;
        ended.drain(..ended.len().min(policy.per_member.max(1) - 1));
        sqlx::query(
            "INSERT INTO sessions (id, member_id, started_at, renewed_at, generation) \
             VALUES (?, ?, ?, ?, 0)",
        )
        .bind(open.session.to_string())
        .bind(open.member.as_str())
        .bind(to_micros(open.now))
        .bind(to_micros(open.now))
        .execute(&mut *tx)
        .await?;
        insert_token(&mut tx, open.session, &open.token, 0).await?;
        end_sessions(&mut tx, &ended, policy.revoked_until(open.now)).await?;
        tx.commit().await?;
        Ok(Opened::Open { ended })
    }

    async fn try_rotate(
        &self,
        hash: &TokenHash,
        (salt, successor): (&Salt, &TokenHash),
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Rotation, StoreError> {
        // Made-up tokens must not take up the writing connections.
        let Some(session) = session_of(self.db.reader(), hash).await? else {
            return Ok(Rotation::Unknown);
        };
        let mut tx = self.db.write().await?;
        sqlx::query("SELECT id FROM sessions WHERE id = ? FOR UPDATE")
            .bind(session)
            .execute(&mut *tx)
            .await?;
        let Some(token) = presented(&mut *tx, hash).await? else {
            return Ok(Rotation::Unknown);
        };
        let rotation = match policy.judge(&token.times, token.place, now) {
            Verdict::Rotate => {
                advance(&mut tx, &token, salt, successor, policy.remembered_tokens, now).await?;
                Rotation::Rotated {
                    member: token.member,
                    session: token.session,
                    times: SessionTimes { renewed_at: now, ..token.times },
                }
            }
            Verdict::Repeat => {
                let Some(salt) = token.salt else {
                    return Err(StoreError::Failed(anyhow::anyhow!(
                        "a token in its grace has no salt"
                    )));
                };
                return Ok(Rotation::Repeated {
                    member: token.member,
                    session: token.session,
                    times: token.times,
                    salt,
                });
            }
            Verdict::Reuse => {
                end_sessions(&mut tx, &[token.session], policy.revoked_until(now)).await?;
                Rotation::Reused { session: token.session }
            }
            // Left to the pruner, whose clock is checked.
            Verdict::Expired => return Ok(Rotation::Expired),
        };
        tx.commit().await?;
        Ok(rotation)
    }

    async fn try_touch(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<SessionTimes>, StoreError> {
        let id = session.to_string();
        let mut tx = self.db.write().await?;
        let row: Option<(i64, i64)> = sqlx::query_as(
            "SELECT started_at, renewed_at FROM sessions \
             WHERE id = ? AND member_id = ? AND started_at > ? AND renewed_at > ? FOR UPDATE",
        )
        .bind(&id)
        .bind(member.as_str())
        .bind(to_micros(now - policy.absolute))
        .bind(to_micros(now - policy.idle))
        .fetch_optional(&mut *tx)
        .await?;
        let Some((started, renewed)) = row else {
            return Ok(None);
        };
        let times =
            SessionTimes { started_at: time(started)?, renewed_at: now.max(time(renewed)?) };
        sqlx::query("UPDATE sessions SET renewed_at = ? WHERE id = ?")
            .bind(to_micros(times.renewed_at))
            .bind(&id)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Some(times))
    }

    async fn try_end(
        &self,
        member: &MemberId,
        session: SessionId,
        everywhere: bool,
        revoked_until: DateTime<Utc>,
    ) -> Result<Vec<SessionId>, StoreError> {
        let mut tx = self.db.write().await?;
        let mut ended = vec![session];
        if everywhere {
            let open = sessions_of(&mut *tx, member).await?;
            if open.contains(&session) {
                ended.extend(open.into_iter().filter(|other| *other != session));
            }
        }
        end_sessions(&mut tx, &ended, revoked_until).await?;
        tx.commit().await?;
        Ok(ended)
    }

    /// Removes some of the sessions whose time in `column` is no later than `until`.
    async fn try_prune(
        &self,
        column: &'static str,
        until: DateTime<Utc>,
    ) -> Result<(u64, bool), StoreError> {
        // Found without a lock on what is still open, and looked at again when it is deleted.
        let (find, delete) = match column {
            "started_at" => (
                "SELECT id FROM sessions WHERE started_at <= ? ORDER BY started_at LIMIT ?",
                "DELETE FROM sessions WHERE id = ? AND started_at <= ?",
            ),
            _ => (
                "SELECT id FROM sessions WHERE renewed_at <= ? ORDER BY renewed_at LIMIT ?",
                "DELETE FROM sessions WHERE id = ? AND renewed_at <= ?",
            ),
        };
        let over: Vec<String> = sqlx::query_scalar(find)
            .bind(to_micros(until))
            .bind(PRUNED_AT_ONCE)
            .fetch_all(self.db.reader())
            .await?;
        let mut tx = self.db.write().await?;
        let mut pruned = 0;
        for id in &over {
            let deleted =
                sqlx::query(delete).bind(id).bind(to_micros(until)).execute(&mut *tx).await?;
            pruned += deleted.rows_affected();
        }
        tx.commit().await?;
        Ok((pruned, i64::try_from(over.len()).unwrap_or(i64::MAX) == PRUNED_AT_ONCE))
    }

    async fn try_forget_salts(&self, until: DateTime<Utc>) -> Result<bool, StoreError> {
        // A session that is being renewed right now is left for the next time.
        let mut tx = self.db.write().await?;
        let tokens: Vec<(String, i64)> = sqlx::query_as(
            "SELECT session_id, generation FROM refresh_tokens \
             WHERE salted_at <= ? ORDER BY salted_at LIMIT ? FOR UPDATE SKIP LOCKED",
        )
        .bind(to_micros(until))
        .bind(PRUNED_AT_ONCE)
        .fetch_all(&mut *tx)
        .await?;
        for (session, generation) in &tokens {
            sqlx::query(
                "UPDATE refresh_tokens SET salt = NULL, salted_at = NULL \
                 WHERE session_id = ? AND generation = ?",
            )
            .bind(session)
            .bind(generation)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(i64::try_from(tokens.len()).unwrap_or(i64::MAX) == PRUNED_AT_ONCE)
    }
}

#[async_trait]
impl SessionStore for MysqlStore {
    async fn open(&self, open: OpenSession, policy: &SessionPolicy) -> Result<Opened, StoreError> {
        retried!(self.try_open(&open, policy))
    }

    async fn rotate(
        &self,
        hash: &TokenHash,
        salt: &Salt,
        successor: &TokenHash,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Rotation, StoreError> {
        retried!(self.try_rotate(hash, (salt, successor), policy, now))
    }

    async fn touch(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<SessionTimes>, StoreError> {
        retried!(self.try_touch(member, session, policy, now))
    }

    async fn session_of(
        &self,
        hash: &TokenHash,
    ) -> Result<Option<(MemberId, SessionId)>, StoreError> {
        let token = retried!(presented(self.db.reader(), hash))?;
        Ok(token.map(|token| (token.member, token.session)))
    }

    async fn account(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<Account>, StoreError> {
        let row: Option<(String, String)> = retried!(async {
            Ok(sqlx::query_as(
                "SELECT m.name, m.email FROM sessions s JOIN members m ON m.id = s.member_id \
                 WHERE s.id = ? AND s.member_id = ? AND s.started_at > ? AND s.renewed_at > ?",
            )
            .bind(session.to_string())
            .bind(member.as_str())
            .bind(to_micros(now - policy.absolute))
            .bind(to_micros(now - policy.idle))
            .fetch_optional(self.db.reader())
            .await?)
        })?;
        Ok(row.map(|(name, email)| Account {
            id: member.clone(),
            name: Name::trusted(name),
            email: Email::trusted(email),
        }))
    }

    async fn end(
        &self,
        member: &MemberId,
        session: SessionId,
        everywhere: bool,
        revoked_until: DateTime<Utc>,
    ) -> Result<Vec<SessionId>, StoreError> {
        retried!(self.try_end(member, session, everywhere, revoked_until))
    }

    async fn prune(&self, policy: &SessionPolicy, now: DateTime<Utc>) -> Result<u64, StoreError> {
        let mut pruned = 0;
        let mut batches = 0..BATCHES_PER_PASS;
        for (column, until) in
            [("started_at", now - policy.absolute), ("renewed_at", now - policy.idle)]
        {
            while batches.next().is_some() {
                let (removed, more) = retried!(self.try_prune(column, until))?;
                pruned += removed;
                if !more {
                    break;
                }
            }
        }
        for _ in 0..BATCHES_PER_PASS {
            if !retried!(self.try_forget_salts(now - policy.grace))? {
                break;
            }
        }
        Ok(pruned)
    }
}
