//! Tour spots: search, list, map, and changes in batches.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_shared_events::events::{Outgoing, TourSpotUpsert};

use super::StoreError;
use crate::domain::geo::Bounds;
use crate::domain::page::{Page, PageRequest};
use crate::domain::search::{SpotFilter, SpotSort};
use crate::domain::spot::{Spot, SpotDraft, SpotId, SpotOverview};

/// Most spots on the map by default.
pub const DEFAULT_MAP_SPOTS: u16 = 500;
/// Most drafts in one [`SpotStore::upsert_batch`].
pub const MAX_BATCH: usize = 1_000;
/// Most spots in one [`SpotStore::page_after`].
pub const MAX_RESYNC_PAGE: u32 = 1_000;

/// The outcome of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Upserted {
    /// Drafts that added or changed a spot; each has an event.
    pub changed: u64,
    /// Drafts equal to the stored spot: no new version, no event.
    pub unchanged: u64,
}

/// The store of spots.
#[async_trait]
pub trait SpotStore: Send + Sync {
    /// The spot with this id.
    async fn find(&self, id: SpotId) -> Result<Option<Spot>, StoreError>;

    /// One page of the spots that pass the filter. `None` if the filter's member does not exist.
    async fn search(
        &self,
        filter: &SpotFilter,
        sort: SpotSort,
        page: PageRequest,
    ) -> Result<Option<Page<SpotOverview>>, StoreError>;

    /// The spots in a box that pass the filter, by id. Of more than `max`, those that
    /// [`crate::domain::geo::spread`] selects over the box's grid of at most `max` cells. `None` if
    /// the filter's member does not exist.
    async fn map(
        &self,
        filter: &SpotFilter,
        bounds: &Bounds,
        max: usize,
    ) -> Result<Option<Vec<SpotOverview>>, StoreError>;

    /// Adds or changes at most [`MAX_BATCH`] spots in their order, with an [`upserted`] event for
    /// each that changes, in one transaction. An id that occurs twice is changed twice.
    async fn upsert_batch(
        &self,
        drafts: &[SpotDraft],
        now: DateTime<Utc>,
    ) -> Result<Upserted, StoreError>;

    /// At most `limit` spots with greater ids than `after`, by id. Paging through all spots misses
    /// none that exists throughout.
    async fn page_after(&self, after: Option<SpotId>, limit: u32) -> Result<Vec<Spot>, StoreError>;

    /// Whether the built-in catalogue was loaded before.
    async fn catalogue_was_loaded(&self) -> Result<bool, StoreError>;

    /// Records that the built-in catalogue was loaded.
    async fn mark_catalogue_loaded(&self, now: DateTime<Utc>) -> Result<(), StoreError>;
}

/// The event of an added or changed spot.
pub fn upserted(spot: &Spot, now: DateTime<Utc>) -> Outgoing {
    Outgoing::new(&upsert_payload(spot), now)
}

/// A complete spot as its event carries it.
pub fn upsert_payload(spot: &Spot) -> TourSpotUpsert {
    let content = &spot.content;
    TourSpotUpsert {
        tourspot_id: spot.id.to_string(),
        version: spot.version,
        name: content.name().to_owned(),
        address: content.address().to_owned(),
        lat: content.at().lat(),
        lng: content.at().lng(),
        image_url: content.image_url().map(ToOwned::to_owned),
        description: content.description().map(ToOwned::to_owned),
        phone_number: content.phone_number().map(ToOwned::to_owned),
        tags: content.tags().iter().map(|tag| tag.name().to_owned()).collect(),
    }
}

/// The use cases of spots.
#[derive(Clone)]
pub struct Spots {
    store: Arc<dyn SpotStore>,
    map_spots: usize,
}

impl Spots {
    /// Spots in `store`, at most `map_spots` of them on the map.
    pub fn new(store: Arc<dyn SpotStore>, map_spots: usize) -> Self {
        Self { store, map_spots }
    }

    /// The spot with this id.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn find(&self, id: SpotId) -> Result<Option<Spot>, StoreError> {
        self.store.find(id).await
    }

    /// See [`SpotStore::search`].
    ///
    /// # Errors
    /// When the store fails.
    pub async fn search(
        &self,
        filter: &SpotFilter,
        sort: SpotSort,
        page: PageRequest,
    ) -> Result<Option<Page<SpotOverview>>, StoreError> {
        self.store.search(filter, sort, page).await
    }

    /// See [`SpotStore::map`].
    ///
    /// # Errors
    /// When the store fails.
    pub async fn map(
        &self,
        filter: &SpotFilter,
        bounds: &Bounds,
    ) -> Result<Option<Vec<SpotOverview>>, StoreError> {
        self.store.map(filter, bounds, self.map_spots).await
    }

    /// One page of all spots by id, for replicas. `limit` is clamped to 1..=[`MAX_RESYNC_PAGE`].
    ///
    /// # Errors
    /// When the store fails.
    pub async fn page_after(
        &self,
        after: Option<SpotId>,
        limit: u32,
    ) -> Result<Vec<Spot>, StoreError> {
        self.store.page_after(after, limit.clamp(1, MAX_RESYNC_PAGE)).await
    }
}
