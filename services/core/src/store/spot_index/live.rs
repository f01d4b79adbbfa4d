//! The index that searches are answered from, as new as the tables.
//!
//! Before a search is answered, the catalogue's revision is read from its table, and what has changed since
//! the index's own revision is put into the index: a search finds what was committed before it began, by
//! whichever process. Searches that come at the same time share one reading.

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

/// Most bytes of the matches of recent searches.
const RECENT_BYTES: u64 = 16 << 20;

/// A text that was looked for, and the revision of the catalogue that it was looked for in.
type Asked = (i64, SearchText);
/// A reading that has not begun yet.
type Refresh = Shared<BoxFuture<'static, Result<(), Arc<StoreError>>>>;

/// The index of one process.
pub(in crate::store) struct LiveIndex {
    held: RwLock<Held>,
    /// The spots with the texts of recent searches.
    recent: Cache<Asked, Arc<RoaringBitmap>>,
    next: Mutex<Option<Refresh>>,
    /// One reads at a time.
    reading: tokio::sync::Semaphore,
}

/// An index, and the revision of the catalogue that it is of; none before it was first read.
#[derive(Default)]
struct Held {
    revision: Option<i64>,
    index: SpotIndex,
}

impl Default for LiveIndex {
    fn default() -> Self {
        let recent = Cache::builder()
            .max_capacity(RECENT_BYTES)
            .weigher(|_: &Asked, matches: &Arc<RoaringBitmap>| {
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

    /// The revision that the index is of.
    pub(in crate::store) fn revision(&self) -> Option<i64> {
        self.held().revision
    }

    /// Spots in the index, and its bytes; `None` before it was read.
    pub(in crate::store) fn size(&self) -> Option<(u64, usize)> {
        let held = self.held();
        held.revision.map(|_| (held.index.spots(), held.index.bytes()))
    }

    /// Has `refresh` run, or takes part in a run of another caller's that begins after this call: whatever
    /// was committed before is in the index then.
    ///
    /// # Errors
    /// Those of the run.
    pub(in crate::store) async fn up_to_date<F>(
        self: &Arc<Self>,
        refresh: impl FnOnce() -> F,
    ) -> Result<(), StoreError>
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        let run = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            next.get_or_insert_with(|| Self::in_turn(Arc::clone(self), refresh()).boxed().shared())
                .clone()
        };
        run.await.map_err(|error| match &*error {
            StoreError::Unavailable(_) => StoreError::Unavailable(error.into()),
            StoreError::Failed(_) => StoreError::Failed(error.into()),
        })
    }

    async fn in_turn(
        self: Arc<Self>,
        refresh: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), Arc<StoreError>> {
        let _turn = self.reading.acquire().await;
        // From here on it is too late to take part.
        self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        refresh.await.map_err(Arc::new)
    }

    /// Answers from another index from now on, which is of `revision`.
    pub(in crate::store) fn replace(&self, revision: i64, index: SpotIndex) {
        let held = Held { revision: Some(revision), index };
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Puts changes into the index, which is of `revision` then.
    ///
    /// # Errors
    /// [`DocIdGap`]; the index is to be read anew.
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

    /// One page of the spots that pass the filter; `bookmarked` has the doc ids of its member's bookmarks.
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

    /// The spots that pass the filter; `None` is every spot.
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
