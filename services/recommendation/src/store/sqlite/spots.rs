//! The replica of spots on SQLite.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use tourin_shared_events::sqlite::Database;

use super::writer::{Change, Writer};
use super::{count, ids_as_json};
use crate::app::ports::{PortError, SpotReplica, SpotState, TagCursor};
use crate::domain::spot::{Coordinates, Spot, SpotId};
use crate::operation::{Engine, read, write};

/// Half the widths, in degrees, of the boxes that are searched for near spots until one has enough:
/// from a town (about 5 km) to the complete Earth.
const HALF_WIDTHS: [f64; 6] = [0.05, 0.2, 0.8, 3.2, 12.8, 360.0];

pub(super) struct SqliteSpots {
    db: Database,
    writer: Writer,
    engine: Engine,
}

impl SqliteSpots {
    pub(super) fn new(db: Database, writer: Writer, engine: Engine) -> Self {
        Self { db, writer, engine }
    }
}

fn spot(row: &SqliteRow) -> Result<Spot, PortError> {
    let id = SpotId::new(row.try_get("id")?)
        .ok_or_else(|| PortError::failed(anyhow::anyhow!("a spot's id is below zero")))?;
    Ok(Spot {
        id,
        version: u64::try_from(row.try_get::<i64, _>("version")?).unwrap_or_default(),
        name: row.try_get("name")?,
        address: row.try_get("address")?,
        coordinates: Coordinates { lat: row.try_get("lat")?, lng: row.try_get("lng")? },
        image_url: row.try_get("image_url")?,
        tags: serde_json::from_str(row.try_get("tags")?).map_err(PortError::failed)?,
    })
}

fn spots(rows: &[SqliteRow]) -> Result<Vec<Spot>, PortError> {
    rows.iter().map(spot).collect()
}

#[async_trait]
impl SpotReplica for SqliteSpots {
    async fn merge(&self, states: &[SpotState]) -> Result<usize, PortError> {
        write(&self.engine, "merge", "spots", self.writer.commit(Merge(states.to_vec()))).await
    }

    async fn get_many(&self, ids: &[SpotId]) -> Result<HashMap<SpotId, Spot>, PortError> {
        read(&self.engine, "find", "spots", async {
            if ids.is_empty() {
                return Ok(HashMap::new());
            }
            let rows = sqlx::query(
                "SELECT id, version, name, address, lat, lng, image_url, tags FROM spots
                 WHERE deleted = 0 AND id IN (SELECT value FROM json_each(?))",
            )
            .bind(ids_as_json(ids))
            .fetch_all(self.db.reader())
            .await
            .map_err(PortError::from)?;
            Ok(spots(&rows)?.into_iter().map(|spot| (spot.id, spot)).collect())
        })
        .await
    }

    async fn near(
        &self,
        coordinates: Coordinates,
        tags: Option<&[String]>,
        limit: usize,
    ) -> Result<Vec<Spot>, PortError> {
        read(&self.engine, "near", "spots", async {
            let tags = tags.map(strings_as_json);
            for half_width in HALF_WIDTHS {
                let found = self.in_box(coordinates, half_width, tags.as_deref(), limit).await?;
                if found.len() >= limit || half_width >= HALF_WIDTHS[HALF_WIDTHS.len() - 1] {
                    return Ok(found);
                }
            }
            Ok(Vec::new())
        })
        .await
    }

    async fn most_tagged(
        &self,
        after: Option<TagCursor>,
        limit: usize,
    ) -> Result<Vec<Spot>, PortError> {
        read(&self.engine, "most tagged", "spots", async {
            let (tags, id) =
                after.map_or((i64::MAX, 0), |after| (count(after.tags), after.id.number()));
            let rows = sqlx::query(
                "SELECT id, version, name, address, lat, lng, image_url, tags FROM spots
                 WHERE deleted = 0 AND tag_count <= ?1 AND (tag_count < ?1 OR id > ?2)
                 ORDER BY tag_count DESC, id LIMIT ?3",
            )
            .bind(tags)
            .bind(id)
            .bind(count(limit))
            .fetch_all(self.db.reader())
            .await
            .map_err(PortError::from)?;
            spots(&rows)
        })
        .await
    }

    async fn is_complete(&self) -> Result<bool, PortError> {
        read(&self.engine, "find", "log", async {
            sqlx::query_scalar("SELECT has_ended FROM resyncs")
                .fetch_one(self.db.reader())
                .await
                .map_err(PortError::from)
        })
        .await
    }

    async fn log_id(&self) -> Result<Option<String>, PortError> {
        read(&self.engine, "find", "log", async {
            sqlx::query_scalar("SELECT log_id FROM core_log")
                .fetch_optional(self.db.reader())
                .await
                .map_err(PortError::from)
        })
        .await
    }

    async fn adopt_log(&self, log_id: &str) -> Result<(), PortError> {
        write(&self.engine, "adopt", "log", self.writer.commit(AdoptLog(log_id.to_owned()))).await
    }

    async fn begin_resync(&self) -> Result<u64, PortError> {
        write(&self.engine, "begin", "resync", self.writer.commit(BeginResync)).await
    }

    async fn sweep(&self, resync: u64) -> Result<u64, PortError> {
        write(&self.engine, "sweep", "spots", self.writer.commit(Sweep(resync))).await
    }
}

impl SqliteSpots {
    /// The nearest spots in a box around a place. Degrees of longitude are scaled by the latitude,
    /// which approximates the great circle well enough within a box.
    async fn in_box(
        &self,
        coordinates: Coordinates,
        half_width: f64,
        tags: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Spot>, PortError> {
        let shortening = coordinates.lat.to_radians().cos().max(0.01);
        let half_lng = half_width / shortening;
        let rows = sqlx::query(
            "SELECT id, version, name, address, lat, lng, image_url, tags FROM spots
             WHERE deleted = 0 AND lat BETWEEN ?1 - ?3 AND ?1 + ?3 AND lng BETWEEN ?2 - ?4 AND ?2 + ?4
                 AND (?6 IS NULL OR EXISTS (SELECT 1 FROM json_each(spots.tags) AS own
                     WHERE own.value IN (SELECT value FROM json_each(?6))))
             ORDER BY (lat - ?1) * (lat - ?1) + (lng - ?2) * (lng - ?2) * ?5, id LIMIT ?7",
        )
        .bind(coordinates.lat)
        .bind(coordinates.lng)
        .bind(half_width)
        .bind(half_lng)
        .bind(shortening * shortening)
        .bind(tags)
        .bind(count(limit))
        .fetch_all(self.db.reader())
        .await
        .map_err(PortError::from)?;
        spots(&rows)
    }
}

struct Merge(Vec<SpotState>);

#[async_trait]
impl Change for Merge {
    type Output = usize;

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<usize> {
        let resync: i64 = sqlx::query_scalar("SELECT generation FROM resyncs")
            .fetch_one(&mut *connection)
            .await?;
        let mut changed = 0;
        for state in &self.0 {
            let is_newer = match state {
                SpotState::Live(spot) => upsert(connection, spot, resync).await?,
                SpotState::Deleted { id, version } => {
                    delete(connection, *id, *version, resync).await?
                }
            };
            changed += usize::from(is_newer);
        }
        Ok(changed)
    }
}

async fn upsert(connection: &mut SqliteConnection, spot: &Spot, resync: i64) -> sqlx::Result<bool> {
    let is_newer = sqlx::query(
        "INSERT INTO spots (id, version, deleted, swept, generation, name, address, lat, lng,
             image_url, tags, tag_count)
         VALUES (?1, ?2, 0, 0, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
         ON CONFLICT DO UPDATE SET version = ?2, deleted = 0, swept = 0, generation = ?3, name = ?4,
             address = ?5, lat = ?6, lng = ?7, image_url = ?8, tags = ?9, tag_count = ?10
         WHERE version < ?2 OR (swept = 1 AND version = ?2)",
    )
    .bind(spot.id.number())
    .bind(stored_version(spot.version))
    .bind(resync)
    .bind(&spot.name)
    .bind(&spot.address)
    .bind(spot.coordinates.lat)
    .bind(spot.coordinates.lng)
    .bind(&spot.image_url)
    .bind(strings_as_json(&spot.tags))
    .bind(count(spot.tags.len()))
    .execute(&mut *connection)
    .await?
    .rows_affected()
        > 0;
    if !is_newer {
        sqlx::query("UPDATE spots SET generation = ? WHERE id = ?")
            .bind(resync)
            .bind(spot.id.number())
            .execute(connection)
            .await?;
    }
    Ok(is_newer)
}

async fn delete(
    connection: &mut SqliteConnection,
    id: SpotId,
    version: u64,
    resync: i64,
) -> sqlx::Result<bool> {
    let is_newer = sqlx::query(
        "INSERT INTO spots (id, version, deleted, swept, generation, name, address, lat, lng,
             image_url, tags, tag_count)
         VALUES (?1, ?2, 1, 0, ?3, '', '', 0, 0, NULL, '[]', 0)
         ON CONFLICT DO UPDATE SET version = ?2, deleted = 1, swept = 0, generation = ?3, name = '',
             address = '', lat = 0, lng = 0, image_url = NULL, tags = '[]', tag_count = 0
         WHERE version < ?2",
    )
    .bind(id.number())
    .bind(stored_version(version))
    .bind(resync)
    .execute(&mut *connection)
    .await?
    .rows_affected()
        > 0;
    Ok(is_newer)
}

struct AdoptLog(String);

#[async_trait]
impl Change for AdoptLog {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        let before: Option<String> = sqlx::query_scalar("SELECT log_id FROM core_log")
            .fetch_optional(&mut *connection)
            .await?;
        if before.as_ref() == Some(&self.0) {
            return Ok(());
        }
        if before.is_some() {
            // Below every version, so that the first state of the new log always wins.
            sqlx::query("UPDATE spots SET version = -1").execute(&mut *connection).await?;
        }
        sqlx::query(
            "INSERT INTO core_log (id, log_id) VALUES (1, ?)
             ON CONFLICT DO UPDATE SET log_id = excluded.log_id",
        )
        .bind(&self.0)
        .execute(connection)
        .await?;
        Ok(())
    }
}

struct BeginResync;

#[async_trait]
impl Change for BeginResync {
    type Output = u64;

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<u64> {
        let number: i64 = sqlx::query_scalar(
            "UPDATE resyncs SET generation = generation + 1 RETURNING generation",
        )
        .fetch_one(connection)
        .await?;
        Ok(number.unsigned_abs())
    }
}

struct Sweep(u64);

#[async_trait]
impl Change for Sweep {
    type Output = u64;

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<u64> {
        let removed = sqlx::query(
            "UPDATE spots SET deleted = 1, swept = 1, name = '', address = '', lat = 0, lng = 0,
                 image_url = NULL, tags = '[]', tag_count = 0
             WHERE deleted = 0 AND generation < ?",
        )
        .bind(stored_version(self.0))
        .execute(&mut *connection)
        .await?
        .rows_affected();
        sqlx::query("UPDATE resyncs SET has_ended = 1").execute(connection).await?;
        Ok(removed)
    }
}

/// A version as SQLite's signed integer, saturating.
fn stored_version(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

fn strings_as_json(strings: &[String]) -> String {
    serde_json::Value::from(strings.to_vec()).to_string()
}
