//! Reviews and likes in SQLite.

use std::collections::HashSet;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_shared_events::sqlite::to_micros;

use super::super::json_numbers;
use super::member_content::{member_exists, spot_exists};
use super::{SqliteStore, record, time};
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
impl ReviewStore for SqliteStore {
    async fn write(
        &self,
        member: &str,
        spot: SpotId,
        content: &ReviewContent,
        now: DateTime<Utc>,
    ) -> Result<Written, StoreError> {
        let mut transaction = self.db.write().await?;
        if !member_exists(&mut transaction, member).await? {
            return Ok(Written::NoSuchMember);
        }
        if !spot_exists(&mut transaction, spot).await? {
            return Ok(Written::NoSuchSpot);
        }
        let row: Row = sqlx::query_as(
            "INSERT INTO reviews (spot_id, user_id, created_at, content) VALUES (?1, ?2, ?3, ?4)
             RETURNING id, spot_id, user_id, created_at, content, like_count",
        )
        .bind(spot.number())
        .bind(member)
        .bind(to_micros(now))
        .bind(content.as_str())
        .fetch_one(&mut *transaction)
        .await?;
        let review = review_of(row)?;
        record(&mut transaction, &[reviewed(member, spot, review.id, now)], now).await?;
        transaction.commit().await?;
        self.committed();
        Ok(Written::Written(review))
    }

    async fn delete(
        &self,
        member: &str,
        review: ReviewId,
        now: DateTime<Utc>,
    ) -> Result<Deleted, StoreError> {
        let mut transaction = self.db.write().await?;
        if !member_exists(&mut transaction, member).await? {
            return Ok(Deleted::NoSuchMember);
        }
        let found: Option<(i64, String)> =
            sqlx::query_as("SELECT spot_id, user_id FROM reviews WHERE id = ?1")
                .bind(review.number())
                .fetch_optional(&mut *transaction)
                .await?;
        let Some((spot, author)) = found else {
            return Ok(Deleted::NotThere);
        };
        if author != member {
            return Ok(Deleted::NotYours);
        }
        for statement in
            ["DELETE FROM review_likes WHERE review_id = ?1", "DELETE FROM reviews WHERE id = ?1"]
        {
            sqlx::query(statement).bind(review.number()).execute(&mut *transaction).await?;
        }
        let event = deleted(member, SpotId::new(spot), review, now);
        record(&mut transaction, &[event], now).await?;
        transaction.commit().await?;
        self.committed();
        Ok(Deleted::Deleted)
    }

    async fn like(&self, member: &str, review: ReviewId, liked: bool) -> Result<Liked, StoreError> {
        let mut transaction = self.db.write().await?;
        if !member_exists(&mut transaction, member).await? {
            return Ok(Liked::NoSuchMember);
        }
        let exists: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM reviews WHERE id = ?1)")
                .bind(review.number())
                .fetch_one(&mut *transaction)
                .await?;
        if !exists {
            return Ok(Liked::NoSuchReview);
        }
        let change = if liked {
            "INSERT INTO review_likes (review_id, user_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING"
        } else {
            "DELETE FROM review_likes WHERE review_id = ?1 AND user_id = ?2"
        };
        let changed = sqlx::query(change)
            .bind(review.number())
            .bind(member)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
        if changed > 0 {
            sqlx::query("UPDATE reviews SET like_count = like_count + ?2 WHERE id = ?1")
                .bind(review.number())
                .bind(if liked { 1 } else { -1 })
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
        }
        Ok(Liked::Done)
    }

    async fn page(
        &self,
        spot: SpotId,
        page: PageRequest,
    ) -> Result<Option<Page<Review>>, StoreError> {
        let mut snapshot = self.db.reader().begin().await?;
        if !spot_exists(&mut snapshot, spot).await? {
            return Ok(None);
        }
        let total: i64 = sqlx::query_scalar("SELECT count(*) FROM reviews WHERE spot_id = ?1")
            .bind(spot.number())
            .fetch_one(&mut *snapshot)
            .await?;
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, spot_id, user_id, created_at, content, like_count
             FROM reviews WHERE spot_id = ?1
             ORDER BY created_at DESC, id DESC LIMIT ?2 OFFSET ?3",
        )
        .bind(spot.number())
        .bind(page.size())
        .bind(page.offset().cast_signed())
        .fetch_all(&mut *snapshot)
        .await?;
        Ok(Some(Page {
            items: rows.into_iter().map(review_of).collect::<Result<_, _>>()?,
            total: total.cast_unsigned(),
            request: page,
        }))
    }

    async fn likes(
        &self,
        member: &str,
        reviews: &[ReviewId],
    ) -> Result<Option<Vec<bool>>, StoreError> {
        let mut snapshot = self.db.reader().begin().await?;
        if !member_exists(&mut snapshot, member).await? {
            return Ok(None);
        }
        let liked: HashSet<i64> = sqlx::query_scalar(
            "SELECT l.review_id FROM json_each(?1) AS wanted
             CROSS JOIN review_likes AS l ON l.review_id = wanted.value AND l.user_id = ?2",
        )
        .bind(json_numbers(reviews.iter().map(|review| review.number())))
        .bind(member)
        .fetch_all(&mut *snapshot)
        .await?
        .into_iter()
        .collect();
        Ok(Some(reviews.iter().map(|review| liked.contains(&review.number())).collect()))
    }
}
