//! The use cases of spots, bookmarks, reviews and views, assembled.

use std::sync::Arc;

use async_trait::async_trait;
use tourin_shared_events::outbox::Depth;

use super::StoreError;
use super::bookmarks::Bookmarks;
use super::reviews::Reviews;
use super::spots::Spots;
use super::views::Views;

/// The events that were committed, as services in other processes ask about them.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// Names the history of events. Another name means that the data was made anew or restored.
    ///
    /// # Errors
    /// When the store fails.
    async fn id(&self) -> Result<String, StoreError>;

    /// How many wait for the bus.
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
    /// Noting who looked at what. Its owner runs [`Views::run`] until after the last request.
    pub views: Views,
    /// The events that were committed.
    pub events: Arc<dyn EventLog>,
}
