//! Accounts.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use tourin_shared_events::events::{DeleteUser, Outgoing};
use tourin_shared_events::mysql::{is_unique_violation, to_micros};

use super::member_content::lock_member;
use super::revocations::end_sessions;
use super::sessions::{replace_tokens, sessions_of};
use super::{Connection, Store, member_content, record};
use crate::app::StoreError;
use crate::app::accounts::{AccountStore, Changed, Created, Credentials, PasswordChange};
use crate::app::passwords::PasswordHash;
use crate::domain::account::{Account, Email, Member, MemberId, Name, ProfileChange};
use crate::domain::page::{Page, PageRequest};
use crate::domain::search::{SearchText, fold};
use crate::domain::token::SessionId;

/// Read from an index that has no more than the list needs, in its order. Text in the middle of a name
/// cannot be looked up, so a search reads the index until it has found enough.
macro_rules! matching {
    () => {
        concat!(
            " FROM members",
            by_index!(members_listed),
            " WHERE ? IS NULL OR INSTR(id_folded, ?) > 0 \
              OR INSTR(COALESCE(name_folded, LOWER(name)), ?) > 0"
        )
    };
}
const MEMBERS: &str = concat!("SELECT id, name", matching!(), " ORDER BY id LIMIT ? OFFSET ?");
const COUNT: &str = concat!("SELECT COUNT(*) FROM (SELECT 1", matching!(), " LIMIT ?) AS listed");

/// What is kept of a deleted member's id: SHA-256 of the id without case.
fn digest(id: &MemberId) -> [u8; 32] {
    Sha256::digest(id.as_str().to_ascii_lowercase()).into()
}

async fn find(conn: &mut Connection, id: &MemberId) -> sqlx::Result<Option<Credentials>> {
    let row: Option<(String, String, String)> =
        sqlx::query_as("SELECT name, email, password_hash FROM members WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(conn)
            .await?;
    Ok(row.map(|(name, email, hash)| Credentials {
        account: Account {
            id: id.clone(),
            name: Name::trusted(name),
            email: Email::trusted(email),
        },
        hash: PasswordHash(hash),
    }))
}

/// Removes the account and appends `events` and `user.delete`. Runs last in a transaction that has
/// locked the member and removed the member's content.
pub(super) async fn remove_member(
    conn: &mut Connection,
    id: &MemberId,
    mut events: Vec<Outgoing>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM members WHERE id = ?").bind(id.as_str()).execute(&mut *conn).await?;
    let kept = sqlx::query("INSERT INTO deleted_ids (digest) VALUES (?)")
        .bind(digest(id).as_slice())
        .execute(&mut *conn)
        .await;
    match kept {
        Ok(_) => {}
        // During an update, a process of an earlier version let the id be taken again.
        Err(error) if is_unique_violation(&error) => {}
        Err(error) => return Err(error.into()),
    }
    // Last, so that consumers receive it after the member's other events.
    events.push(Outgoing::new(&DeleteUser { user_id: id.to_string() }, now));
    record(conn, &events, now).await
}

/// Replaces the password's hash if it is still the verified one; returns whether it was.
pub(super) async fn replace_password(
    conn: &mut Connection,
    change: &PasswordChange,
) -> sqlx::Result<bool> {
    let changed = sqlx::query(
        "UPDATE members SET password_hash = ?, updated_at = ? WHERE id = ? AND password_hash = ?",
    )
    .bind(&change.replacement.0)
    .bind(to_micros(change.now))
    .bind(change.member.as_str())
    .bind(&change.verified.0)
    .execute(conn)
    .await?;
    Ok(changed.rows_affected() > 0)
}

#[async_trait]
impl AccountStore for Store {
    async fn create(
        &self,
        credentials: &Credentials,
        now: DateTime<Utc>,
    ) -> Result<Created, StoreError> {
        let Credentials { account, hash } = credentials;
        operation!(self, "insert", "accounts", async {
            let mut tx = self.db.write().await?;
            // The unique key of folded ids decides between concurrent sign-ups.
            let created = sqlx::query(
                "INSERT INTO members (id, id_folded, name, name_folded, email, password_hash, \
                     created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(account.id.as_str())
            .bind(account.id.as_str().to_ascii_lowercase())
            .bind(account.name.as_str())
            .bind(fold(account.name.as_str()))
            .bind(account.email.as_str())
            .bind(&hash.0)
            .bind(to_micros(now))
            .bind(to_micros(now))
            .execute(&mut *tx)
            .await;
            match created {
                Ok(_) => {}
                Err(error) if is_unique_violation(&error) => return Ok(Created::Taken),
                Err(error) => return Err(error.into()),
            }
            // Checked after the insertion, which waits for a concurrent deletion of this id.
            let was_deleted: Option<i64> =
                sqlx::query_scalar("SELECT 1 FROM deleted_ids WHERE digest = ?")
                    .bind(digest(&account.id).as_slice())
                    .fetch_optional(&mut *tx)
                    .await?;
            if was_deleted.is_some() {
                return Ok(Created::Taken);
            }
            tx.commit().await?;
            Ok(Created::Created)
        })
    }

    async fn is_taken(&self, id: &MemberId) -> Result<bool, StoreError> {
        let found: Option<i64> = operation!(self, "select", "accounts", async {
            Ok(sqlx::query_scalar(
                "SELECT 1 FROM members WHERE id_folded = ? \
                 UNION ALL SELECT 1 FROM deleted_ids WHERE digest = ? LIMIT 1",
            )
            .bind(id.as_str().to_ascii_lowercase())
            .bind(digest(id).as_slice())
            .fetch_optional(self.db.reader())
            .await?)
        })?;
        Ok(found.is_some())
    }

    async fn member(&self, id: &MemberId) -> Result<Option<Member>, StoreError> {
        let found = self.credentials(id).await?;
        Ok(found.map(|Credentials { account, .. }| Member { id: account.id, name: account.name }))
    }

    async fn credentials(&self, id: &MemberId) -> Result<Option<Credentials>, StoreError> {
        operation!(self, "select", "accounts", async {
            let mut conn = self.db.reader().acquire().await?;
            Ok(find(&mut conn, id).await?)
        })
    }

    async fn update_profile(
        &self,
        id: &MemberId,
        change: &ProfileChange,
        now: DateTime<Utc>,
    ) -> Result<Option<Account>, StoreError> {
        operation!(self, "update", "accounts", async {
            let mut tx = self.db.write().await?;
            if !lock_member(&mut tx, id.as_str()).await? {
                return Ok(None);
            }
            let Some(Credentials { mut account, .. }) = find(&mut tx, id).await? else {
                return Ok(None);
            };
            if let Some(name) = &change.name {
                account.name = name.clone();
            }
            if let Some(email) = &change.email {
                account.email = email.clone();
            }
            sqlx::query(
                "UPDATE members SET name = ?, name_folded = ?, email = ?, updated_at = ? \
                 WHERE id = ?",
            )
            .bind(account.name.as_str())
            .bind(fold(account.name.as_str()))
            .bind(account.email.as_str())
            .bind(to_micros(now))
            .bind(id.as_str())
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(Some(account))
        })
    }

    async fn change_password(&self, change: PasswordChange) -> Result<Changed, StoreError> {
        operation!(self, "change password", "accounts", async {
            let mut tx = self.db.write().await?;
            if !replace_password(&mut tx, &change).await? {
                return Ok(Changed::Stale);
            }
            let mut ended = sessions_of(&mut tx, &change.member).await?;
            ended.retain(|session| *session != change.keep);
            end_sessions(&mut tx, &ended, change.revoked_until).await?;
            replace_tokens(&mut tx, &change.member, change.keep, &change.token).await?;
            tx.commit().await?;
            Ok(Changed::Changed { ended })
        })
    }

    async fn delete(
        &self,
        id: &MemberId,
        revoked_until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Option<Vec<SessionId>>, StoreError> {
        operation!(self, "delete", "accounts", async {
            let mut tx = self.db.write().await?;
            // From here on no other transaction writes content of this member.
            if !lock_member(&mut tx, id.as_str()).await? {
                return Ok(None);
            }
            let ended = sessions_of(&mut tx, id).await?;
            let events = member_content::erase(&mut tx, id.as_str(), now).await?;
            end_sessions(&mut tx, &ended, revoked_until).await?;
            remove_member(&mut tx, id, events, now).await?;
            tx.commit().await?;
            self.committed();
            Ok(Some(ended))
        })
    }

    async fn members(
        &self,
        query: Option<&SearchText>,
        page: PageRequest,
        max: u64,
    ) -> Result<Page<Member>, StoreError> {
        let left = max.saturating_sub(page.offset());
        let size = i64::from(page.size()).min(left.cast_signed());
        let query = query.map(SearchText::as_str);
        operation!(self, "search", "accounts", async {
            // One snapshot, so that the total and the page agree.
            let mut snapshot = self.snapshot().await?;
            let rows: Vec<(String, String)> = sqlx::query_as(MEMBERS)
                .bind(query)
                .bind(query)
                .bind(query)
                .bind(size)
                // Past the end no row need be read.
                .bind(if size > 0 { page.offset().cast_signed() } else { 0 })
                .fetch_all(&mut *snapshot)
                .await?;
            let is_last = (rows.len() as i64) < size && (!rows.is_empty() || page.offset() == 0);
            let total = if is_last {
                // Counting would read all members once more.
                page.offset() + rows.len() as u64
            } else {
                let counting = sqlx::query_scalar::<_, i64>(COUNT)
                    .bind(query)
                    .bind(query)
                    .bind(query)
                    .bind(max.cast_signed());
                counting.fetch_one(&mut *snapshot).await?.unsigned_abs()
            };
            snapshot.rollback().await?;
            let items = rows
                .into_iter()
                .map(|(id, name)| Member { id: MemberId::trusted(id), name: Name::trusted(name) })
                .collect();
            Ok(Page { items, total, request: page })
        })
    }
}
