//! Accounts.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::SqliteExecutor;
use tourin_shared_events::events::{DeleteUser, Outgoing};
use tourin_shared_events::sqlite::to_micros;

use super::revocations::end_sessions;
use super::sessions::sessions_of;
use super::{SqliteStore, member_content, record};
use crate::app::StoreError;
use crate::app::accounts::{AccountStore, Changed, Created, Credentials, PasswordChange};
use crate::app::passwords::PasswordHash;
use crate::domain::account::{Account, Email, Member, MemberId, Name, ProfileChange};
use crate::domain::page::{Page, PageRequest};
use crate::domain::search::{SearchText, fold};
use crate::domain::token::SessionId;

/// Two statements, so that reading a page and counting are planned and cached apart.
const MEMBERS: &str = "SELECT id, name FROM members \
     WHERE ?1 IS NULL OR instr(lower(id), ?1) > 0 \
         OR instr(coalesce(name_folded, lower(name)), ?1) > 0 \
     ORDER BY id LIMIT ?2 OFFSET ?3";
const COUNT: &str = "SELECT count(*) FROM members \
     WHERE ?1 IS NULL OR instr(lower(id), ?1) > 0 \
         OR instr(coalesce(name_folded, lower(name)), ?1) > 0";

async fn find(
    executor: impl SqliteExecutor<'_>,
    id: &MemberId,
) -> sqlx::Result<Option<Credentials>> {
    let row: Option<(String, String, String)> =
        sqlx::query_as("SELECT name, email, password_hash FROM members WHERE id = ?1")
            .bind(id.as_str())
            .fetch_optional(executor)
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

#[async_trait]
impl AccountStore for SqliteStore {
    async fn create(
        &self,
        credentials: &Credentials,
        now: DateTime<Utc>,
    ) -> Result<Created, StoreError> {
        let Credentials { account, hash } = credentials;
        let mut tx = self.db.write().await?;
        // The unique index that ignores case is what decides between two at once.
        let created = sqlx::query(
            "INSERT INTO members \
                 (id, name, email, password_hash, created_at, updated_at, name_folded) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6) ON CONFLICT DO NOTHING",
        )
        .bind(account.id.as_str())
        .bind(account.name.as_str())
        .bind(account.email.as_str())
        .bind(&hash.0)
        .bind(to_micros(now))
        .bind(fold(account.name.as_str()))
        .execute(&mut *tx)
        .await?
        .rows_affected();
        tx.commit().await?;
        Ok(if created == 1 { Created::Created } else { Created::Taken })
    }

    async fn is_taken(&self, id: &MemberId) -> Result<bool, StoreError> {
        let (taken,): (bool,) =
            sqlx::query_as("SELECT EXISTS (SELECT 1 FROM members WHERE id = ?1 COLLATE NOCASE)")
                .bind(id.as_str())
                .fetch_one(self.db.reader())
                .await?;
        Ok(taken)
    }

    async fn member(&self, id: &MemberId) -> Result<Option<Member>, StoreError> {
        let found = find(self.db.reader(), id).await?;
        Ok(found.map(|Credentials { account, .. }| Member { id: account.id, name: account.name }))
    }

    async fn credentials(&self, id: &MemberId) -> Result<Option<Credentials>, StoreError> {
        Ok(find(self.db.reader(), id).await?)
    }

    async fn update_profile(
        &self,
        id: &MemberId,
        change: &ProfileChange,
        now: DateTime<Utc>,
    ) -> Result<Option<Account>, StoreError> {
        let mut tx = self.db.write().await?;
        let Some(Credentials { mut account, .. }) = find(&mut *tx, id).await? else {
            return Ok(None);
        };
        if let Some(name) = &change.name {
            account.name = name.clone();
        }
        if let Some(email) = &change.email {
            account.email = email.clone();
        }
        sqlx::query(
            "UPDATE members SET name = ?2, email = ?3, updated_at = ?4, name_folded = ?5 \
             WHERE id = ?1",
        )
        .bind(id.as_str())
        .bind(account.name.as_str())
        .bind(account.email.as_str())
        .bind(to_micros(now))
        .bind(fold(account.name.as_str()))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Some(account))
    }

    async fn change_password(&self, change: PasswordChange) -> Result<Changed, StoreError> {
        let mut tx = self.db.write().await?;
        let changed = sqlx::query(
            "UPDATE members SET password_hash = ?3, updated_at = ?4 \
             WHERE id = ?1 AND password_hash = ?2",
        )
        .bind(change.member.as_str())
        .bind(&change.verified.0)
        .bind(&change.replacement.0)
        .bind(to_micros(change.now))
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if changed == 0 {
            return Ok(Changed::Stale);
        }
        let mut ended = sessions_of(&mut *tx, &change.member).await?;
        ended.retain(|session| *session != change.keep);
        end_sessions(&mut tx, &ended, change.revoked_until).await?;
        tx.commit().await?;
        Ok(Changed::Changed { ended })
    }

    async fn delete(
        &self,
        id: &MemberId,
        revoked_until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Option<Vec<SessionId>>, StoreError> {
        let mut tx = self.db.write().await?;
        if find(&mut *tx, id).await?.is_none() {
            return Ok(None);
        }
        let mut events = member_content::erase(&mut tx, id.as_str(), now).await?;
        // Last: whoever keeps something of the member is told after everything else is.
        events.push(Outgoing::new(&DeleteUser { user_id: id.to_string() }, now));
        record(&mut tx, &events, now).await?;
        let ended = sessions_of(&mut *tx, id).await?;
        end_sessions(&mut tx, &ended, revoked_until).await?;
        sqlx::query("DELETE FROM members WHERE id = ?1")
            .bind(id.as_str())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.committed();
        Ok(Some(ended))
    }

    async fn members(
        &self,
        query: Option<&SearchText>,
        page: PageRequest,
    ) -> Result<Page<Member>, StoreError> {
        let query = query.map(SearchText::as_str);
        // One snapshot, so that the total and the page are of the same members.
        let mut snapshot = self.db.reader().begin().await?;
        let (total,): (i64,) = sqlx::query_as(COUNT).bind(query).fetch_one(&mut *snapshot).await?;
        let rows: Vec<(String, String)> = sqlx::query_as(MEMBERS)
            .bind(query)
            .bind(page.size())
            .bind(i64::try_from(page.offset()).unwrap_or(i64::MAX))
            .fetch_all(&mut *snapshot)
            .await?;
        let items = rows
            .into_iter()
            .map(|(id, name)| Member { id: MemberId::trusted(id), name: Name::trusted(name) })
            .collect();
        Ok(Page { items, total: total.unsigned_abs(), request: page })
    }
}
