//! The trend on SQLite.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use tourin_shared_events::sqlite::{Database, from_micros, to_micros};

use super::landmark::{Settled, drop_jump, move_landmark, settle};
use super::writer::{Change, Writer};
use super::{count, delete_before, ids_as_json, micros, prune_all};
use crate::app::ingest::MARGIN;
use crate::app::ports::{PortError, TrendEvent, TrendOutcome, TrendStore};
use crate::domain::decay::Decay;
use crate::domain::interaction::{ChangeOrder, Kind};
use crate::domain::spot::SpotId;
use crate::domain::trend::{NEGLIGIBLE, Ranked, TrendRules, best, jump_of};
use crate::operation::{Engine, read, write};
use crate::store::interaction::Stamp;

/// Spots read beyond the limit, so that ties at the end are ordered by id and not by the last bits
/// of their scores.
const TIES: usize = 64;

pub(super) struct SqliteTrend {
    db: Database,
    writer: Writer,
    engine: Engine,
    rules: TrendRules,
}

impl SqliteTrend {
    /// The trend in `db`. Scores of another half-life keep their value at `now`, and decay with the
    /// new half-life from then on.
    pub(super) async fn open(
        db: Database,
        writer: Writer,
        engine: Engine,
        rules: TrendRules,
        now: DateTime<Utc>,
    ) -> Result<Self, PortError> {
        let adopt = AdoptHalfLife { half_life: rules.half_life, now };
        writer.commit(adopt).await?;
        Ok(Self { db, writer, engine, rules })
    }

    /// Reverts the effect of a clock that was ahead, before scores are read with the right clock.
    async fn settle(&self, now: DateTime<Utc>) -> Result<(), PortError> {
        let seen: i64 = sqlx::query_scalar("SELECT coalesce(seen_at, landmark) FROM trend_state")
            .fetch_one(self.db.reader())
            .await?;
        let step = micros(jump_of(self.rules.half_life));
        if to_micros(now) < seen.saturating_sub(step) {
            self.writer.commit(Settle { now, rules: self.rules }).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl TrendStore for SqliteTrend {
    async fn record(&self, event: &TrendEvent) -> Result<TrendOutcome, PortError> {
        let change = Record { event: event.clone(), rules: self.rules };
        write(&self.engine, "record", "trend", self.writer.commit(change)).await
    }

    async fn top(&self, limit: usize, now: DateTime<Utc>) -> Result<Vec<Ranked>, PortError> {
        read(&self.engine, "top", "trend", async {
            self.settle(now).await?;
            // One statement, so that the scores and the landmark belong together.
            let rows: Vec<(i64, f64, i64)> = sqlx::query_as(
                "SELECT spot_id, score, (SELECT landmark FROM trend_state) FROM trend_scores
                 ORDER BY score DESC, spot_id LIMIT ?",
            )
            .bind(count(limit.saturating_add(TIES)))
            .fetch_all(self.db.reader())
            .await
            .map_err(PortError::from)?;
            let Some((_, _, landmark)) = rows.first() else {
                return Ok(Vec::new());
            };
            let landmark = from_micros(*landmark).map_err(PortError::failed)?.min(now);
            let decay = self.rules.decay();
            let scored = rows.into_iter().filter_map(|(spot, score, _)| {
                Some(Ranked { spot: SpotId::new(spot)?, value: decay.value(score, landmark, now) })
            });
            Ok(best(scored, self.rules.floor, limit))
        })
        .await
    }

    async fn values(
        &self,
        spots: &[SpotId],
        now: DateTime<Utc>,
    ) -> Result<HashMap<SpotId, f64>, PortError> {
        read(&self.engine, "values", "trend", async {
            self.settle(now).await?;
            let rows: Vec<(i64, f64, i64)> = sqlx::query_as(
                "SELECT spot_id, score, (SELECT landmark FROM trend_state) FROM trend_scores
                 WHERE spot_id IN (SELECT value FROM json_each(?))",
            )
            .bind(ids_as_json(spots))
            .fetch_all(self.db.reader())
            .await
            .map_err(PortError::from)?;
            let decay = self.rules.decay();
            let mut values = HashMap::new();
            for (spot, score, landmark) in rows {
                let landmark = from_micros(landmark).map_err(PortError::failed)?.min(now);
                if let Some(spot) = SpotId::new(spot) {
                    values.insert(spot, decay.value(score, landmark, now));
                }
            }
            Ok(values)
        })
        .await
    }

    async fn forget(
        &self,
        subject: &str,
        order: ChangeOrder,
        remember_until: DateTime<Utc>,
    ) -> Result<(), PortError> {
        let change = Forget { subject: subject.to_owned(), order: order.into(), remember_until };
        write(&self.engine, "forget", "trend", self.writer.commit(change)).await
    }

    async fn prune(&self, now: DateTime<Utc>) -> Result<u64, PortError> {
        write(
            &self.engine,
            "prune",
            "trend",
            prune_all(|| self.writer.commit(Prune { now, rules: self.rules })),
        )
        .await
    }
}

const fn code(kind: Kind) -> i64 {
    match kind {
        Kind::View => 1,
        Kind::Bookmark => 2,
    }
}

struct Record {
    event: TrendEvent,
    rules: TrendRules,
}

#[async_trait]
impl Change for Record {
    type Output = TrendOutcome;

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<TrendOutcome> {
        let event = &self.event;
        let is_new = sqlx::query(
            "INSERT INTO trend_seen (event_id, kept_until) VALUES (?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(event.event_id.as_bytes().as_slice())
        .bind(to_micros(event.remember_until))
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if is_new == 0 {
            return Ok(TrendOutcome::Duplicate);
        }
        let occurred_at = event.occurred.at.min(event.recorded_at);
        let at = to_micros(occurred_at);
        let stamp = Stamp { at, ..Stamp::from(event.occurred) };
        let order: Option<(i64, i64)> = sqlx::query_as(
            "SELECT forgotten_version, forgotten_at FROM trend_forgotten WHERE subject = ?",
        )
        .bind(&event.subject)
        .fetch_optional(&mut *connection)
        .await?;
        if order.is_some_and(|(version, at)| Stamp { version, at }.forgets(stamp)) {
            return Ok(TrendOutcome::AlreadyCounted);
        }
        let window = micros(self.rules.window);
        let counts = sqlx::query(
            "INSERT INTO trend_counted (subject, spot_id, kind, counted_at, version)
             SELECT ?1, ?2, ?3, ?4, ?6 WHERE NOT EXISTS (SELECT 1 FROM trend_counted
                 WHERE subject = ?1 AND spot_id = ?2 AND kind = ?3
                 AND counted_at > ?4 - ?5 AND counted_at < ?4 + ?5)",
        )
        .bind(&event.subject)
        .bind(event.spot.number())
        .bind(code(event.kind))
        .bind(at)
        .bind(window)
        .bind(stamp.version)
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if counts == 0 {
            return Ok(TrendOutcome::AlreadyCounted);
        }
        let decay = self.rules.decay();
        let Settled { mut landmark, has_jumped } =
            settle(connection, decay, event.recorded_at).await?;
        if decay.must_move(landmark, occurred_at) {
            move_landmark(connection, decay, landmark, occurred_at).await?;
            landmark = occurred_at;
        }
        sqlx::query(
            "INSERT INTO trend_scores (spot_id, score) VALUES (?, ?)
             ON CONFLICT DO UPDATE SET score = score + excluded.score",
        )
        .bind(event.spot.number())
        .bind(event.kind.weight() * decay.gain(landmark, occurred_at))
        .execute(&mut *connection)
        .await?;
        if has_jumped {
            sqlx::query(
                "INSERT INTO trend_scores_since (spot_id, weight) VALUES (?, ?)
                 ON CONFLICT DO UPDATE SET weight = weight + excluded.weight",
            )
            .bind(event.spot.number())
            .bind(event.kind.weight())
            .execute(connection)
            .await?;
        }
        Ok(TrendOutcome::Applied)
    }
}

struct Settle {
    now: DateTime<Utc>,
    rules: TrendRules,
}

#[async_trait]
impl Change for Settle {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        settle(connection, self.rules.decay(), self.now).await.map(drop)
    }
}

struct AdoptHalfLife {
    half_life: Duration,
    now: DateTime<Utc>,
}

#[async_trait]
impl Change for AdoptHalfLife {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        let half_life = micros(self.half_life);
        sqlx::query(
            "INSERT INTO trend_state (id, landmark, half_life_us) VALUES (1, ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(to_micros(self.now))
        .bind(half_life)
        .execute(&mut *connection)
        .await?;
        let before: i64 = sqlx::query_scalar("SELECT half_life_us FROM trend_state")
            .fetch_one(&mut *connection)
            .await?;
        let decay =
            Decay::with_half_life(Duration::from_micros(u64::try_from(before).unwrap_or_default()));
        let Settled { landmark, .. } = settle(connection, decay, self.now).await?;
        if before != half_life {
            // Scores of another half-life cannot be restored.
            drop_jump(connection).await?;
            move_landmark(connection, decay, landmark, self.now).await?;
            sqlx::query("UPDATE trend_state SET half_life_us = ?")
                .bind(half_life)
                .execute(connection)
                .await?;
        }
        Ok(())
    }
}

struct Forget {
    subject: String,
    order: Stamp,
    remember_until: DateTime<Utc>,
}

#[async_trait]
impl Change for Forget {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        let until = to_micros(self.remember_until);
        sqlx::query(
            "DELETE FROM trend_counted WHERE subject = ? AND (version, counted_at) <= (?, ?)",
        )
        .bind(&self.subject)
        .bind(self.order.version)
        .bind(self.order.at)
        .execute(&mut *connection)
        .await?;
        sqlx::query(
            "INSERT INTO trend_forgotten (subject, forgotten_version, forgotten_at, kept_until)
             VALUES (?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET forgotten_version = excluded.forgotten_version,
                 forgotten_at = excluded.forgotten_at
             WHERE (excluded.forgotten_version, excluded.forgotten_at)
                 > (forgotten_version, forgotten_at)",
        )
        .bind(&self.subject)
        .bind(self.order.version)
        .bind(self.order.at)
        .bind(until)
        .execute(&mut *connection)
        .await?;
        sqlx::query("UPDATE trend_forgotten SET kept_until = max(kept_until, ?) WHERE subject = ?")
            .bind(until)
            .bind(&self.subject)
            .execute(connection)
            .await?;
        Ok(())
    }
}

struct Prune {
    now: DateTime<Utc>,
    rules: TrendRules,
}

#[async_trait]
impl Change for Prune {
    type Output = u64;

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<u64> {
        let now = to_micros(self.now);
        let mut removed = 0;
        for statement in [
            "DELETE FROM trend_seen WHERE event_id IN
                 (SELECT event_id FROM trend_seen WHERE kept_until < ? LIMIT ?)",
            "DELETE FROM trend_forgotten WHERE subject IN
                 (SELECT subject FROM trend_forgotten WHERE kept_until < ? LIMIT ?)",
        ] {
            removed += delete_before(connection, statement, now).await?;
        }
        // A count is needed while an event within its window can still arrive.
        let needed = self.rules.max_age + self.rules.window + MARGIN;
        let counted = "DELETE FROM trend_counted WHERE (subject, spot_id, kind, counted_at) IN
                 (SELECT subject, spot_id, kind, counted_at FROM trend_counted
                  WHERE counted_at < ? LIMIT ?)";
        removed += delete_before(connection, counted, now.saturating_sub(micros(needed))).await?;

        let decay = self.rules.decay();
        let Settled { landmark, .. } = settle(connection, decay, self.now).await?;
        let negligible = decay.score(NEGLIGIBLE, landmark.min(self.now), self.now);
        let scores = "DELETE FROM trend_scores WHERE spot_id IN
                 (SELECT spot_id FROM trend_scores WHERE score < ? LIMIT ?)";
        removed += delete_before(connection, scores, negligible).await?;
        Ok(removed)
    }
}
