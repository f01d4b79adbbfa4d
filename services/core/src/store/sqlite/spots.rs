//! Tour spots in SQLite. The index is in [`super::grams`], looking things up in it in
//! [`super::search`], [`super::pages`] and [`super::map`], changing spots in [`super::spot_writes`].

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use tourin_shared_events::sqlite::to_micros;

use super::super::spot_index::{Recent, json_numbers};
use super::member_content::member_exists;
use super::search::{RECENT_BYTES, RecentMatches};
use super::{SqliteStore, map, pages, search, spot_writes};
use crate::app::StoreError;
use crate::app::spots::{MAX_BATCH, SpotStore, Upserted};
use crate::domain::geo::Bounds;
use crate::domain::page::{Page, PageRequest};
use crate::domain::search::{SpotFilter, SpotSort};
use crate::domain::spot::{RawSpot, Spot, SpotContent, SpotDraft, SpotId};
use crate::domain::tag::TagSet;

/// The port of spots on a [`SqliteStore`], with its memory of recent searches.
#[derive(Clone)]
pub struct SqliteSpots {
    store: SqliteStore,
    recent: RecentMatches,
}

impl SqliteSpots {
    /// The spots of `store`.
    pub fn new(store: SqliteStore) -> Self {
        Self { store, recent: Recent::new(RECENT_BYTES) }
    }
}

/// The columns that [`spot_of`] reads, of a table called `s`.
macro_rules! spot_columns {
    () => {
        "s.id, s.version, s.name, s.address, s.lat, s.lng, s.tags, s.image_url, s.description, \
         s.phone_number"
    };
}
pub(super) use spot_columns;

const BY_ORDS: &str = concat!(
    "SELECT ",
    spot_columns!(),
    " FROM json_each(?1) AS m CROSS JOIN tour_spots AS s ON s.ord = m.value ORDER BY m.key"
);
const BY_ID: &str = concat!("SELECT ", spot_columns!(), " FROM tour_spots AS s WHERE s.id = ?1");
const AFTER_ID: &str = concat!(
    "SELECT ",
    spot_columns!(),
    " FROM tour_spots AS s WHERE s.id > ?1 ORDER BY s.id LIMIT ?2"
);

/// The spot in a row with the columns of [`spot_columns`].
pub(super) fn spot_of(row: &SqliteRow) -> sqlx::Result<Spot> {
    let version: i64 = row.try_get("version")?;
    let content = SpotContent::trusted(RawSpot {
        name: row.try_get("name")?,
        address: row.try_get("address")?,
        lat: row.try_get("lat")?,
        lng: row.try_get("lng")?,
        tags: TagSet::from_bits(row.try_get("tags")?),
        image_url: row.try_get("image_url")?,
        description: row.try_get("description")?,
        phone_number: row.try_get("phone_number")?,
    })
    .map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Spot { id: SpotId::new(row.try_get("id")?), version: version.cast_unsigned(), content })
}

/// The spots with these `ord`s, in their order.
async fn by_ords(conn: &mut SqliteConnection, ords: Vec<i64>) -> sqlx::Result<Vec<Spot>> {
    let rows = sqlx::query(BY_ORDS).bind(json_numbers(ords)).fetch_all(conn).await?;
    rows.iter().map(spot_of).collect()
}

/// Whether the filter names a member who does not exist.
async fn names_a_stranger(conn: &mut SqliteConnection, filter: &SpotFilter) -> sqlx::Result<bool> {
    match &filter.bookmarked_by {
        Some(member) => Ok(!member_exists(conn, member).await?),
        None => Ok(false),
    }
}

#[async_trait]
impl SpotStore for SqliteSpots {
    async fn find(&self, id: SpotId) -> Result<Option<Spot>, StoreError> {
        let row =
            sqlx::query(BY_ID).bind(id.number()).fetch_optional(self.store.db.reader()).await?;
        Ok(row.as_ref().map(spot_of).transpose()?)
    }

    async fn search(
        &self,
        filter: &SpotFilter,
        sort: SpotSort,
        page: PageRequest,
    ) -> Result<Option<Page<Spot>>, StoreError> {
        // One snapshot, so that the total and the page are of the same catalogue.
        let mut snapshot = self.store.db.reader().begin().await?;
        if names_a_stranger(&mut snapshot, filter).await? {
            return Ok(None);
        }
        let matches = search::matching(&mut snapshot, &self.recent, filter).await?;
        let all = pages::count_all(&mut snapshot).await?;
        let total = matches.as_ref().map_or(all, |matches| matches.count());
        let ords =
            pages::page_of(&mut snapshot, matches.as_deref(), (total, all), sort, page).await?;
        let items = by_ords(&mut snapshot, ords).await?;
        Ok(Some(Page { items, total, request: page }))
    }

    async fn map(
        &self,
        filter: &SpotFilter,
        bounds: &Bounds,
        most: usize,
    ) -> Result<Option<Vec<Spot>>, StoreError> {
        let mut snapshot = self.store.db.reader().begin().await?;
        if names_a_stranger(&mut snapshot, filter).await? {
            return Ok(None);
        }
        let matches = search::matching(&mut snapshot, &self.recent, filter).await?;
        let ords = map::in_box(&mut snapshot, matches.as_deref(), bounds, most).await?;
        let mut spots = by_ords(&mut snapshot, ords).await?;
        spots.sort_unstable_by_key(|spot| spot.id);
        Ok(Some(spots))
    }

    async fn upsert_batch(
        &self,
        drafts: &[SpotDraft],
        now: DateTime<Utc>,
    ) -> Result<Upserted, StoreError> {
        let mut transaction = self.store.db.write().await?;
        if drafts.len() == MAX_BATCH {
            spot_writes::prepare_for_many(&mut transaction).await?;
        }
        let done = spot_writes::upsert(&mut transaction, drafts, now).await?;
        transaction.commit().await?;
        if done.changed > 0 {
            self.store.committed();
        }
        Ok(done)
    }

    async fn page_after(&self, after: Option<SpotId>, limit: u32) -> Result<Vec<Spot>, StoreError> {
        let rows = sqlx::query(AFTER_ID)
            .bind(after.map_or(-1, SpotId::number))
            .bind(limit)
            .fetch_all(self.store.db.reader())
            .await?;
        Ok(rows.iter().map(spot_of).collect::<sqlx::Result<_>>()?)
    }

    async fn catalogue_was_loaded(&self) -> Result<bool, StoreError> {
        let loaded =
            sqlx::query_scalar("SELECT loaded_at IS NOT NULL FROM catalogue WHERE only = 1")
                .fetch_one(self.store.db.reader())
                .await?;
        Ok(loaded)
    }

    async fn mark_catalogue_loaded(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        let mut transaction = self.store.db.write().await?;
        sqlx::query("UPDATE catalogue SET loaded_at = ?1 WHERE only = 1")
            .bind(to_micros(now))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }
}

/// What lists, the map and single spots ask, for the test of the query plans.
#[cfg(test)]
pub(in crate::store) fn statements() -> Vec<&'static str> {
    [&search::STATEMENTS[..], &pages::STATEMENTS, &map::STATEMENTS, &[BY_ORDS, BY_ID, AFTER_ID]]
        .concat()
}
