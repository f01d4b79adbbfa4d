//! Tour spots: reads, and the search index. Writes are in [`super::spot_writes`].

use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use roaring::RoaringBitmap;
use sqlx::Row as _;
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::sqlite::to_micros;

use super::member_content::member_exists;
use super::spot_rows::{spot_columns, spot_of};
use super::{Connection, Row, Store, spot_writes};
use crate::app::StoreError;
use crate::app::spots::{SpotStore, Upserted};
use crate::domain::geo::Bounds;
use crate::domain::page::{Page, PageRequest};
use crate::domain::search::{SpotFilter, SpotSort};
use crate::domain::spot::{Coordinates, Spot, SpotDraft, SpotId, SpotOverview};
use crate::domain::tag::TagSet;
use crate::store::spot_index::SpotIndex;

/// How often the index is refreshed without searches, so that the next search waits little.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// Spots per statement when the complete index is read.
const READ_AT_ONCE: u32 = 20_000;
/// Up to so many changed spots are applied to the index; for more, the complete index is read.
const MAX_CHANGES: u32 = 100_000;

/// The columns that [`indexed`] reads.
macro_rules! indexed_columns {
    () => {
        "s.doc_id, s.id, s.name, s.address, s.lat, s.lng, s.tags, s.image_url"
    };
}

const BY_ID: &str = concat!("SELECT ", spot_columns!(), " FROM tour_spots AS s WHERE s.id = ?");
const AFTER_ID: &str = concat!(
    "SELECT ",
    spot_columns!(),
    " FROM tour_spots AS s",
    by_index!(tour_spots_by_id),
    " WHERE s.id > ? ORDER BY s.id LIMIT ?"
);
const REVISION: &str = "SELECT revision FROM catalogue";
const INDEXED: &str = concat!(
    "SELECT ",
    indexed_columns!(),
    " FROM tour_spots AS s WHERE s.doc_id >= ? ORDER BY s.doc_id LIMIT ?"
);
const CHANGED: &str = concat!(
    "SELECT ",
    indexed_columns!(),
    " FROM tour_spots AS s",
    by_index!(tour_spots_by_change),
    " WHERE s.changed_in > ? LIMIT ?"
);
const BOOKMARKED: &str = concat!(
    "SELECT s.doc_id FROM bookmarks AS b",
    join!(),
    "tour_spots AS s ON s.id = b.spot_id WHERE b.user_id = ?"
);

/// A row of the index: the doc id and what a list shows.
fn indexed(row: &Row) -> sqlx::Result<(u32, SpotOverview)> {
    let doc: i64 = row.try_get("doc_id")?;
    let spot = SpotOverview {
        id: SpotId::new(row.try_get("id")?),
        name: row.try_get("name")?,
        address: row.try_get("address")?,
        at: Coordinates::new(row.try_get("lat")?, row.try_get("lng")?)
            .map_err(|error| sqlx::Error::Decode(error.into()))?,
        tags: TagSet::from_bits(row.try_get("tags")?),
        image_url: row.try_get("image_url")?,
    };
    let doc = u32::try_from(doc).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok((doc, spot))
}

async fn revision(conn: &mut Connection) -> sqlx::Result<i64> {
    sqlx::query_scalar(REVISION).fetch_one(conn).await
}

/// Runs CPU-heavy work on a blocking thread.
async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Failed(error.into()))
}

impl Store {
    /// Keeps the search index up to date until `stop`.
    pub(crate) async fn keep_search_index(self, stop: Shutdown) {
        let keeping = async {
            loop {
                tokio::time::sleep(REFRESH_EVERY).await;
                // A server that is away is the probe's to report.
                if let Err(error) = self.refresh_search_index().await {
                    tracing::debug!(%error, "the search index was not refreshed");
                }
            }
        };
        stop.token().run_until_cancelled(keeping).await;
    }

    /// The search index's number of spots and bytes; `None` before the first read.
    pub(crate) fn search_index(&self) -> Option<(u64, usize)> {
        self.index.size()
    }

    /// Brings the search index up to date; the first time, reads it whole.
    pub(crate) async fn refresh_search_index(&self) -> Result<(), StoreError> {
        self.index.up_to_date(|| refresh(self.clone())).await
    }

    /// The doc ids of the bookmarks of the filter's member, if it has one; `None` if the member does not
    /// exist.
    async fn bookmarked(
        &self,
        filter: &SpotFilter,
    ) -> Result<Option<Option<RoaringBitmap>>, StoreError> {
        let Some(member) = &filter.bookmarked_by else {
            return Ok(Some(None));
        };
        let mut snapshot = self.snapshot().await?;
        if !member_exists(&mut snapshot, member).await? {
            return Ok(None);
        }
        let docs: Vec<i64> =
            sqlx::query_scalar(BOOKMARKED).bind(member).fetch_all(&mut *snapshot).await?;
        snapshot.rollback().await?;
        Ok(Some(Some(docs.into_iter().filter_map(|doc| u32::try_from(doc).ok()).collect())))
    }
}

/// Brings the index up to the catalogue's current revision.
async fn refresh(store: Store) -> Result<(), StoreError> {
    let known = store.index.revision();
    let now = retried!(async {
        Ok::<_, StoreError>(revision(&mut *store.db.reader().acquire().await?).await?)
    })?;
    match known {
        Some(known) if known == now => Ok(()),
        Some(known) if known < now => read_changes(&store, known).await,
        // Not read yet, or the database was replaced.
        _ => read_whole(&store).await,
    }
}

async fn read_changes(store: &Store, known: i64) -> Result<(), StoreError> {
    let (now, changes) = retried!(async {
        let mut snapshot = store.snapshot().await?;
        let now = revision(&mut snapshot).await?;
        let rows = sqlx::query(CHANGED)
            .bind(known)
            .bind(MAX_CHANGES + 1)
            .fetch_all(&mut *snapshot)
            .await?;
        snapshot.rollback().await?;
        let changes = rows.iter().map(indexed).collect::<sqlx::Result<Vec<_>>>()?;
        Ok::<_, StoreError>((now, changes))
    })?;
    if changes.len() > MAX_CHANGES as usize {
        return read_whole(store).await;
    }
    let index = store.index.clone();
    let applied = on_blocking_thread(move || index.apply(now, changes)).await?;
    applied.map_err(|error| StoreError::Failed(error.into()))
}

async fn read_indexed(conn: &mut Connection, from: i64) -> sqlx::Result<Vec<Row>> {
    sqlx::query(INDEXED).bind(from).bind(READ_AT_ONCE).fetch_all(conn).await
}

async fn read_whole(store: &Store) -> Result<(), StoreError> {
    let began = Instant::now();
    let mut snapshot = store.snapshot().await?;
    let revision = revision(&mut snapshot).await?;
    let mut index = SpotIndex::default();
    let mut rows = read_indexed(&mut snapshot, 0).await?;
    while let Some(last) = rows.last() {
        let next = last.try_get::<i64, _>("doc_id")? + 1;
        let putting = on_blocking_thread(move || -> sqlx::Result<SpotIndex> {
            for row in &rows {
                let (doc, spot) = indexed(row)?;
                index.put(doc, &spot).map_err(|error| sqlx::Error::Decode(error.into()))?;
            }
            Ok(index)
        });
        // The next rows are read meanwhile.
        let (put, read) = tokio::join!(putting, read_indexed(&mut snapshot, next));
        index = put??;
        rows = read?;
    }
    snapshot.rollback().await?;
    let live = store.index.clone();
    on_blocking_thread(move || {
        index.order();
        live.replace(revision, index);
    })
    .await?;
    let spots = store.index.size().map_or(0, |(spots, _)| spots);
    tracing::info!(spots, ms = began.elapsed().as_millis(), "search index read");
    Ok(())
}

#[async_trait]
impl SpotStore for Store {
    async fn find(&self, id: SpotId) -> Result<Option<Spot>, StoreError> {
        operation!(self, "select", "tour_spots", async {
            let row = sqlx::query(BY_ID).bind(id.number()).fetch_optional(self.db.reader()).await?;
            Ok(row.as_ref().map(spot_of).transpose()?)
        })
    }

    async fn search(
        &self,
        filter: &SpotFilter,
        sort: SpotSort,
        page: PageRequest,
    ) -> Result<Option<Page<SpotOverview>>, StoreError> {
        operation!(self, "search", "tour_spots", async {
            let Some(bookmarked) = self.bookmarked(filter).await? else {
                return Ok(None);
            };
            self.refresh_search_index().await?;
            Ok(Some(self.index.page(filter, bookmarked, sort, page)))
        })
    }

    async fn map(
        &self,
        filter: &SpotFilter,
        bounds: &Bounds,
        max: usize,
    ) -> Result<Option<Vec<SpotOverview>>, StoreError> {
        operation!(self, "search map", "tour_spots", async {
            let Some(bookmarked) = self.bookmarked(filter).await? else {
                return Ok(None);
            };
            self.refresh_search_index().await?;
            Ok(Some(self.index.map(filter, bookmarked, bounds, max)))
        })
    }

    async fn upsert_batch(
        &self,
        drafts: &[SpotDraft],
        now: DateTime<Utc>,
    ) -> Result<Upserted, StoreError> {
        operation!(self, "upsert", "tour_spots", async {
            let mut transaction = self.db.write().await?;
            let done = spot_writes::upsert(&mut transaction, drafts, now).await?;
            transaction.commit().await?;
            if done.changed > 0 {
                self.committed();
            }
            Ok(done)
        })
    }

    async fn page_after(&self, after: Option<SpotId>, limit: u32) -> Result<Vec<Spot>, StoreError> {
        operation!(self, "select", "tour_spots", async {
            let rows = sqlx::query(AFTER_ID)
                .bind(after.map_or(-1, SpotId::number))
                .bind(limit)
                .fetch_all(self.db.reader())
                .await?;
            Ok(rows.iter().map(spot_of).collect::<sqlx::Result<_>>()?)
        })
    }

    async fn catalogue_was_loaded(&self) -> Result<bool, StoreError> {
        let loaded: Option<i64> = operation!(self, "select", "catalogue", async {
            let read = sqlx::query_scalar("SELECT loaded_at FROM catalogue");
            Ok(read.fetch_one(self.db.reader()).await?)
        })?;
        Ok(loaded.is_some())
    }

    async fn mark_catalogue_loaded(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        operation!(self, "update", "catalogue", async {
            let mut transaction = self.db.write().await?;
            sqlx::query("UPDATE catalogue SET loaded_at = ?")
                .bind(to_micros(now))
                .execute(&mut *transaction)
                .await?;
            Ok(transaction.commit().await?)
        })
    }
}

/// Statements on growing tables, for the test of the query plans.
#[cfg(test)]
pub(in crate::store) const STATEMENTS: [&str; 6] =
    [BY_ID, AFTER_ID, INDEXED, CHANGED, BOOKMARKED, spot_writes::STORED];
