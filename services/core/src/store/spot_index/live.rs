//! The index that serves searches, as current as the tables.
//!
//! Before each search, the catalogue's revision is read from its table, and the changes since the
//! index's revision are applied to the index. A search therefore finds everything that any process
//! committed before it began. Concurrent searches share one refresh.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use moka::sync::Cache;
use roaring::RoaringBitmap;

use super::SpotIndex;
use super::index::DocIdGap;
use crate::app::StoreError;
use crate::domain::geo::Bounds;
use crate::domain::page::{Page, PageRequest};
use crate::domain::search::{SearchText, SpotFilter, SpotSort};
use crate::domain::spot::SpotOverview;

/// Most bytes of cached matches.
const RECENT_BYTES: u64 = 16 << 20;

/// The key of cached matches: the catalogue's revision and the query.
type MatchKey = (i64, SearchText);
/// A refresh, shared by its callers.
type Refresh = Shared<BoxFuture<'static, Result<(), Arc<StoreError>>>>;

/// The index of one process.
pub(in crate::store) struct LiveIndex {
    held: RwLock<Held>,
    /// The matches of recent queries.
    recent: Cache<MatchKey, Arc<RoaringBitmap>>,
    next: Mutex<Option<Refresh>>,
    /// One refresh runs at a time.
    reading: tokio::sync::Semaphore,
}

/// An index and its revision of the catalogue; `None` before the first read.
#[derive(Default)]
struct Held {
    revision: Option<i64>,
    index: SpotIndex,
}

impl Default for LiveIndex {
    fn default() -> Self {
        let recent = Cache::builder()
            .max_capacity(RECENT_BYTES)
            .weigher(|_: &MatchKey, matches: &Arc<RoaringBitmap>| {
                u32::try_from(matches.serialized_size() + 256).unwrap_or(u32::MAX)
            })
            .build();
        Self {
            held: RwLock::default(),
            recent,
            next: Mutex::default(),
            reading: tokio::sync::Semaphore::new(1),
        }
    }
}

impl LiveIndex {
    fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index's revision of the catalogue.
    pub(in crate::store) fn revision(&self) -> Option<i64> {
        self.held().revision
    }

    /// The index's number of spots and bytes; `None` before the first read.
    pub(in crate::store) fn size(&self) -> Option<(u64, usize)> {
        let held = self.held();
        held.revision.map(|_| (held.index.spots(), held.index.bytes()))
    }

    /// Runs `refresh`, or shares another caller's run that begins after this call. Everything committed
    /// before this call is then in the index.
    ///
    /// # Errors
    /// The errors of the run.
    pub(in crate::store) async fn up_to_date<F>(
        self: &Arc<Self>,
        refresh: impl FnOnce() -> F,
    ) -> Result<(), StoreError>
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        let run = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            next.get_or_insert_with(|| {
                Self::run_exclusively(Arc::clone(self), refresh()).boxed().shared()
            })
            .clone()
        };
        run.await.map_err(|error| match &*error {
            StoreError::Unavailable(_) => StoreError::Unavailable(error.into()),
            StoreError::Failed(_) => StoreError::Failed(error.into()),
        })
    }

    async fn run_exclusively(
        self: Arc<Self>,
        refresh: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), Arc<StoreError>> {
        let _permit = self.reading.acquire().await;
        // Later callers must start a new run.
        self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        refresh.await.map_err(Arc::new)
    }

    /// Replaces the index.
    pub(in crate::store) fn replace(&self, revision: i64, index: SpotIndex) {
        let held = Held { revision: Some(revision), index };
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Applies changes to the index, which then has `revision`.
    ///
    /// # Errors
    /// [`DocIdGap`]; the index must be read again.
    pub(in crate::store) fn apply(
        &self,
        revision: i64,
        mut changes: Vec<(u32, SpotOverview)>,
    ) -> Result<(), DocIdGap> {
        changes.sort_unstable_by_key(|(doc, _)| *doc);
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.revision = None;
        for (doc, spot) in &changes {
            held.index.put(*doc, spot)?;
        }
        held.index.order();
        held.revision = Some(revision);
        Ok(())
    }

    /// One page of the spots that pass the filter; `bookmarked` are the doc ids of its member's
    /// bookmarks.
    pub(in crate::store) fn page(
        &self,
        filter: &SpotFilter,
        bookmarked: Option<RoaringBitmap>,
        sort: SpotSort,
        request: PageRequest,
    ) -> Page<SpotOverview> {
        let held = self.held();
        let matches = self.matching(&held, filter, bookmarked);
        let total = matches.as_ref().map_or(held.index.spots(), |matches| matches.len());
        Page { items: held.index.page(matches.as_deref(), sort, request), total, request }
    }

    /// The spots in a box that pass the filter, by id; at most `max`.
    pub(in crate::store) fn map(
        &self,
        filter: &SpotFilter,
        bookmarked: Option<RoaringBitmap>,
        bounds: &Bounds,
        max: usize,
    ) -> Vec<SpotOverview> {
        let held = self.held();
        let matches = self.matching(&held, filter, bookmarked);
        let mut spots = held.index.in_box(matches.as_deref(), bounds, max);
        spots.sort_unstable_by_key(|spot| spot.id);
        spots
    }

    /// The spots that pass the filter; `None` means every spot.
    fn matching(
        &self,
        held: &Held,
        filter: &SpotFilter,
        bookmarked: Option<RoaringBitmap>,
    ) -> Option<Arc<RoaringBitmap>> {
        let with_text = filter.query.as_ref().map(|query| {
            let find = || Arc::new(held.index.with_text(query));
            match held.revision {
                Some(revision) => self.recent.get_with((revision, query.clone()), find),
                None => find(),
            }
        });
        let with_tags = (!filter.tags.is_empty()).then(|| held.index.with_tags(filter.tags));
        let narrowed = match (with_tags, bookmarked) {
            (Some(with_tags), Some(bookmarked)) => Some(with_tags & bookmarked),
            (one, other) => one.or(other),
        };
        match (with_text, narrowed) {
            (Some(with_text), Some(narrowed)) => Some(Arc::new(narrowed & &*with_text)),
            (with_text, narrowed) => with_text.or(narrowed.map(Arc::new)),
        }
    }
}
