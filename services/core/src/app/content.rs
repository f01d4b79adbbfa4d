//! The use cases of spots, bookmarks, reviews and views, assembled.

use std::sync::Arc;

use async_trait::async_trait;
use tourin_shared_events::outbox::Depth;

use super::StoreError;
use super::bookmarks::Bookmarks;
use super::reviews::Reviews;
use super::spots::Spots;
use super::views::Views;

/// The committed events, for services in other processes.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// The id of the event history. A different id means that the data was recreated or restored.
    ///
    /// # Errors
    /// When the store fails.
    async fn id(&self) -> Result<String, StoreError>;

    /// How many events wait for the bus.
    ///
    /// # Errors
    /// When the store fails.
    async fn depth(&self) -> Result<Depth, StoreError>;
}

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
    pub events: Arc<dyn EventLog>,
}
