//! Bookmarks in SQLite.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use tourin_shared_events::events::Outgoing;
use tourin_shared_events::sqlite::to_micros;

use super::member_content::{member_exists, spot_exists};
use super::spots::{spot_columns, spot_of};
use super::{SqliteStore, record, time};
use crate::app::StoreError;
use crate::app::bookmarks::{BookmarkStore, Placed, Removed};
use crate::domain::bookmark::Bookmark;
use crate::domain::page::{Page, PageRequest};
use crate::domain::spot::SpotId;

fn bookmark_of(row: &SqliteRow) -> Result<Bookmark, StoreError> {
    Ok(Bookmark {
        user_id: row.try_get("user_id")?,
        created_at: time(row.try_get("created_at")?)?,
        spot: spot_of(row)?,
    })
}

async fn find(
    conn: &mut SqliteConnection,
    member: &str,
    spot: SpotId,
) -> Result<Option<Bookmark>, StoreError> {
    let row = sqlx::query(concat!(
        "SELECT b.user_id, b.created_at, ",
        spot_columns!(),
        " FROM bookmarks AS b CROSS JOIN tour_spots AS s ON s.id = b.spot_id
          WHERE b.user_id = ?1 AND b.spot_id = ?2"
    ))
    .bind(member)
    .bind(spot.number())
    .fetch_optional(conn)
    .await?;
    row.as_ref().map(bookmark_of).transpose()
}

#[async_trait]
impl BookmarkStore for SqliteStore {
    async fn place(
        &self,
        member: &str,
        spot: SpotId,
        now: DateTime<Utc>,
        event: Outgoing,
    ) -> Result<Placed, StoreError> {
        let mut transaction = self.db.write().await?;
        if !member_exists(&mut transaction, member).await? {
            return Ok(Placed::NoSuchMember);
        }
        if !spot_exists(&mut transaction, spot).await? {
            return Ok(Placed::NoSuchSpot);
        }
        let added = sqlx::query(
            "INSERT INTO bookmarks (user_id, spot_id, created_at) VALUES (?1, ?2, ?3)
             ON CONFLICT DO NOTHING",
        )
        .bind(member)
        .bind(spot.number())
        .bind(to_micros(now))
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        let bookmark = find(&mut transaction, member, spot).await?.ok_or_else(|| {
            StoreError::Failed(anyhow::anyhow!("a bookmark is not there right after it was placed"))
        })?;
        if added == 0 {
            return Ok(Placed::AlreadyThere(bookmark));
        }
        record(&mut transaction, &[event], now).await?;
        transaction.commit().await?;
        self.committed();
        Ok(Placed::Placed(bookmark))
    }

    async fn remove(
        &self,
        member: &str,
        spot: SpotId,
        now: DateTime<Utc>,
        event: Outgoing,
    ) -> Result<Removed, StoreError> {
        let mut transaction = self.db.write().await?;
        if !member_exists(&mut transaction, member).await? {
            return Ok(Removed::NoSuchMember);
        }
        let removed = sqlx::query("DELETE FROM bookmarks WHERE user_id = ?1 AND spot_id = ?2")
            .bind(member)
            .bind(spot.number())
            .execute(&mut *transaction)
            .await?
            .rows_affected();
        if removed == 0 {
            return Ok(Removed::NotThere);
        }
        record(&mut transaction, &[event], now).await?;
        transaction.commit().await?;
        self.committed();
        Ok(Removed::Removed)
    }

    async fn find(&self, member: &str, spot: SpotId) -> Result<Option<Bookmark>, StoreError> {
        let mut conn = self.db.reader().acquire().await?;
        find(&mut conn, member, spot).await
    }

    async fn page(
        &self,
        member: &str,
        page: PageRequest,
    ) -> Result<Option<Page<Bookmark>>, StoreError> {
        let mut snapshot = self.db.reader().begin().await?;
        if !member_exists(&mut snapshot, member).await? {
            return Ok(None);
        }
        let total: i64 = sqlx::query_scalar("SELECT count(*) FROM bookmarks WHERE user_id = ?1")
            .bind(member)
            .fetch_one(&mut *snapshot)
            .await?;
        let rows = sqlx::query(concat!(
            "SELECT b.user_id, b.created_at, ",
            spot_columns!(),
            " FROM (SELECT * FROM bookmarks INDEXED BY bookmarks_newest WHERE user_id = ?1
                    ORDER BY created_at DESC, spot_id DESC LIMIT ?2 OFFSET ?3) AS b
              CROSS JOIN tour_spots AS s ON s.id = b.spot_id
              ORDER BY b.created_at DESC, b.spot_id DESC"
        ))
        .bind(member)
        .bind(page.size())
        .bind(page.offset().cast_signed())
        .fetch_all(&mut *snapshot)
        .await?;
        Ok(Some(Page {
            items: rows.iter().map(bookmark_of).collect::<Result<_, _>>()?,
            total: total.cast_unsigned(),
            request: page,
        }))
    }
}
