//! What a member owns here, as a whole: whether there is a member, and removing it with one.

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use tourin_shared_events::events::Outgoing;

use crate::app::bookmarks::unbookmarked;
use crate::app::reviews::deleted;
use crate::domain::review::ReviewId;
use crate::domain::spot::SpotId;

/// Whether there is an account with this id.
pub(super) async fn member_exists(
    conn: &mut SqliteConnection,
    user_id: &str,
) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM members WHERE id = ?1)")
        .bind(user_id)
        .fetch_one(conn)
        .await
}

/// Whether there is a spot with this id.
pub(super) async fn spot_exists(conn: &mut SqliteConnection, spot: SpotId) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM tour_spots WHERE id = ?1)")
        .bind(spot.number())
        .fetch_one(conn)
        .await
}

/// Removes a member's bookmarks, reviews (with everybody's likes of them) and likes. The events
/// this causes come back, in order, to be appended in the same transaction; likes have none.
pub(super) async fn erase(
    conn: &mut SqliteConnection,
    user_id: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Outgoing>> {
    let bookmarks: Vec<i64> =
        sqlx::query_scalar("DELETE FROM bookmarks WHERE user_id = ?1 RETURNING spot_id")
            .bind(user_id)
            .fetch_all(&mut *conn)
            .await?;
    sqlx::query(
        "DELETE FROM review_likes
         WHERE review_id IN (SELECT id FROM reviews WHERE user_id = ?1)",
    )
    .bind(user_id)
    .execute(&mut *conn)
    .await?;
    let reviews: Vec<(i64, i64)> =
        sqlx::query_as("DELETE FROM reviews WHERE user_id = ?1 RETURNING spot_id, id")
            .bind(user_id)
            .fetch_all(&mut *conn)
            .await?;
    sqlx::query(
        "UPDATE reviews SET like_count = like_count - 1
         WHERE id IN (SELECT review_id FROM review_likes WHERE user_id = ?1)",
    )
    .bind(user_id)
    .execute(&mut *conn)
    .await?;
    sqlx::query("DELETE FROM review_likes WHERE user_id = ?1")
        .bind(user_id)
        .execute(&mut *conn)
        .await?;
    let unbookmarked =
        bookmarks.into_iter().map(|spot| unbookmarked(user_id, SpotId::new(spot), now));
    let deleted = reviews
        .into_iter()
        .map(|(spot, review)| deleted(user_id, SpotId::new(spot), ReviewId::new(review), now));
    Ok(unbookmarked.chain(deleted).collect())
}
