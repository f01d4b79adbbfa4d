//! The use cases of spots, bookmarks, reviews and views, assembled.

use std::sync::Arc;

use tourin_shared_events::outbox::{Depth, OutboxStore};

use super::StoreError;
use super::bookmarks::Bookmarks;
use super::reviews::Reviews;
use super::spots::Spots;
use super::views::Views;

/// What the handlers of spots, bookmarks and reviews need; cheap to clone.
#[derive(Clone)]
pub struct Content {
    /// Finding and listing spots.
    pub spots: Spots,
    /// Placing and removing bookmarks.
    pub bookmarks: Bookmarks,
    /// Writing, deleting and liking reviews.
    pub reviews: Reviews,
    /// Recording views. The owner runs [`Views::run`] until after the last request.
    pub views: Views,
    /// The committed events.
    pub events: Arc<dyn OutboxStore>,
}

impl Content {
    /// The id of the event history. A different id means that the data was recreated or restored.
    ///
    /// # Errors
    /// When the store is unreachable.
    pub async fn log_id(&self) -> Result<String, StoreError> {
        self.events.log_id().await.map_err(StoreError::Unavailable)
    }

    /// How many events wait for the bus.
    ///
    /// # Errors
    /// When the store is unreachable.
    pub async fn waiting_events(&self) -> Result<Depth, StoreError> {
        self.events.depth().await.map_err(StoreError::Unavailable)
    }
}
