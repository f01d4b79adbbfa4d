//! Tour spots in MySQL. The index is in [`super::grams`], looking things up in it in
//! [`super::search`], [`super::pages`] and [`super::map`], changing spots in [`super::spot_writes`].

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::Row as _;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use tourin_shared_events::mysql::to_micros;

use super::super::spot_index::{Matches, Recent, Resident, json_numbers};
use super::member_content::member_exists;
#[cfg(test)]
use super::resident;
#[cfg(test)]
use super::revision::REVISION;
use super::revision::Revision;
use super::search::{RECENT_BYTES, RecentMatches};
use super::{MysqlStore, map, numbers, pages, retried, search, spot_writes};
use crate::app::StoreError;
use crate::app::spots::{SpotStore, Upserted};
use crate::domain::geo::Bounds;
use crate::domain::page::{Page, PageRequest};
use crate::domain::search::{SearchText, SpotFilter, SpotSort};
use crate::domain::spot::{RawSpot, Spot, SpotContent, SpotDraft, SpotId};
use crate::domain::tag::TagSet;

/// Most bytes of pages that are remembered: some ten thousand pages of ten spots.
const RECENT_PAGES_BYTES: usize = 48 << 20;
/// What a spot and its place in a page take besides its texts, about.
const SPOT_BYTES: usize = 256;

/// The port of spots on a [`MysqlStore`], with its memory of recent searches.
#[derive(Clone)]
pub struct MysqlSpots {
    store: MysqlStore,
    recent: RecentMatches,
    pages: Recent<PageKey, KnownPage>,
    revision: Revision,
}

type PageKey = (Option<SearchText>, TagSet, bool, u64, u32);

/// A revision, its index, and what matches; `None` is every spot.
type FromMemory = (i64, Arc<Resident>, Option<Arc<Matches>>);

/// How many spots match, and those on the page.
#[derive(Clone)]
struct KnownPage {
    total: u64,
    items: Arc<[Spot]>,
}

impl KnownPage {
    /// What it takes, about.
    fn bytes(&self) -> usize {
        let of_spot = |spot: &Spot| {
            let content = &spot.content;
            let optional = [content.image_url(), content.description(), content.phone_number()];
            let optional: usize = optional.into_iter().flatten().map(str::len).sum();
            SPOT_BYTES + content.name().len() + content.address().len() + optional
        };
        SPOT_BYTES + self.items.iter().map(of_spot).sum::<usize>()
    }
}

impl MysqlSpots {
    /// The spots of `store`.
    pub fn new(store: MysqlStore) -> Self {
        let revision = Revision::new(store.db.clone());
        let (recent, pages) = (Recent::new(RECENT_BYTES), Recent::new(RECENT_PAGES_BYTES));
        Self { store, recent, pages, revision }
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

const CATALOGUE: &str = "SELECT revision, spots FROM catalogue WHERE id = 1";
const BY_ORDS: &str = concat!(
    "SELECT ",
    spot_columns!(),
    " FROM ",
    numbers!(),
    " STRAIGHT_JOIN tour_spots AS s ON s.ord = w.v ORDER BY w.k"
);
/// The revision comes with the spots, of the same moment; without spots it comes alone.
const BY_ORDS_WITH_REVISION: &str = concat!(
    "SELECT c.revision, ",
    spot_columns!(),
    " FROM catalogue AS c LEFT JOIN (",
    numbers!(),
    " STRAIGHT_JOIN tour_spots AS s ON s.ord = w.v) ON TRUE WHERE c.id = 1 ORDER BY w.k"
);
const BY_ID: &str = concat!("SELECT ", spot_columns!(), " FROM tour_spots AS s WHERE s.id = ?");
const AFTER_ID: &str = concat!(
    "SELECT ",
    spot_columns!(),
    " FROM tour_spots AS s FORCE INDEX (tour_spots_by_id) WHERE s.id > ? ORDER BY s.id LIMIT ?"
);

/// The spot in a row with the columns of [`spot_columns`].
pub(super) fn spot_of(row: &MySqlRow) -> sqlx::Result<Spot> {
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
async fn by_ords(conn: &mut MySqlConnection, ords: &[i64]) -> sqlx::Result<Vec<Spot>> {
    if ords.is_empty() {
        return Ok(Vec::new());
    }
    let ords = json_numbers(ords.iter().copied());
    let rows = sqlx::query(BY_ORDS).bind(ords).fetch_all(conn).await?;
    rows.iter().map(spot_of).collect()
}

/// The catalogue's revision, and how many spots it has.
async fn catalogue(conn: &mut MySqlConnection) -> sqlx::Result<(i64, u64)> {
    let (revision, spots): (i64, i64) = sqlx::query_as(CATALOGUE).fetch_one(conn).await?;
    Ok((revision, spots.unsigned_abs()))
}

/// Whether the filter names a member who does not exist.
async fn names_a_stranger(conn: &mut MySqlConnection, filter: &SpotFilter) -> sqlx::Result<bool> {
    match &filter.bookmarked_by {
        Some(member) => Ok(!member_exists(conn, member).await?),
        None => Ok(false),
    }
}

impl MysqlSpots {
    async fn find_page(
        &self,
        filter: &SpotFilter,
        sort: SpotSort,
        request: PageRequest,
    ) -> Result<Option<Page<Spot>>, StoreError> {
        let descending = sort == SpotSort::NameDescending;
        let key = filter.bookmarked_by.is_none().then(|| {
            (filter.query.clone(), filter.tags, descending, request.number(), request.size())
        });
        if let Some(key) = &key
            && let Some(page) = self.known_page(key, request).await
        {
            return Ok(Some(page));
        }
        if let Some(key) = &key
            && let Some(page) = self.page_from_memory(filter, sort, request, key).await?
        {
            return Ok(Some(page));
        }
        // One snapshot, so that the total and the page are of the same catalogue.
        let mut snapshot = self.store.db.snapshot().await?;
        if names_a_stranger(&mut snapshot, filter).await? {
            return Ok(None);
        }
        let (revision, all) = catalogue(&mut snapshot).await?;
        let matches = search::matching(&mut snapshot, &self.recent, revision, filter).await?;
        let total = matches.as_ref().map_or(all, |matches| matches.count());
        let ords =
            pages::page_of(&mut snapshot, matches.as_deref(), (total, all), sort, request).await?;
        let items = by_ords(&mut snapshot, &ords).await?;
        snapshot.rollback().await?;
        if let Some(key) = key {
            let known = KnownPage { total, items: items.as_slice().into() };
            let bytes = known.bytes();
            self.pages.put(revision, key, known, bytes);
        }
        Ok(Some(Page { items, total, request }))
    }

    /// The page, if it is remembered and nothing has changed since.
    async fn known_page(&self, key: &PageKey, request: PageRequest) -> Option<Page<Spot>> {
        if !self.pages.knows(key) {
            return None;
        }
        let revision = self.revision.now().await?;
        let KnownPage { total, items } = self.pages.get(revision, key)?;
        Some(Page { items: items.to_vec(), total, request })
    }

    /// What passes a filter that names no member, by the index in memory; the revision that it is
    /// of, and the index.
    async fn matches_from_memory(
        &self,
        filter: &SpotFilter,
    ) -> Result<Option<FromMemory>, StoreError> {
        let Some(revision) = self.revision.now().await else {
            return Ok(None);
        };
        let Some(index) = self.store.memory.at(revision) else {
            return Ok(None);
        };
        if filter.is_empty() {
            return Ok(Some((revision, index, None)));
        }
        let wanted = (filter.query.clone(), filter.tags);
        let matches = match self.recent.get(revision, &wanted) {
            Some(matches) => matches,
            None => {
                let fresh = Arc::new(index.matching(filter.query.as_ref(), filter.tags)?);
                self.recent.put(revision, wanted, fresh.clone(), fresh.bytes());
                fresh
            }
        };
        Ok(Some((revision, index, Some(matches))))
    }

    /// A page by the index in memory; `None` when there is none for the catalogue as it is.
    async fn page_from_memory(
        &self,
        filter: &SpotFilter,
        sort: SpotSort,
        request: PageRequest,
        key: &PageKey,
    ) -> Result<Option<Page<Spot>>, StoreError> {
        let Some((revision, index, matches)) = self.matches_from_memory(filter).await? else {
            return Ok(None);
        };
        let total = matches.as_ref().map_or(index.spots(), |matches| matches.count());
        let ords = index.page(matches.as_deref(), total, sort, request);
        let Some(items) = self.by_ords_at(revision, &ords).await? else {
            return Ok(None);
        };
        let known = KnownPage { total, items: items.as_slice().into() };
        let bytes = known.bytes();
        self.pages.put(revision, key.clone(), known, bytes);
        Ok(Some(Page { items, total, request }))
    }

    async fn map_from_memory(
        &self,
        filter: &SpotFilter,
        bounds: &Bounds,
        most: usize,
    ) -> Result<Option<Vec<Spot>>, StoreError> {
        if filter.bookmarked_by.is_some() {
            return Ok(None);
        }
        let Some((revision, index, matches)) = self.matches_from_memory(filter).await? else {
            return Ok(None);
        };
        let ords = index.in_box(matches.as_deref(), bounds, most);
        let spots = self.by_ords_at(revision, &ords).await?;
        Ok(spots.map(|mut spots| {
            spots.sort_unstable_by_key(|spot| spot.id);
            spots
        }))
    }

    /// The spots with these `ord`s in their order; `None` when the catalogue has another revision.
    async fn by_ords_at(&self, revision: i64, ords: &[i64]) -> sqlx::Result<Option<Vec<Spot>>> {
        let rows = sqlx::query(BY_ORDS_WITH_REVISION)
            .bind(json_numbers(ords.iter().copied()))
            .fetch_all(self.store.db.reader())
            .await?;
        match rows.first() {
            Some(row) if row.try_get::<i64, _>("revision")? == revision => {}
            _ => return Ok(None),
        }
        if ords.is_empty() {
            return Ok(Some(Vec::new()));
        }
        rows.iter().map(spot_of).collect::<sqlx::Result<_>>().map(Some)
    }

    async fn find_on_map(
        &self,
        filter: &SpotFilter,
        bounds: &Bounds,
        most: usize,
    ) -> Result<Option<Vec<Spot>>, StoreError> {
        if let Some(spots) = self.map_from_memory(filter, bounds, most).await? {
            return Ok(Some(spots));
        }
        let mut snapshot = self.store.db.snapshot().await?;
        if names_a_stranger(&mut snapshot, filter).await? {
            return Ok(None);
        }
        let (revision, _) = catalogue(&mut snapshot).await?;
        let matches = search::matching(&mut snapshot, &self.recent, revision, filter).await?;
        let ords = map::in_box(&mut snapshot, matches.as_deref(), bounds, most).await?;
        let mut spots = by_ords(&mut snapshot, &ords).await?;
        snapshot.rollback().await?;
        spots.sort_unstable_by_key(|spot| spot.id);
        Ok(Some(spots))
    }

    async fn try_upsert(
        &self,
        drafts: &[SpotDraft],
        now: DateTime<Utc>,
    ) -> Result<Upserted, StoreError> {
        let mut transaction = self.store.db.write().await?;
        let done = spot_writes::upsert(&mut transaction, drafts, now).await?;
        transaction.commit().await?;
        if done.changed > 0 {
            self.store.committed();
        }
        Ok(done)
    }
}

#[async_trait]
impl SpotStore for MysqlSpots {
    async fn find(&self, id: SpotId) -> Result<Option<Spot>, StoreError> {
        retried!(async {
            let row =
                sqlx::query(BY_ID).bind(id.number()).fetch_optional(self.store.db.reader()).await?;
            Ok(row.as_ref().map(spot_of).transpose()?)
        })
    }

    async fn search(
        &self,
        filter: &SpotFilter,
        sort: SpotSort,
        page: PageRequest,
    ) -> Result<Option<Page<Spot>>, StoreError> {
        retried!(self.find_page(filter, sort, page))
    }

    async fn map(
        &self,
        filter: &SpotFilter,
        bounds: &Bounds,
        most: usize,
    ) -> Result<Option<Vec<Spot>>, StoreError> {
        retried!(self.find_on_map(filter, bounds, most))
    }

    async fn upsert_batch(
        &self,
        drafts: &[SpotDraft],
        now: DateTime<Utc>,
    ) -> Result<Upserted, StoreError> {
        retried!(self.try_upsert(drafts, now))
    }

    async fn page_after(&self, after: Option<SpotId>, limit: u32) -> Result<Vec<Spot>, StoreError> {
        retried!(async {
            let rows = sqlx::query(AFTER_ID)
                .bind(after.map_or(-1, SpotId::number))
                .bind(limit)
                .fetch_all(self.store.db.reader())
                .await?;
            Ok(rows.iter().map(spot_of).collect::<sqlx::Result<_>>()?)
        })
    }

    async fn catalogue_was_loaded(&self) -> Result<bool, StoreError> {
        let loaded: Option<i64> = retried!(async {
            Ok(sqlx::query_scalar("SELECT loaded_at FROM catalogue WHERE id = 1")
                .fetch_one(self.store.db.reader())
                .await?)
        })?;
        Ok(loaded.is_some())
    }

    async fn mark_catalogue_loaded(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        retried!(async {
            sqlx::query("UPDATE catalogue SET loaded_at = ? WHERE id = 1")
                .bind(to_micros(now))
                .execute(self.store.db.writer())
                .await?;
            Ok(())
        })
    }
}

/// What lists, the map and single spots ask, with values in place, for the test of the query plans.
#[cfg(test)]
pub(in crate::store) fn explained(bounds: &Bounds) -> Vec<String> {
    let cells = bounds.grid(500);
    let some: Vec<_> = cells.iter().take(64).collect();
    let mut statements = vec![map::whole_sql(bounds, &cells), map::of_cells_sql(bounds, &some, 4)];
    const LIST: &str = "'[1,2,3,500,700]'";
    for (sql, values) in [
        (CATALOGUE, &[][..]),
        (BY_ORDS, &[LIST]),
        (REVISION, &[]),
        (BY_ORDS_WITH_REVISION, &[LIST]),
        (resident::TEXTS, &["0", "100"]),
        (resident::GRAMS, &["7", "7", "3", "100"]),
        (BY_ID, &["7"]),
        (AFTER_ID, &["7", "10"]),
        (search::BOOKMARKED, &["'hana12345'"]),
        (search::SLOTS, &[LIST]),
        (search::RARITY, &[LIST]),
        (search::COMPARE, &[LIST, "'abc'"]),
        (pages::ALL_FORWARDS, &["10", "100"]),
        (pages::ALL_BACKWARDS, &["10", "100"]),
        (pages::SORT_FORWARDS, &[LIST, "10", "0"]),
        (pages::SORT_BACKWARDS, &[LIST, "10", "0"]),
        (pages::WALK_FORWARDS, &["'x'", "'x'", "7", "100"]),
        (pages::WALK_BACKWARDS, &["'x'", "'x'", "7", "100"]),
        (pages::NAME_OF, &["7"]),
        (map::LOOKED_UP, &[LIST, "33e0", "38e0", "126e0", "129e0"]),
        (super::grams::STORED, &[LIST, "0"]),
        (spot_writes::STORED, &[LIST]),
    ] {
        let mut parts = sql.split('?');
        let mut filled = parts.next().unwrap_or_default().to_owned();
        for (part, value) in parts.zip(values) {
            filled.push_str(value);
            filled.push_str(part);
        }
        assert!(!filled.contains('?'), "a value is missing: {sql}");
        statements.push(filled);
    }
    statements
}
