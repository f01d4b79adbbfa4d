//! Sessions and their refresh tokens.
//!
//! A transaction that changes the tokens of a session locks the session's row first.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::Row as _;
use tourin_shared_events::sqlite::to_micros;

use super::revocations::{end_sessions, session_id};
use super::{Connection, Store, time};
use crate::app::StoreError;
use crate::app::session_store::{OpenSession, Opened, PRUNED_PER_PASS, Rotation, SessionStore};
use crate::domain::account::{Account, Email, MemberId, Name};
use crate::domain::session::{SessionPolicy, SessionTimes, TokenState, Verdict};
use crate::domain::token::{Salt, SessionId, TokenHash};

/// Sessions removed per transaction by the pruner.
const PRUNED_AT_ONCE: i64 = 500;
/// Transactions per pruning pass.
const BATCHES_PER_PASS: i64 = PRUNED_PER_PASS / PRUNED_AT_ONCE;

/// The member's sessions, the newest first.
pub(super) async fn sessions_of(
    conn: &mut Connection,
    member: &MemberId,
) -> Result<Vec<SessionId>, StoreError> {
    let rows: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM sessions WHERE member_id = ? ORDER BY started_at DESC, id DESC",
    )
    .bind(member.as_str())
    .fetch_all(conn)
    .await?;
    rows.iter().map(|id| session_id(id)).collect()
}

/// A presented refresh token in its family.
struct Presented {
    generation: i64,
    state: TokenState,
    salt: Option<Salt>,
    session: SessionId,
    member: MemberId,
    times: SessionTimes,
}

async fn presented(
    conn: &mut Connection,
    hash: &TokenHash,
) -> Result<Option<Presented>, StoreError> {
    let row = sqlx::query(
        "SELECT t.generation, t.used_at, t.salt, t.session_id, s.member_id, s.started_at, \
                s.renewed_at, s.generation AS current_generation \
         FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id WHERE t.hash = ?",
    )
    .bind(hash.0.as_slice())
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let salt: Option<Vec<u8>> = row.try_get("salt")?;
    let salt = salt.and_then(|salt| salt.try_into().ok()).map(Salt);
    let used_at = row.try_get::<Option<i64>, _>("used_at")?.map(time).transpose()?;
    let generation: i64 = row.try_get("generation")?;
    let is_successor_current = generation + 1 == row.try_get::<i64, _>("current_generation")?;
    Ok(Some(Presented {
        generation,
        state: TokenState::of(used_at, is_successor_current, salt.is_some()),
        salt,
        session: session_id(row.try_get("session_id")?)?,
        member: MemberId::trusted(row.try_get::<String, _>("member_id")?),
        times: SessionTimes {
            started_at: time(row.try_get("started_at")?)?,
            renewed_at: time(row.try_get("renewed_at")?)?,
        },
    }))
}

async fn insert_token(
    conn: &mut Connection,
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

/// Makes `token` the only refresh token of a session of the member, if the session is there.
pub(super) async fn replace_tokens(
    conn: &mut Connection,
    member: &MemberId,
    session: SessionId,
    token: &TokenHash,
) -> sqlx::Result<()> {
    let id = session.to_string();
    // Locks the session's row first, as every change of its tokens does.
    let advanced = sqlx::query(
        "UPDATE sessions SET generation = generation + 1 WHERE id = ? AND member_id = ?",
    )
    .bind(&id)
    .bind(member.as_str())
    .execute(&mut *conn)
    .await?;
    if advanced.rows_affected() == 0 {
        return Ok(());
    }
    sqlx::query("DELETE FROM refresh_tokens WHERE session_id = ?")
        .bind(&id)
        .execute(&mut *conn)
        .await?;
    let generation: i64 = sqlx::query_scalar("SELECT generation FROM sessions WHERE id = ?")
        .bind(&id)
        .fetch_one(&mut *conn)
        .await?;
    insert_token(conn, session, token, generation).await
}

/// Marks the presented token used and makes its successor current.
async fn advance(
    conn: &mut Connection,
    used: &Presented,
    salt: &Salt,
    successor: &TokenHash,
    policy: &SessionPolicy,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    let session = used.session.to_string();
    let next = used.generation + 1;
    // The previous token's salt is deleted: it can no longer be repeated.
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
    sqlx::query(concat!(
        "UPDATE sessions SET generation = ?, renewed_at = ?, revoke_until = ",
        later_of!("revoke_until"),
        " WHERE id = ?"
    ))
    .bind(next)
    .bind(to_micros(now))
    .bind(to_micros(policy.revoked_until(now)))
    .bind(&session)
    .execute(&mut *conn)
    .await?;
    sqlx::query("DELETE FROM refresh_tokens WHERE session_id = ? AND generation < ?")
        .bind(&session)
        .bind(next - i64::from(policy.remembered_tokens.max(1)))
        .execute(&mut *conn)
        .await?;
    Ok(())
}

/// Removes a batch of the sessions whose time in a column is no later than `until`. Returns how many, and
/// whether there may be more.
async fn prune_sessions(
    store: &Store,
    (find, delete): (&'static str, &'static str),
    until: DateTime<Utc>,
) -> Result<(u64, bool), StoreError> {
    // Found without locking open sessions, and checked again when they are deleted.
    let over: Vec<String> = sqlx::query_scalar(find)
        .bind(to_micros(until))
        .bind(PRUNED_AT_ONCE)
        .fetch_all(store.db.reader())
        .await?;
    if over.is_empty() {
        return Ok((0, false));
    }
    let mut tx = store.db.write().await?;
    let mut pruned = 0;
    for id in &over {
        let deleted = sqlx::query(delete).bind(id).bind(to_micros(until)).execute(&mut *tx).await?;
        pruned += deleted.rows_affected();
    }
    tx.commit().await?;
    Ok((pruned, over.len() as i64 == PRUNED_AT_ONCE))
}

/// Deletes a batch of the salts whose token was used no later than `until`; returns whether there may be
/// more.
async fn forget_salts(store: &Store, until: DateTime<Utc>) -> Result<bool, StoreError> {
    let mut tx = store.db.write().await?;
    // On MySQL, a session that is being renewed is left for the next pass.
    let tokens: Vec<(String, i64)> = sqlx::query_as(concat!(
        "SELECT session_id, generation FROM refresh_tokens \
         WHERE salted_at <= ? ORDER BY salted_at LIMIT ?",
        either!(sqlite: "", mysql: " FOR UPDATE SKIP LOCKED")
    ))
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
    Ok(tokens.len() as i64 == PRUNED_AT_ONCE)
}

#[async_trait]
impl SessionStore for Store {
    async fn open(&self, open: OpenSession, policy: &SessionPolicy) -> Result<Opened, StoreError> {
        operation!(self, "open", "sessions", async {
            let mut tx = self.db.write().await?;
            // Locked, so that each of several concurrent log-ins counts the sessions of the earlier ones.
            let known: Option<String> = sqlx::query_scalar(concat!(
                "SELECT password_hash FROM members WHERE id = ?",
                for_update!()
            ))
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
            let mut ended = sessions_of(&mut tx, &open.member).await?;
            ended.drain(..ended.len().min(policy.per_member.max(1) - 1));
            sqlx::query(
                "INSERT INTO sessions \
                     (id, member_id, started_at, renewed_at, generation, revoke_until) \
                 VALUES (?, ?, ?, ?, 0, ?)",
            )
            .bind(open.session.to_string())
            .bind(open.member.as_str())
            .bind(to_micros(open.now))
            .bind(to_micros(open.now))
            .bind(to_micros(policy.revoked_until(open.now)))
            .execute(&mut *tx)
            .await?;
            insert_token(&mut tx, open.session, &open.token, 0).await?;
            end_sessions(&mut tx, &ended, policy.revoked_until(open.now)).await?;
            tx.commit().await?;
            Ok(Opened::Open { ended })
        })
    }

    async fn rotate(
        &self,
        hash: &TokenHash,
        salt: &Salt,
        successor: &TokenHash,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Rotation, StoreError> {
        operation!(self, "rotate", "sessions", async {
            // Looked up on a reading connection first, so that made-up tokens do not use the writing ones.
            let session: Option<String> =
                sqlx::query_scalar("SELECT session_id FROM refresh_tokens WHERE hash = ?")
                    .bind(hash.0.as_slice())
                    .fetch_optional(self.db.reader())
                    .await?;
            let Some(session) = session else {
                return Ok(Rotation::Unknown);
            };
            let mut tx = self.db.write().await?;
            sqlx::query(concat!("SELECT id FROM sessions WHERE id = ?", for_update!()))
                .bind(session)
                .execute(&mut *tx)
                .await?;
            let Some(token) = presented(&mut tx, hash).await? else {
                return Ok(Rotation::Unknown);
            };
            let rotation = match policy.judge(&token.times, token.state, now) {
                Verdict::Rotate => {
                    advance(&mut tx, &token, salt, successor, policy, now).await?;
                    Rotation::Rotated {
                        member: token.member,
                        session: token.session,
                        times: SessionTimes { renewed_at: now, ..token.times },
                    }
                }
                Verdict::Repeat => {
                    let salt = token.salt.ok_or_else(|| {
                        StoreError::Failed(anyhow::anyhow!("a token in its grace has no salt"))
                    })?;
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
                // The pruner, whose clock is checked, removes the session.
                Verdict::Expired => return Ok(Rotation::Expired),
            };
            tx.commit().await?;
            Ok(rotation)
        })
    }

    async fn touch(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<SessionTimes>, StoreError> {
        let id = session.to_string();
        operation!(self, "touch", "sessions", async {
            let mut tx = self.db.write().await?;
            let row: Option<(i64, i64)> = sqlx::query_as(concat!(
                "SELECT started_at, renewed_at FROM sessions \
                 WHERE id = ? AND member_id = ? AND started_at > ? AND renewed_at > ?",
                for_update!()
            ))
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
            sqlx::query(concat!(
                "UPDATE sessions SET renewed_at = ?, revoke_until = ",
                later_of!("revoke_until"),
                " WHERE id = ?"
            ))
            .bind(to_micros(times.renewed_at))
            .bind(to_micros(policy.revoked_until(now)))
            .bind(&id)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(Some(times))
        })
    }

    async fn session_of(
        &self,
        hash: &TokenHash,
    ) -> Result<Option<(MemberId, SessionId)>, StoreError> {
        let token = operation!(self, "select", "sessions", async {
            let mut conn = self.db.reader().acquire().await?;
            presented(&mut conn, hash).await
        })?;
        Ok(token.map(|token| (token.member, token.session)))
    }

    async fn account(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<Account>, StoreError> {
        let row: Option<(String, String)> = operation!(self, "select", "sessions", async {
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
        operation!(self, "end", "sessions", async {
            let mut tx = self.db.write().await?;
            let mut ended = vec![session];
            if everywhere {
                let open = sessions_of(&mut tx, member).await?;
                if open.contains(&session) {
                    ended.extend(open.into_iter().filter(|other| *other != session));
                }
            }
            end_sessions(&mut tx, &ended, revoked_until).await?;
            tx.commit().await?;
            Ok(ended)
        })
    }

    async fn end_all(
        &self,
        member: &MemberId,
        revoked_until: DateTime<Utc>,
    ) -> Result<Vec<SessionId>, StoreError> {
        operation!(self, "end all", "sessions", async {
            let mut tx = self.db.write().await?;
            let ended = sessions_of(&mut tx, member).await?;
            end_sessions(&mut tx, &ended, revoked_until).await?;
            tx.commit().await?;
            Ok(ended)
        })
    }

    async fn prune(&self, policy: &SessionPolicy, now: DateTime<Utc>) -> Result<u64, StoreError> {
        const BY_START: (&str, &str) = (
            "SELECT id FROM sessions WHERE started_at <= ? ORDER BY started_at LIMIT ?",
            "DELETE FROM sessions WHERE id = ? AND started_at <= ?",
        );
        const BY_RENEWAL: (&str, &str) = (
            "SELECT id FROM sessions WHERE renewed_at <= ? ORDER BY renewed_at LIMIT ?",
            "DELETE FROM sessions WHERE id = ? AND renewed_at <= ?",
        );
        let pruning = async {
            let mut pruned = 0;
            let mut batches = 0..BATCHES_PER_PASS;
            for (statements, until) in
                [(BY_START, now - policy.absolute), (BY_RENEWAL, now - policy.idle)]
            {
                while batches.next().is_some() {
                    let (removed, more) = retried!(prune_sessions(self, statements, until))?;
                    pruned += removed;
                    if !more {
                        break;
                    }
                }
            }
            for _ in 0..BATCHES_PER_PASS {
                if !retried!(forget_salts(self, now - policy.grace))? {
                    break;
                }
            }
            Ok(pruned)
        };
        self.call("prune", "sessions", pruning).await
    }
}
