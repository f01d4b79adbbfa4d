//! A member's content: checks that the member exists, and the erasure.

use chrono::{DateTime, Utc};
use tourin_shared_events::events::Outgoing;

use super::Connection;
use crate::app::bookmarks::unbookmarked;
use crate::app::reviews::deleted;
use crate::domain::account::MemberId;
use crate::domain::review::ReviewId;
use crate::domain::spot::SpotId;

/// Whether a text can be an account's id. MySQL pads with spaces when it compares, so it would also
/// match the id with a space after it.
pub(super) fn is_an_id(user_id: &str) -> bool {
    MemberId::parse(user_id).is_ok()
}

/// Whether there is an account with this id.
pub(super) async fn member_exists(conn: &mut Connection, user_id: &str) -> sqlx::Result<bool> {
    find_member("SELECT 1 FROM members WHERE id = ?", conn, user_id).await
}

/// The same, with a shared lock on the account until the transaction ends.
pub(super) async fn keep_member(conn: &mut Connection, user_id: &str) -> sqlx::Result<bool> {
    find_member(concat!("SELECT 1 FROM members WHERE id = ?", in_share_mode!()), conn, user_id)
        .await
}

/// The same, with an exclusive lock on the account until the transaction ends.
pub(super) async fn lock_member(conn: &mut Connection, user_id: &str) -> sqlx::Result<bool> {
    find_member(concat!("SELECT 1 FROM members WHERE id = ?", for_update!()), conn, user_id).await
}

async fn find_member(
    sql: &'static str,
    conn: &mut Connection,
    user_id: &str,
) -> sqlx::Result<bool> {
    if !is_an_id(user_id) {
        return Ok(false);
    }
    let found: Option<i64> = sqlx::query_scalar(sql).bind(user_id).fetch_optional(conn).await?;
    Ok(found.is_some())
}

/// Whether there is a spot with this id. Spots are never removed.
pub(super) async fn spot_exists(conn: &mut Connection, spot: SpotId) -> sqlx::Result<bool> {
    let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM tour_spots WHERE id = ?")
        .bind(spot.number())
        .fetch_optional(conn)
        .await?;
    Ok(found.is_some())
}

/// Removes the bookmarks, reviews (with all likes of them) and likes of a locked member
/// ([`lock_member`]). Returns the events, in order, to append in the same transaction; likes have
/// none.
pub(super) async fn erase(
    conn: &mut Connection,
    user_id: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Outgoing>> {
    let bookmarks: Vec<i64> =
        sqlx::query_scalar("SELECT spot_id FROM bookmarks WHERE user_id = ? ORDER BY spot_id")
            .bind(user_id)
            .fetch_all(&mut *conn)
            .await?;
    // A transaction that likes one of these reviews, or counts the likes of one, waits for this lock.
    let reviews: Vec<(i64, i64)> = sqlx::query_as(concat!(
        "SELECT spot_id, id FROM reviews WHERE user_id = ? ORDER BY id",
        for_update!()
    ))
    .bind(user_id)
    .fetch_all(&mut *conn)
    .await?;
    for statement in [
        "DELETE FROM bookmarks WHERE user_id = ?",
        either!(
            sqlite: "DELETE FROM review_likes
                     WHERE review_id IN (SELECT id FROM reviews WHERE user_id = ?)",
            mysql: "DELETE l FROM reviews AS r
                    STRAIGHT_JOIN review_likes AS l ON l.review_id = r.id WHERE r.user_id = ?",
        ),
        "DELETE FROM reviews WHERE user_id = ?",
        either!(
            sqlite: "UPDATE reviews SET like_count = like_count - 1
                     WHERE id IN (SELECT review_id FROM review_likes WHERE user_id = ?)",
            mysql: "UPDATE review_likes AS l STRAIGHT_JOIN reviews AS r ON r.id = l.review_id
                    SET r.like_count = r.like_count - 1 WHERE l.user_id = ?",
        ),
        "DELETE FROM review_likes WHERE user_id = ?",
    ] {
        sqlx::query(statement).bind(user_id).execute(&mut *conn).await?;
    }
    let unbookmarked =
        bookmarks.into_iter().map(|spot| unbookmarked(user_id, SpotId::new(spot), now));
    let deleted = reviews
        .into_iter()
        .map(|(spot, review)| deleted(user_id, SpotId::new(spot), ReviewId::new(review), now));
    Ok(unbookmarked.chain(deleted).collect())
}
