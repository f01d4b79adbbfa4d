//! Sessions and their refresh tokens.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{SqliteConnection, SqliteExecutor};
use tourin_shared_events::sqlite::to_micros;

use super::revocations::{end_sessions, session_id};
use super::{SqliteStore, time};
use crate::app::StoreError;
use crate::app::sessions::{OpenSession, Opened, PRUNED_PER_PASS, Rotation, SessionStore};
use crate::domain::account::{Account, Email, MemberId, Name};
use crate::domain::session::{SessionPolicy, SessionTimes, TokenPlace, Verdict};
use crate::domain::token::{Salt, SessionId, TokenHash};

/// The member's sessions, the newest first.
pub(super) async fn sessions_of(
    executor: impl SqliteExecutor<'_>,
    member: &MemberId,
) -> Result<Vec<SessionId>, StoreError> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT id FROM sessions WHERE member_id = ?1 ORDER BY started_at DESC, id DESC",
    )
    .bind(member.as_str())
    .fetch_all(executor)
    .await?;
    rows.iter().map(|(id,)| session_id(id)).collect()
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

async fn presented(
    executor: impl SqliteExecutor<'_>,
    hash: &TokenHash,
) -> Result<Option<Presented>, StoreError> {
    let row: Option<PresentedRow> = sqlx::query_as(
        "SELECT t.generation, t.used_at, t.salt, t.session_id, s.member_id, s.started_at, \
                s.renewed_at, s.generation AS current_generation \
         FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id WHERE t.hash = ?1",
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
    conn: &mut SqliteConnection,
    session: SessionId,
    token: &TokenHash,
    generation: i64,
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO refresh_tokens (hash, session_id, generation) VALUES (?1, ?2, ?3)")
        .bind(token.0.as_slice())
        .bind(session.to_string())
        .bind(generation)
        .execute(conn)
        .await?;
    Ok(())
}

/// Uses the presented token up and makes its successor current.
async fn advance(
    conn: &mut SqliteConnection,
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
        "UPDATE refresh_tokens SET salt = NULL WHERE session_id = ?1 AND generation = ?2 - 1",
    )
    .bind(&session)
    .bind(used.generation)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "UPDATE refresh_tokens SET used_at = ?3, salt = ?4 \
         WHERE session_id = ?1 AND generation = ?2",
    )
    .bind(&session)
    .bind(used.generation)
    .bind(to_micros(now))
    .bind(salt.0.as_slice())
    .execute(&mut *conn)
    .await?;
    insert_token(conn, used.session, successor, next).await?;
    sqlx::query("UPDATE sessions SET generation = ?2, renewed_at = ?3 WHERE id = ?1")
        .bind(&session)
        .bind(next)
        .bind(to_micros(now))
        .execute(&mut *conn)
        .await?;
    sqlx::query("DELETE FROM refresh_tokens WHERE session_id = ?1 AND generation < ?2 - ?3")
        .bind(&session)
        .bind(next)
        .bind(i64::from(remembered.max(1)))
        .execute(&mut *conn)
        .await?;
    Ok(())
}

#[async_trait]
impl SessionStore for SqliteStore {
    async fn open(&self, open: OpenSession, policy: &SessionPolicy) -> Result<Opened, StoreError> {
        let mut tx = self.db.write().await?;
        let known: Option<(String,)> =
            sqlx::query_as("SELECT password_hash FROM members WHERE id = ?1")
                .bind(open.member.as_str())
                .fetch_optional(&mut *tx)
                .await?;
        if known.is_none_or(|(hash,)| hash != open.verified.0) {
            return Ok(Opened::Stale);
        }
        if let Some(fresh) = &open.rehashed {
            sqlx::query("UPDATE members SET password_hash = ?2 WHERE id = ?1")
                .bind(open.member.as_str())
                .bind(&fresh.0)
                .execute(&mut *tx)
                .await?;
        }
        let mut ended = sessions_of(&mut *tx, &open.member).await?;
        ended.drain(..ended.len().min(policy.per_member.max(1) - 1));
        end_sessions(&mut tx, &ended, policy.revoked_until(open.now)).await?;
        sqlx::query(
            "INSERT INTO sessions (id, member_id, started_at, renewed_at, generation) \
             VALUES (?1, ?2, ?3, ?3, 0)",
        )
        .bind(open.session.to_string())
        .bind(open.member.as_str())
        .bind(to_micros(open.now))
        .execute(&mut *tx)
        .await?;
        insert_token(&mut tx, open.session, &open.token, 0).await?;
        tx.commit().await?;
        Ok(Opened::Open { ended })
    }

    async fn rotate(
        &self,
        hash: &TokenHash,
        salt: &Salt,
        successor: &TokenHash,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Rotation, StoreError> {
        // Made-up tokens must not queue for the one writer.
        if presented(self.db.reader(), hash).await?.is_none() {
            return Ok(Rotation::Unknown);
        }
        let mut tx = self.db.write().await?;
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

    async fn touch(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<SessionTimes>, StoreError> {
        let mut tx = self.db.write().await?;
        let row: Option<(i64, i64)> = sqlx::query_as(
            "UPDATE sessions SET renewed_at = MAX(renewed_at, ?5) \
             WHERE id = ?1 AND member_id = ?2 AND started_at > ?3 AND renewed_at > ?4 \
             RETURNING started_at, renewed_at",
        )
        .bind(session.to_string())
        .bind(member.as_str())
        .bind(to_micros(now - policy.absolute))
        .bind(to_micros(now - policy.idle))
        .bind(to_micros(now))
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        row.map(|(started, renewed)| {
            Ok(SessionTimes { started_at: time(started)?, renewed_at: time(renewed)? })
        })
        .transpose()
    }

    async fn session_of(
        &self,
        hash: &TokenHash,
    ) -> Result<Option<(MemberId, SessionId)>, StoreError> {
        let token = presented(self.db.reader(), hash).await?;
        Ok(token.map(|token| (token.member, token.session)))
    }

    async fn account(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<Account>, StoreError> {
        let row: Option<(String, String)> = sqlx::query_as(
            "SELECT m.name, m.email FROM sessions s JOIN members m ON m.id = s.member_id \
             WHERE s.id = ?1 AND s.member_id = ?2 AND s.started_at > ?3 AND s.renewed_at > ?4",
        )
        .bind(session.to_string())
        .bind(member.as_str())
        .bind(to_micros(now - policy.absolute))
        .bind(to_micros(now - policy.idle))
        .fetch_optional(self.db.reader())
        .await?;
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

    async fn prune(&self, policy: &SessionPolicy, now: DateTime<Utc>) -> Result<u64, StoreError> {
        let mut tx = self.db.write().await?;
        let pruned = sqlx::query(
            "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions
                 WHERE started_at <= ?1 OR renewed_at <= ?2 LIMIT ?3)",
        )
        .bind(to_micros(now - policy.absolute))
        .bind(to_micros(now - policy.idle))
        .bind(PRUNED_PER_PASS)
        .execute(&mut *tx)
        .await?
        .rows_affected();
        sqlx::query(
            "UPDATE refresh_tokens SET salt = NULL WHERE hash IN (SELECT hash FROM refresh_tokens
                 WHERE salt IS NOT NULL AND used_at <= ?1 LIMIT ?2)",
        )
        .bind(to_micros(now - policy.grace))
        .bind(PRUNED_PER_PASS)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(pruned)
    }
}
