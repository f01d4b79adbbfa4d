//! Reviews and likes. A transaction that changes a review or its likes locks the review's row first.

use std::collections::HashSet;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_shared_events::sqlite::to_micros;

use super::super::json_numbers;
use super::member_content::{keep_member, member_exists, spot_exists};
use super::{Store, record, time};
use crate::app::StoreError;
use crate::app::reviews::{Deleted, Liked, ReviewStore, Written, deleted, reviewed};
use crate::domain::page::{Page, PageRequest};
use crate::domain::review::{Review, ReviewContent, ReviewId};
use crate::domain::spot::SpotId;

/// A row: id, spot, author, time, text, likes.
type Row = (i64, i64, String, i64, String, i64);

fn review_of((id, spot, user_id, created_at, content, likes): Row) -> Result<Review, StoreError> {
    Ok(Review {
        id: ReviewId::new(id),
        spot_id: SpotId::new(spot),
        user_id,
        created_at: time(created_at)?,
        content,
        like_count: likes.cast_unsigned(),
    })
}

#[async_trait]
impl ReviewStore for Store {
    async fn write(
        &self,
        member: &str,
        spot: SpotId,
        content: &ReviewContent,
        now: DateTime<Utc>,
    ) -> Result<Written, StoreError> {
        operation!(self, "write", "reviews", async {
            let mut tx = self.db.write().await?;
            if !keep_member(&mut tx, member).await? {
                return Ok(Written::NoSuchMember);
            }
            if !spot_exists(&mut tx, spot).await? {
                return Ok(Written::NoSuchSpot);
            }
            let written = sqlx::query(
                "INSERT INTO reviews (spot_id, user_id, created_at, content) VALUES (?, ?, ?, ?)",
            )
            .bind(spot.number())
            .bind(member)
            .bind(to_micros(now))
            .bind(content.as_str())
            .execute(&mut *tx)
            .await?;
            let id = either!(
                sqlite: written.last_insert_rowid(),
                mysql: written.last_insert_id().cast_signed(),
            );
            let row: Row = sqlx::query_as(
                "SELECT id, spot_id, user_id, created_at, content, like_count \
                 FROM reviews WHERE id = ?",
            )
            .bind(id)
            .fetch_one(&mut *tx)
            .await?;
            let review = review_of(row)?;
            record(&mut tx, &[reviewed(member, spot, review.id, now)], now).await?;
            tx.commit().await?;
            self.committed();
            Ok(Written::Written(review))
        })
    }

    async fn delete(
        &self,
        member: &str,
        review: ReviewId,
        now: DateTime<Utc>,
    ) -> Result<Deleted, StoreError> {
        operation!(self, "delete", "reviews", async {
            let mut tx = self.db.write().await?;
            if !keep_member(&mut tx, member).await? {
                return Ok(Deleted::NoSuchMember);
            }
            let found: Option<(i64, String)> = sqlx::query_as(concat!(
                "SELECT spot_id, user_id FROM reviews WHERE id = ?",
                for_update!()
            ))
            .bind(review.number())
            .fetch_optional(&mut *tx)
            .await?;
            let Some((spot, author)) = found else {
                return Ok(Deleted::NotThere);
            };
            if author != member {
                return Ok(Deleted::NotYours);
            }
            for statement in
                ["DELETE FROM review_likes WHERE review_id = ?", "DELETE FROM reviews WHERE id = ?"]
            {
                sqlx::query(statement).bind(review.number()).execute(&mut *tx).await?;
            }
            let event = deleted(member, SpotId::new(spot), review, now);
            record(&mut tx, &[event], now).await?;
            tx.commit().await?;
            self.committed();
            Ok(Deleted::Deleted)
        })
    }

    async fn like(&self, member: &str, review: ReviewId, liked: bool) -> Result<Liked, StoreError> {
        operation!(self, "like", "reviews", async {
            let mut tx = self.db.write().await?;
            if !keep_member(&mut tx, member).await? {
                return Ok(Liked::NoSuchMember);
            }
            let spot: Option<i64> = sqlx::query_scalar(concat!(
                "SELECT spot_id FROM reviews WHERE id = ?",
                for_update!()
            ))
            .bind(review.number())
            .fetch_optional(&mut *tx)
            .await?;
            let Some(spot) = spot else {
                return Ok(Liked::NoSuchReview);
            };
            // The review is locked, so this stays true until the commit.
            let before: Option<i64> = sqlx::query_scalar(
                "SELECT 1 FROM review_likes WHERE review_id = ? AND user_id = ?",
            )
            .bind(review.number())
            .bind(member)
            .fetch_optional(&mut *tx)
            .await?;
            if before.is_some() == liked {
                return Ok(Liked::Unchanged);
            }
            let change = if liked {
                "INSERT INTO review_likes (review_id, user_id) VALUES (?, ?)"
            } else {
                "DELETE FROM review_likes WHERE review_id = ? AND user_id = ?"
            };
            sqlx::query(change).bind(review.number()).bind(member).execute(&mut *tx).await?;
            sqlx::query("UPDATE reviews SET like_count = like_count + ? WHERE id = ?")
                .bind(if liked { 1 } else { -1 })
                .bind(review.number())
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            Ok(Liked::Changed(SpotId::new(spot)))
        })
    }

    async fn page(
        &self,
        spot: SpotId,
        page: PageRequest,
    ) -> Result<Option<Page<Review>>, StoreError> {
        operation!(self, "select", "reviews", async {
            let mut snapshot = self.snapshot().await?;
            if !spot_exists(&mut snapshot, spot).await? {
                return Ok(None);
            }
            let total: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM reviews WHERE spot_id = ?")
                .bind(spot.number())
                .fetch_one(&mut *snapshot)
                .await?;
            let rows: Vec<Row> = sqlx::query_as(concat!(
                "SELECT id, spot_id, user_id, created_at, content, like_count FROM reviews",
                by_index!(reviews_newest),
                " WHERE spot_id = ? ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?"
            ))
            .bind(spot.number())
            .bind(page.size())
            .bind(page.offset().cast_signed())
            .fetch_all(&mut *snapshot)
            .await?;
            snapshot.rollback().await?;
            Ok(Some(Page {
                items: rows.into_iter().map(review_of).collect::<Result<_, _>>()?,
                total: total.cast_unsigned(),
                request: page,
            }))
        })
    }

    async fn likes(
        &self,
        member: &str,
        reviews: &[ReviewId],
    ) -> Result<Option<Vec<bool>>, StoreError> {
        operation!(self, "select", "review_likes", async {
            let mut snapshot = self.snapshot().await?;
            if !member_exists(&mut snapshot, member).await? {
                return Ok(None);
            }
            let liked: Vec<i64> = sqlx::query_scalar(concat!(
                "SELECT l.review_id FROM ",
                numbers!(),
                join!(),
                "review_likes AS l ON l.review_id = w.v AND l.user_id = ?"
            ))
            .bind(json_numbers(reviews.iter().map(|review| review.number())))
            .bind(member)
            .fetch_all(&mut *snapshot)
            .await?;
            snapshot.rollback().await?;
            let liked: HashSet<i64> = liked.into_iter().collect();
            Ok(Some(reviews.iter().map(|review| liked.contains(&review.number())).collect()))
        })
    }
}
