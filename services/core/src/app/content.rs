//! The use cases of spots, bookmarks, reviews and views, assembled.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tourin_shared_events::outbox::{Depth, FeedPage};

use super::StoreError;
use super::bookmarks::Bookmarks;
use super::reviews::Reviews;
use super::spots::Spots;
use super::views::Views;

/// The events in the order in which they were committed, for the services that follow them.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// At most `limit` of those above `after`. When there are none, waits up to `wait` for some, and
    /// may still give an empty page.
    ///
    /// # Errors
    /// When the store fails.
    async fn page(&self, after: u64, limit: u32, wait: Duration) -> Result<FeedPage, StoreError>;

    /// How many wait for the bus, where there is one.
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
    /// The events for services in other processes.
    pub feed: Arc<dyn EventLog>,
}
