//! Jumps of the clock and their effect on the trend.
//!
//! Scores are relative to a landmark. So an event counted by a clock that is ahead outweighs every
//! current event, and moving the landmark to its time makes all earlier scores negligible. That a
//! clock was ahead shows only later, when it goes back. So when the clock jumps ahead by more than a
//! half-life, the earlier scores are copied, and the plain weights counted since are recorded with
//! them. If the clock goes back, the trend is restored from these two. After the clock has advanced
//! for an hour ([`CONFIRMED_AFTER`]) they are dropped.

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use tourin_shared_events::sqlite::{from_micros, to_micros};

use super::micros;
use crate::domain::decay::Decay;
use crate::domain::trend::{CONFIRMED_AFTER, NEGLIGIBLE, jump_of};

/// The trend's latest time is stored only if it changes by at least this, in microseconds.
const SEEN_EVERY: u64 = 1_000_000;

/// The trend's landmark and state after [`settle`].
pub(super) struct Settled {
    pub(super) landmark: DateTime<Utc>,
    /// Whether a jump is unconfirmed, so that plain weights must be recorded as well.
    pub(super) has_jumped: bool,
}

/// Brings the trend to the time `now`, and handles jumps of the clock.
pub(super) async fn settle(
    connection: &mut SqliteConnection,
    decay: Decay,
    now: DateTime<Utc>,
) -> sqlx::Result<Settled> {
    let (landmark, seen, jump): (i64, i64, Option<i64>) = sqlx::query_as(
        "SELECT landmark, coalesce(seen_at, landmark), (SELECT jumped_at FROM trend_jump)
         FROM trend_state",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (mut landmark, mut jump) = (time(landmark)?, jump);
    let step = micros(jump_of(decay.half_life()));
    let at = to_micros(now);
    if jump.is_some_and(|jumped| seen.saturating_sub(jumped) >= micros(CONFIRMED_AFTER)) {
        drop_jump(connection).await?;
        jump = None;
    }
    if at > seen.saturating_add(step) && jump.is_none() {
        sqlx::query("INSERT INTO trend_scores_before SELECT spot_id, score FROM trend_scores")
            .execute(&mut *connection)
            .await?;
        sqlx::query(
            "INSERT INTO trend_jump (id, jumped_at, landmark)
             SELECT 1, ?, landmark FROM trend_state",
        )
        .bind(at)
        .execute(&mut *connection)
        .await?;
        jump = Some(at);
    } else if at < seen.saturating_sub(step) {
        landmark = match jump.take() {
            Some(_) => restore(connection, decay, now).await?,
            // The scores keep their value: the landmark moves back with the clock.
            None => time(to_micros(landmark).saturating_sub(seen.saturating_sub(at)))?,
        };
        // Counts from the future would keep naming people until that time is past.
        sqlx::query(
            "UPDATE OR REPLACE trend_counted SET counted_at = ?1 WHERE counted_at > ?1 + ?2",
        )
        .bind(at)
        .bind(step)
        .execute(&mut *connection)
        .await?;
    }
    // Concurrent events share one update. A second does not matter for a jump.
    if at.abs_diff(seen) >= SEEN_EVERY {
        sqlx::query("UPDATE trend_state SET landmark = ?, seen_at = ?")
            .bind(to_micros(landmark))
            .bind(at)
            .execute(connection)
            .await?;
    }
    Ok(Settled { landmark, has_jumped: jump.is_some() })
}

/// Restores the scores from before the jump, and counts later events as of `now`. Returns the
/// landmark.
async fn restore(
    connection: &mut SqliteConnection,
    decay: Decay,
    now: DateTime<Utc>,
) -> sqlx::Result<DateTime<Utc>> {
    let landmark: i64 =
        sqlx::query_scalar("SELECT landmark FROM trend_jump").fetch_one(&mut *connection).await?;
    let mut landmark = time(landmark)?;
    for statement in [
        "DELETE FROM trend_scores",
        "INSERT INTO trend_scores SELECT spot_id, score FROM trend_scores_before",
    ] {
        sqlx::query(statement).execute(&mut *connection).await?;
    }
    if decay.must_move(landmark, now) {
        move_landmark(connection, decay, landmark, now).await?;
        landmark = now;
    }
    sqlx::query(
        "INSERT INTO trend_scores (spot_id, score)
         SELECT spot_id, weight * ? FROM trend_scores_since WHERE true
         ON CONFLICT DO UPDATE SET score = score + excluded.score",
    )
    .bind(decay.gain(landmark, now))
    .execute(&mut *connection)
    .await?;
    drop_jump(connection).await?;
    Ok(landmark)
}

/// Drops the scores from before the jump.
pub(super) async fn drop_jump(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    for statement in [
        "DELETE FROM trend_scores_before",
        "DELETE FROM trend_scores_since",
        "DELETE FROM trend_jump",
    ] {
        sqlx::query(statement).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Scales every score to a new landmark, and deletes negligible ones.
pub(super) async fn move_landmark(
    connection: &mut SqliteConnection,
    decay: Decay,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query("UPDATE trend_scores SET score = score * ?")
        .bind(decay.move_factor(from, to))
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM trend_scores WHERE score < ?")
        .bind(NEGLIGIBLE)
        .execute(&mut *connection)
        .await?;
    sqlx::query("UPDATE trend_state SET landmark = ?")
        .bind(to_micros(to))
        .execute(connection)
        .await?;
    Ok(())
}

fn time(micros: i64) -> sqlx::Result<DateTime<Utc>> {
    from_micros(micros).map_err(|error| sqlx::Error::Decode(error.into()))
}
