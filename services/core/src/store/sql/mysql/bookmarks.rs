//! Bookmarks in MySQL.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::{MySqlExecutor, Row as _};
use tourin_shared_events::events::Outgoing;
use tourin_shared_events::mysql::{is_unique_violation, to_micros};

use super::member_content::{is_an_id, keep_member, member_exists, spot_exists};
use super::spots::{spot_columns, spot_of};
use super::{MysqlStore, record, time};
use crate::app::StoreError;
use crate::app::bookmarks::{BookmarkStore, Placed, Removed};
use crate::domain::bookmark::Bookmark;
use crate::domain::page::{Page, PageRequest};
use crate::domain::spot::SpotId;

fn bookmark_of(row: &MySqlRow) -> Result<Bookmark, StoreError> {
    Ok(Bookmark {
        user_id: row.try_get("user_id")?,
        created_at: time(row.try_get("created_at")?)?,
        spot: spot_of(row)?,
    })
}

async fn find(
    executor: impl MySqlExecutor<'_>,
    member: &str,
    spot: SpotId,
) -> Result<Option<Bookmark>, StoreError> {
    if !is_an_id(member) {
        return Ok(None);
    }
    let row = sqlx::query(concat!(
        "SELECT b.user_id, b.created_at, ",
        spot_columns!(),
        " FROM bookmarks AS b STRAIGHT_JOIN tour_spots AS s ON s.id = b.spot_id
          WHERE b.user_id = ? AND b.spot_id = ?"
    ))
    .bind(member)
    .bind(spot.number())
    .fetch_optional(executor)
    .await?;
    row.as_ref().map(bookmark_of).transpose()
}

impl MysqlStore {
    async fn try_place(
        &self,
        member: &str,
        spot: SpotId,
        now: DateTime<Utc>,
        event: &Outgoing,
    ) -> Result<Placed, StoreError> {
        let mut transaction = self.db.write().await?;
        if !keep_member(&mut transaction, member).await? {
            return Ok(Placed::NoSuchMember);
        }
        if !spot_exists(&mut transaction, spot).await? {
            return Ok(Placed::NoSuchSpot);
        }
        let added =
            sqlx::query("INSERT INTO bookmarks (user_id, spot_id, created_at) VALUES (?, ?, ?)")
                .bind(member)
                .bind(spot.number())
                .bind(to_micros(now))
                .execute(&mut *transaction)
                .await;
        let is_new = match added {
            Ok(_) => true,
            Err(error) if is_unique_violation(&error) => false,
            Err(error) => return Err(error.into()),
        };
        let bookmark = find(&mut *transaction, member, spot).await?.ok_or_else(|| {
            StoreError::Failed(anyhow::anyhow!("a bookmark is not there right after it was placed"))
        })?;
        if !is_new {
            return Ok(Placed::AlreadyThere(bookmark));
        }
        record(&mut transaction, std::slice::from_ref(event), now).await?;
        transaction.commit().await?;
        self.committed();
        Ok(Placed::Placed(bookmark))
    }

    async fn try_remove(
        &self,
        member: &str,
        spot: SpotId,
        now: DateTime<Utc>,
        event: &Outgoing,
    ) -> Result<Removed, StoreError> {
        let mut transaction = self.db.write().await?;
        if !keep_member(&mut transaction, member).await? {
            return Ok(Removed::NoSuchMember);
        }
        let removed = sqlx::query("DELETE FROM bookmarks WHERE user_id = ? AND spot_id = ?")
            .bind(member)
            .bind(spot.number())
            .execute(&mut *transaction)
            .await?
            .rows_affected();
        if removed == 0 {
            return Ok(Removed::NotThere);
        }
        record(&mut transaction, std::slice::from_ref(event), now).await?;
        transaction.commit().await?;
        self.committed();
        Ok(Removed::Removed)
    }

    async fn read_bookmarks(
        &self,
        member: &str,
        page: PageRequest,
    ) -> Result<Option<Page<Bookmark>>, StoreError> {
        let mut snapshot = self.db.snapshot().await?;
        if !member_exists(&mut snapshot, member).await? {
            return Ok(None);
        }
        let total: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM bookmarks WHERE user_id = ?")
            .bind(member)
            .fetch_one(&mut *snapshot)
            .await?;
        let rows = sqlx::query(concat!(
            "SELECT b.user_id, b.created_at, ",
            spot_columns!(),
            " FROM (SELECT user_id, spot_id, created_at
                    FROM bookmarks FORCE INDEX (bookmarks_newest) WHERE user_id = ?
                    ORDER BY created_at DESC, spot_id DESC LIMIT ? OFFSET ?) AS b
              STRAIGHT_JOIN tour_spots AS s ON s.id = b.spot_id
              ORDER BY b.created_at DESC, b.spot_id DESC"
        ))
        .bind(member)
        .bind(page.size())
        .bind(page.offset())
        .fetch_all(&mut *snapshot)
        .await?;
        snapshot.rollback().await?;
        Ok(Some(Page {
            items: rows.iter().map(bookmark_of).collect::<Result<_, _>>()?,
            total: total.cast_unsigned(),
            request: page,
        }))
    }
}

#[async_trait]
impl BookmarkStore for MysqlStore {
    async fn place(
        &self,
        member: &str,
        spot: SpotId,
        now: DateTime<Utc>,
        event: Outgoing,
    ) -> Result<Placed, StoreError> {
        retried!(self.try_place(member, spot, now, &event))
    }

    async fn remove(
        &self,
        member: &str,
        spot: SpotId,
        now: DateTime<Utc>,
        event: Outgoing,
    ) -> Result<Removed, StoreError> {
        retried!(self.try_remove(member, spot, now, &event))
    }

    async fn find(&self, member: &str, spot: SpotId) -> Result<Option<Bookmark>, StoreError> {
        retried!(find(self.db.reader(), member, spot))
    }

    async fn page(
        &self,
        member: &str,
        page: PageRequest,
    ) -> Result<Option<Page<Bookmark>>, StoreError> {
        retried!(self.read_bookmarks(member, page))
    }
}
