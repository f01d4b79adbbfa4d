//! Bookmarks.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::Row as _;
use tourin_shared_events::events::Outgoing;
use tourin_shared_events::mysql::is_unique_violation;
use tourin_shared_events::sqlite::to_micros;

use super::member_content::{is_an_id, keep_member, member_exists, spot_exists};
use super::spot_rows::{spot_columns, spot_of};
use super::{Connection, Row, Store, record, time};
use crate::app::StoreError;
use crate::app::bookmarks::{BookmarkStore, Placed, Removed};
use crate::domain::bookmark::Bookmark;
use crate::domain::page::{Page, PageRequest};
use crate::domain::spot::SpotId;

fn bookmark_of(row: &Row) -> Result<Bookmark, StoreError> {
    Ok(Bookmark {
        user_id: row.try_get("user_id")?,
        created_at: time(row.try_get("created_at")?)?,
        spot: spot_of(row)?,
    })
}

async fn find(
    conn: &mut Connection,
    member: &str,
    spot: SpotId,
) -> Result<Option<Bookmark>, StoreError> {
    if !is_an_id(member) {
        return Ok(None);
    }
    let row = sqlx::query(concat!(
        "SELECT b.user_id, b.created_at, ",
        spot_columns!(),
        " FROM bookmarks AS b",
        join!(),
        "tour_spots AS s ON s.id = b.spot_id WHERE b.user_id = ? AND b.spot_id = ?"
    ))
    .bind(member)
    .bind(spot.number())
    .fetch_optional(conn)
    .await?;
    row.as_ref().map(bookmark_of).transpose()
}

#[async_trait]
impl BookmarkStore for Store {
    async fn place(
        &self,
        member: &str,
        spot: SpotId,
        now: DateTime<Utc>,
        event: Outgoing,
    ) -> Result<Placed, StoreError> {
        operation!(self, "place", "bookmarks", async {
            let mut tx = self.db.write().await?;
            if !keep_member(&mut tx, member).await? {
                return Ok(Placed::NoSuchMember);
            }
            if !spot_exists(&mut tx, spot).await? {
                return Ok(Placed::NoSuchSpot);
            }
            let added = sqlx::query(
                "INSERT INTO bookmarks (user_id, spot_id, created_at) VALUES (?, ?, ?)",
            )
            .bind(member)
            .bind(spot.number())
            .bind(to_micros(now))
            .execute(&mut *tx)
            .await;
            let is_new = match added {
                Ok(_) => true,
                Err(error) if is_unique_violation(&error) => false,
                Err(error) => return Err(error.into()),
            };
            let bookmark = find(&mut tx, member, spot).await?.ok_or_else(|| {
                StoreError::Failed(anyhow::anyhow!(
                    "a bookmark is missing right after it was placed"
                ))
            })?;
            if !is_new {
                return Ok(Placed::AlreadyThere(bookmark));
            }
            record(&mut tx, std::slice::from_ref(&event), now).await?;
            tx.commit().await?;
            self.committed();
            Ok(Placed::Placed(bookmark))
        })
    }

    async fn remove(
        &self,
        member: &str,
        spot: SpotId,
        now: DateTime<Utc>,
        event: Outgoing,
    ) -> Result<Removed, StoreError> {
        operation!(self, "remove", "bookmarks", async {
            let mut tx = self.db.write().await?;
            if !keep_member(&mut tx, member).await? {
                return Ok(Removed::NoSuchMember);
            }
            let removed = sqlx::query("DELETE FROM bookmarks WHERE user_id = ? AND spot_id = ?")
                .bind(member)
                .bind(spot.number())
                .execute(&mut *tx)
                .await?;
            if removed.rows_affected() == 0 {
                return Ok(Removed::NotThere);
            }
            record(&mut tx, std::slice::from_ref(&event), now).await?;
            tx.commit().await?;
            self.committed();
            Ok(Removed::Removed)
        })
    }

    async fn find(&self, member: &str, spot: SpotId) -> Result<Option<Bookmark>, StoreError> {
        operation!(self, "select", "bookmarks", async {
            let mut conn = self.db.reader().acquire().await?;
            find(&mut conn, member, spot).await
        })
    }

    async fn page(
        &self,
        member: &str,
        page: PageRequest,
    ) -> Result<Option<Page<Bookmark>>, StoreError> {
        operation!(self, "select", "bookmarks", async {
            let mut snapshot = self.snapshot().await?;
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
                " FROM (SELECT user_id, spot_id, created_at FROM bookmarks",
                by_index!(bookmarks_newest),
                " WHERE user_id = ? ORDER BY created_at DESC, spot_id DESC LIMIT ? OFFSET ?) AS b",
                join!(),
                "tour_spots AS s ON s.id = b.spot_id ORDER BY b.created_at DESC, b.spot_id DESC"
            ))
            .bind(member)
            .bind(page.size())
            .bind(page.offset().cast_signed())
            .fetch_all(&mut *snapshot)
            .await?;
            snapshot.rollback().await?;
            Ok(Some(Page {
                items: rows.iter().map(bookmark_of).collect::<Result<_, _>>()?,
                total: total.cast_unsigned(),
                request: page,
            }))
        })
    }
}
