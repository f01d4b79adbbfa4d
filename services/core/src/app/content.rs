//! The use cases of spots, bookmarks, reviews and views, assembled.

use tourin_shared_events::outbox::Feed;

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
    /// Noting who looked at what. Its owner runs [`Views::run`] until after the last request.
    pub views: Views,
    /// The events for services in other processes.
    pub feed: Feed,
}
