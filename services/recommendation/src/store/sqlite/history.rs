//! Histories on SQLite.

use std::collections::HashMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use tourin_shared_events::sqlite::{Database, from_micros, to_micros};

use super::writer::{Change, Writer};
use super::{count, delete_before, ids_as_json, micros, prune_all};
use crate::app::ingest::MARGIN;
use crate::app::ports::{
    HistoryEvent, HistoryOutcome, HistoryStore, Interactions, PortError, Profile,
};
use crate::domain::interaction::{ChangeOrder, Kind, Remembered};
use crate::domain::similarity::{Holder, Neighbourhood};
use crate::domain::spot::SpotId;
use crate::operation::{Engine, read, write};
use crate::store::HistoryRules;
use crate::store::interaction::{Interaction, Stamp};

pub(super) struct SqliteHistories {
    db: Database,
    writer: Writer,
    engine: Engine,
    rules: HistoryRules,
}

impl SqliteHistories {
    pub(super) fn new(db: Database, writer: Writer, engine: Engine, rules: HistoryRules) -> Self {
        Self { db, writer, engine, rules }
    }
}

#[async_trait]
impl HistoryStore for SqliteHistories {
    async fn record(&self, event: &HistoryEvent) -> Result<HistoryOutcome, PortError> {
        let change = Record { event: event.clone(), recent: self.rules.recent };
        write(&self.engine, "record", "histories", self.writer.commit(change)).await
    }

    async fn forget(
        &self,
        member: &str,
        order: ChangeOrder,
        remember_until: DateTime<Utc>,
    ) -> Result<(), PortError> {
        let change = Forget { member: member.to_owned(), order: order.into(), remember_until };
        write(&self.engine, "forget", "histories", self.writer.commit(change)).await
    }

    async fn profile(&self, member: &str, limit: usize) -> Result<Profile, PortError> {
        read(&self.engine, "profile", "histories", async {
            let rows: Vec<(i64, bool, i64)> = sqlx::query_as(
            "SELECT spot_id, bookmarked, last_at FROM interactions WHERE member = ? AND live = 1
                 ORDER BY last_at DESC, spot_id",
        )
        .bind(member)
        .fetch_all(self.db.reader())
        .await
        .map_err(PortError::from)?;
            let mut profile = Profile::default();
            for (spot, bookmarked, last_at) in rows {
                let Some(spot) = SpotId::new(spot) else {
                    continue;
                };
                profile.known.insert(spot);
                if profile.recent.len() < limit {
                    profile.recent.push(Remembered {
                        spot,
                        kind: if bookmarked { Kind::Bookmark } else { Kind::View },
                        last_at: from_micros(last_at).map_err(PortError::failed)?,
                    });
                }
            }
            Ok(profile)
        })
        .await
    }

    async fn interactions(&self, member: &str, limit: usize) -> Result<Interactions, PortError> {
        read(&self.engine, "interactions", "histories", async {
            let rows: Vec<(i64, bool, bool)> = sqlx::query_as(
                "SELECT spot_id, bookmarked, viewed_at IS NOT NULL FROM interactions
                 WHERE member = ? AND live = 1 ORDER BY spot_id",
            )
            .bind(member)
            .fetch_all(self.db.reader())
            .await
            .map_err(PortError::from)?;
            let spots = |matches: fn(&(i64, bool, bool)) -> bool| {
                let matching = rows.iter().filter(|row| matches(row));
                matching.filter_map(|(spot, ..)| SpotId::new(*spot)).take(limit).collect()
            };
            Ok(Interactions {
                bookmarked: spots(|(_, bookmarked, _)| *bookmarked),
                viewed: spots(|(_, _, viewed)| *viewed),
            })
        })
        .await
    }

    async fn neighbourhood(
        &self,
        spot: SpotId,
        holders: usize,
    ) -> Result<Neighbourhood, PortError> {
        read(&self.engine, "neighbourhood", "histories", async {
            let rows: Vec<(i64, String, i64)> = sqlx::query_as(
                "SELECT members.degree, members.recent,
                     (SELECT degree FROM spot_degrees WHERE spot_id = ?1)
                 FROM interactions JOIN members USING (member)
                 WHERE interactions.spot_id = ?1 AND live = 1
                 ORDER BY last_at DESC, interactions.member LIMIT ?2",
            )
            .bind(spot.number())
            .bind(count(holders))
            .fetch_all(self.db.reader())
            .await
            .map_err(PortError::from)?;
            let mut neighbourhood = Neighbourhood::default();
            for (degree, recent, spot_degree) in rows {
                neighbourhood.degree = u64::try_from(spot_degree).unwrap_or_default();
                let recent: Vec<i64> = serde_json::from_str(&recent).map_err(PortError::failed)?;
                neighbourhood.holders.push(Holder {
                    degree: u64::try_from(degree).unwrap_or_default(),
                    recent: recent.into_iter().filter_map(SpotId::new).collect(),
                });
            }
            Ok(neighbourhood)
        })
        .await
    }

    async fn degrees(&self, spots: &[SpotId]) -> Result<HashMap<SpotId, u64>, PortError> {
        read(&self.engine, "degrees", "histories", async {
            let rows: Vec<(i64, i64)> = sqlx::query_as(
                "SELECT spot_id, degree FROM spot_degrees
                 WHERE spot_id IN (SELECT value FROM json_each(?))",
            )
            .bind(ids_as_json(spots))
            .fetch_all(self.db.reader())
            .await
            .map_err(PortError::from)?;
            Ok(rows
                .into_iter()
                .filter_map(|(spot, degree)| {
                    Some((SpotId::new(spot)?, u64::try_from(degree).ok()?))
                })
                .collect())
        })
        .await
    }

    async fn prune(&self, now: DateTime<Utc>) -> Result<u64, PortError> {
        write(
            &self.engine,
            "prune",
            "histories",
            prune_all(|| self.writer.commit(Prune { now, rules: self.rules })),
        )
        .await
    }
}

struct Record {
    event: HistoryEvent,
    recent: usize,
}

#[async_trait]
impl Change for Record {
    type Output = HistoryOutcome;

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<HistoryOutcome> {
        let HistoryEvent { member, spot, .. } = &self.event;
        let stamp = Stamp::from(self.event.occurred);
        let (before, forgotten) = stored(connection, member, *spot, stamp).await?;
        if forgotten {
            return Ok(HistoryOutcome::Forgotten);
        }
        let now = to_micros(self.event.recorded_at);
        let after = before.unwrap_or_default().after(self.event.change, stamp, now);
        if before.unwrap_or_default() == after {
            return Ok(HistoryOutcome::Stale);
        }
        sqlx::query(
            "INSERT INTO interactions
                 (member, spot_id, viewed_at, bookmarked, bookmark_changed_at, bookmark_version,
                  live, last_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET viewed_at = excluded.viewed_at,
                 bookmarked = excluded.bookmarked,
                 bookmark_changed_at = excluded.bookmark_changed_at,
                 bookmark_version = excluded.bookmark_version,
                 live = excluded.live, last_at = excluded.last_at",
        )
        .bind(member)
        .bind(spot.number())
        .bind(after.viewed_at)
        .bind(after.bookmarked)
        .bind(after.bookmark_changed.map(|changed| changed.at))
        .bind(after.bookmark_changed.unwrap_or_default().version)
        .bind(after.is_live())
        .bind(after.last_at())
        .execute(&mut *connection)
        .await?;
        let was_live = before.is_some_and(Interaction::is_live);
        let growth = i64::from(after.is_live()) - i64::from(was_live);
        if growth != 0 {
            sqlx::query(
                "INSERT INTO spot_degrees (spot_id, degree) VALUES (?, ?)
                 ON CONFLICT DO UPDATE SET degree = degree + excluded.degree",
            )
            .bind(spot.number())
            .bind(growth)
            .execute(&mut *connection)
            .await?;
        }
        if growth != 0 || after.is_live() {
            self.refresh_member(connection, growth).await?;
        }
        Ok(HistoryOutcome::Applied)
    }
}

impl Record {
    async fn refresh_member(
        &self,
        connection: &mut SqliteConnection,
        growth: i64,
    ) -> sqlx::Result<()> {
        sqlx::query(
            "INSERT INTO members (member, degree, recent)
             SELECT ?1, ?2, json_group_array(spot_id) FROM
                 (SELECT spot_id FROM interactions WHERE member = ?1 AND live = 1
                  ORDER BY last_at DESC, spot_id LIMIT ?3)
             WHERE true
             ON CONFLICT DO UPDATE SET degree = degree + excluded.degree, recent = excluded.recent",
        )
        .bind(&self.event.member)
        .bind(growth)
        .bind(count(self.recent))
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// The row, and whether the member was forgotten after the change with this stamp.
async fn stored(
    connection: &mut SqliteConnection,
    member: &str,
    spot: SpotId,
    stamp: Stamp,
) -> sqlx::Result<(Option<Interaction>, bool)> {
    let row: Option<(Option<i64>, bool, Option<i64>, i64)> = sqlx::query_as(
        "SELECT viewed_at, bookmarked, bookmark_changed_at, bookmark_version FROM interactions
         WHERE member = ? AND spot_id = ?",
    )
    .bind(member)
    .bind(spot.number())
    .fetch_optional(&mut *connection)
    .await?;
    let order: Option<(i64, i64)> = sqlx::query_as(
        "SELECT forgotten_version, forgotten_at FROM members_forgotten WHERE member = ?",
    )
    .bind(member)
    .fetch_optional(connection)
    .await?;
    let forgotten = order.is_some_and(|(version, at)| Stamp { version, at }.forgets(stamp));
    let row = row.map(|(viewed_at, bookmarked, changed_at, version)| Interaction {
        viewed_at,
        bookmarked,
        bookmark_changed: changed_at.map(|at| Stamp { version, at }),
    });
    Ok((row, forgotten))
}

struct Forget {
    member: String,
    order: Stamp,
    remember_until: DateTime<Utc>,
}

#[async_trait]
impl Change for Forget {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        // A redelivered order must not delete the history of a new member with the same id.
        let is_new = sqlx::query(
            "INSERT INTO members_forgotten (member, forgotten_version, forgotten_at, kept_until)
             VALUES (?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET forgotten_version = excluded.forgotten_version,
                 forgotten_at = excluded.forgotten_at,
                 kept_until = max(kept_until, excluded.kept_until)
             WHERE excluded.forgotten_version > forgotten_version
                 OR excluded.forgotten_version = 0 AND forgotten_version = 0
                     AND excluded.forgotten_at > forgotten_at",
        )
        .bind(&self.member)
        .bind(self.order.version)
        .bind(self.order.at)
        .bind(to_micros(self.remember_until))
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if is_new == 0 {
            return Ok(());
        }
        for statement in [
            "UPDATE spot_degrees SET degree = degree - 1 WHERE spot_id IN
                 (SELECT spot_id FROM interactions WHERE member = ? AND live = 1)",
            "DELETE FROM interactions WHERE member = ?",
            "DELETE FROM members WHERE member = ?",
        ] {
            sqlx::query(statement).bind(&self.member).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

struct Prune {
    now: DateTime<Utc>,
    rules: HistoryRules,
}

#[async_trait]
impl Change for Prune {
    type Output = u64;

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<u64> {
        let now = to_micros(self.now);
        let needed = micros(self.rules.max_age + MARGIN);
        let mut removed = 0;
        for (statement, before) in [
            (
                "DELETE FROM interactions WHERE (member, spot_id) IN
                     (SELECT member, spot_id FROM interactions
                      WHERE live = 0 AND last_at < ? LIMIT ?)",
                now.saturating_sub(needed),
            ),
            (
                "DELETE FROM members_forgotten WHERE member IN
                     (SELECT member FROM members_forgotten WHERE kept_until < ? LIMIT ?)",
                now,
            ),
        ] {
            removed += delete_before(connection, statement, before).await?;
        }
        Ok(removed)
    }
}
