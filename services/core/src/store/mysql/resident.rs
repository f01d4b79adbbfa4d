//! The search index of the tables, held in memory.
//!
//! A search costs the server tens of milliseconds where many spots have the query's characters. So
//! the index is read whole, some seconds after the catalogue has come to rest, and searches are
//! answered from it: which spots, how many. The spots themselves come from their table, with the
//! revision in the same statement: when the catalogue has changed, the search is done again in the
//! tables, until the index has been read anew. Nobody is answered from an old one.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sqlx::mysql::MySqlConnection;
use tourin_chassis::shutdown::Shutdown;

use super::super::spot_index::{Place, Resident};
use super::pages::{NAME_OF, WALK_FORWARDS};
use super::revision::REVISION;
use super::{MysqlStore, bounded};
use crate::app::StoreError;
use crate::domain::spot::Coordinates;

/// How often the catalogue is looked at. What did not change between two looks is at rest.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// From one reading to the next, at least: reading costs a few seconds of a processor.
const READ_EVERY: Duration = Duration::from_secs(10);
/// Rows per statement, so that none runs into the server's limit.
const ROWS: i64 = 20_000;

pub(super) const TEXTS: &str = "SELECT t.folded, s.id, s.cell, s.lat, s.lng
     FROM tour_spots AS s STRAIGHT_JOIN spot_texts AS t ON t.ord = s.ord
     WHERE s.ord >= ? AND s.ord < ? ORDER BY s.ord";
pub(super) const GRAMS: &str = "SELECT gram, chunk, slots FROM spot_grams
     WHERE gram >= ? AND (gram > ? OR chunk > ?) ORDER BY gram, chunk LIMIT ?";

/// The index in memory, if it was read, and the revision that it is of. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct SearchMemory(Arc<RwLock<Option<Held>>>);

/// An index, and the revision that it is of.
type Held = (i64, Arc<Resident>);

impl SearchMemory {
    /// The index, if it is of this revision.
    pub(super) fn at(&self, revision: i64) -> Option<Arc<Resident>> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().filter(|(of, _)| *of == revision).map(|(_, index)| index.clone())
    }

    /// What is held: spots and bytes.
    fn size(&self) -> Option<(u64, usize)> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(|(_, index)| (index.spots(), index.bytes()))
    }

    fn replace(&self, index: Option<Held>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = index;
    }
}

impl MysqlStore {
    /// Spots in the index in memory, and its bytes, if it was read.
    pub(crate) fn search_index(&self) -> Option<(u64, usize)> {
        self.memory.size()
    }

    /// Keeps the index in memory while it takes at most `most_bytes`, until `stop`.
    pub(crate) async fn keep_search_memory(self, most_bytes: usize, stop: Shutdown) {
        tokio::select! {
            () = stop.begun() => {}
            () = follow(&self, most_bytes) => {}
        }
    }

    /// Reads the index now, whatever it takes.
    ///
    /// # Errors
    /// When the server fails.
    #[cfg(test)]
    pub(crate) async fn read_search_memory(&self) -> Result<(), StoreError> {
        let (revision, index) = read(self, usize::MAX).await?.expect("there is no bound");
        self.memory.replace(Some((revision, Arc::new(index))));
        Ok(())
    }

    /// Whether an index has been read.
    #[cfg(test)]
    pub(crate) fn has_search_memory(&self) -> bool {
        self.memory.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Searches in the tables again.
    #[cfg(test)]
    pub(crate) fn forget_search_memory(&self) {
        self.memory.replace(None);
    }
}

async fn follow(store: &MysqlStore, most_bytes: usize) {
    // Read, or found to be too large.
    let mut done = None;
    let mut seen = None;
    loop {
        let now = bounded(async {
            sqlx::query_scalar::<_, i64>(REVISION).fetch_one(store.db.reader()).await
        })
        .await;
        // A server that is away is the probe's to report.
        if let Ok(now) = now {
            if done != Some(now) && seen == Some(now) {
                // It is of no use any more, and need not be held beside the new one.
                store.memory.replace(None);
                let began = Instant::now();
                match read(store, most_bytes).await {
                    Ok(Some((revision, index))) => {
                        let (spots, mib) = (index.spots(), index.bytes() >> 20);
                        let ms = began.elapsed().as_millis();
                        tracing::info!(spots, mib, ms, "search index read");
                        store.memory.replace(Some((revision, Arc::new(index))));
                        done = Some(revision);
                    }
                    Ok(None) => {
                        tracing::warn!(
                            most_mib = most_bytes >> 20,
                            "the search index does not fit; see --search-memory-mib"
                        );
                        done = Some(now);
                    }
                    Err(error) => tracing::warn!(%error, "the search index could not be read"),
                }
                tokio::time::sleep(READ_EVERY).await;
            }
            seen = Some(now);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The index and its revision; `None` when it takes more than `most_bytes`.
async fn read(
    store: &MysqlStore,
    most_bytes: usize,
) -> Result<Option<(i64, Resident)>, StoreError> {
    let mut snapshot = store.db.snapshot().await?;
    let revision: i64 = sqlx::query_scalar(REVISION).fetch_one(&mut *snapshot).await?;
    let mut index = Resident::default();
    let parts = read_spots(&mut snapshot, &mut index, most_bytes).await?
        && read_grams(&mut snapshot, &mut index, most_bytes).await?
        && read_names(&mut snapshot, &mut index).await?;
    snapshot.rollback().await?;
    if !parts || index.bytes() > most_bytes {
        return Ok(None);
    }
    // Half a second of sorting at a million spots: not on a thread that serves.
    let index = tokio::task::spawn_blocking(move || index.finish())
        .await
        .map_err(|error| StoreError::Failed(error.into()))?;
    let index = index.ok_or_else(|| {
        StoreError::Failed(anyhow::anyhow!("the tables of the search index contradict each other"))
    })?;
    Ok(Some((revision, index)))
}

async fn read_spots(
    conn: &mut MySqlConnection,
    index: &mut Resident,
    most_bytes: usize,
) -> sqlx::Result<bool> {
    let mut next = 0;
    loop {
        let rows: Vec<(Vec<u8>, i64, i64, f64, f64)> = bounded(async {
            sqlx::query_as(TEXTS).bind(next).bind(next + ROWS).fetch_all(&mut *conn).await
        })
        .await?;
        if rows.is_empty() {
            return Ok(true);
        }
        for ((folded, id, cell, lat, lng), ord) in rows.iter().zip(next..) {
            index.push_text(folded);
            let ord = u32::try_from(ord).map_err(|error| sqlx::Error::Decode(error.into()))?;
            let at =
                Coordinates::new(*lat, *lng).map_err(|error| sqlx::Error::Decode(error.into()))?;
            index.push_place(Place { cell: *cell, id: *id, ord, at });
        }
        next += ROWS;
        if index.bytes() > most_bytes {
            return Ok(false);
        }
    }
}

async fn read_grams(
    conn: &mut MySqlConnection,
    index: &mut Resident,
    most_bytes: usize,
) -> sqlx::Result<bool> {
    let (mut gram, mut chunk) = (i64::MIN, -1);
    loop {
        let rows: Vec<(i64, i32, Vec<u8>)> = bounded(async {
            let query = sqlx::query_as(GRAMS).bind(gram).bind(gram).bind(chunk).bind(ROWS);
            query.fetch_all(&mut *conn).await
        })
        .await?;
        let Some(last) = rows.last() else {
            return Ok(true);
        };
        (gram, chunk) = (last.0, last.1);
        for (gram, chunk, slots) in &rows {
            index.push_slots(*gram, chunk.cast_unsigned(), slots);
        }
        if index.bytes() > most_bytes {
            return Ok(false);
        }
    }
}

async fn read_names(conn: &mut MySqlConnection, index: &mut Resident) -> sqlx::Result<bool> {
    let (mut name, mut id) = (String::new(), i64::MIN);
    loop {
        let ords: Vec<i64> = bounded(async {
            let query = sqlx::query_scalar(WALK_FORWARDS).bind(&name).bind(&name).bind(id);
            query.bind(ROWS).fetch_all(&mut *conn).await
        })
        .await?;
        let Some(last) = ords.last() else {
            return Ok(true);
        };
        (name, id) = sqlx::query_as(NAME_OF).bind(last).fetch_one(&mut *conn).await?;
        for ord in ords {
            let ord = u32::try_from(ord).map_err(|error| sqlx::Error::Decode(error.into()))?;
            index.push_name(ord);
        }
    }
}
