//! Reviews and their likes. Writing and deleting a review have events; likes have none.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_chassis::clock::SharedClock;
use tourin_shared_events::events::{DeleteReview, Outgoing, ReviewTourspot};

use super::StoreError;
use crate::domain::page::{Page, PageRequest};
use crate::domain::review::{Review, ReviewContent, ReviewId};
use crate::domain::spot::SpotId;

/// The outcome of writing a review.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The review is stored; its event is in the outbox.
    Written(Review),
    /// The spot does not exist.
    NoSuchSpot,
    /// The account does not exist.
    NoSuchMember,
}

/// The outcome of deleting a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// The review and its likes are deleted; its event is in the outbox.
    Deleted,
    /// Another member wrote it.
    NotYours,
    /// The review does not exist.
    NotThere,
    /// The account does not exist.
    NoSuchMember,
}

/// The outcome of liking or unliking a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liked {
    /// The like is as requested; it was not before. Names the review's spot.
    Changed(SpotId),
    /// The like was as requested before.
    Unchanged,
    /// The review does not exist.
    NoSuchReview,
    /// The account does not exist.
    NoSuchMember,
}

/// The store of reviews and likes.
#[async_trait]
pub trait ReviewStore: Send + Sync {
    /// Stores a review and appends its [`reviewed`] event, in one transaction. The store assigns the
    /// id.
    async fn write(
        &self,
        member: &str,
        spot: SpotId,
        content: &ReviewContent,
        now: DateTime<Utc>,
    ) -> Result<Written, StoreError>;

    /// Deletes a member's own review with its likes and appends its [`deleted`] event, in one
    /// transaction.
    async fn delete(
        &self,
        member: &str,
        review: ReviewId,
        now: DateTime<Utc>,
    ) -> Result<Deleted, StoreError>;

    /// Sets whether a member likes a review; idempotent.
    async fn like(&self, member: &str, review: ReviewId, liked: bool) -> Result<Liked, StoreError>;

    /// One page of a spot's reviews, newest first; `None` if the spot does not exist.
    async fn page(
        &self,
        spot: SpotId,
        page: PageRequest,
    ) -> Result<Option<Page<Review>>, StoreError>;

    /// Whether a member likes each of these reviews, in their order. A review that does not exist is
    /// not liked. `None` if the member does not exist.
    async fn likes(
        &self,
        member: &str,
        reviews: &[ReviewId],
    ) -> Result<Option<Vec<bool>>, StoreError>;
}

/// The event of a written review.
pub fn reviewed(member: &str, spot: SpotId, review: ReviewId, now: DateTime<Utc>) -> Outgoing {
    let event = ReviewTourspot {
        user_id: member.to_owned(),
        tourspot_id: spot.to_string(),
        review_id: review.to_string(),
    };
    Outgoing::new(&event, now)
}

/// The event of a deleted review.
pub fn deleted(member: &str, spot: SpotId, review: ReviewId, now: DateTime<Utc>) -> Outgoing {
    let event = DeleteReview {
        user_id: member.to_owned(),
        tourspot_id: spot.to_string(),
        review_id: review.to_string(),
    };
    Outgoing::new(&event, now)
}

/// The use cases of reviews.
#[derive(Clone)]
pub struct Reviews {
    store: Arc<dyn ReviewStore>,
    clock: SharedClock,
}

impl Reviews {
    /// Reviews in `store`.
    pub fn new(store: Arc<dyn ReviewStore>, clock: SharedClock) -> Self {
        Self { store, clock }
    }

    /// Stores a review.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn write(
        &self,
        member: &str,
        spot: SpotId,
        content: &ReviewContent,
    ) -> Result<Written, StoreError> {
        self.store.write(member, spot, content, self.clock.now()).await
    }

    /// Deletes a member's own review.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn delete(&self, member: &str, review: ReviewId) -> Result<Deleted, StoreError> {
        self.store.delete(member, review, self.clock.now()).await
    }

    /// Sets whether a member likes a review.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn like(
        &self,
        member: &str,
        review: ReviewId,
        liked: bool,
    ) -> Result<Liked, StoreError> {
        self.store.like(member, review, liked).await
    }

    /// See [`ReviewStore::page`].
    ///
    /// # Errors
    /// When the store fails.
    pub async fn page(
        &self,
        spot: SpotId,
        page: PageRequest,
    ) -> Result<Option<Page<Review>>, StoreError> {
        self.store.page(spot, page).await
    }

    /// See [`ReviewStore::likes`].
    ///
    /// # Errors
    /// When the store fails.
    pub async fn likes(
        &self,
        member: &str,
        reviews: &[ReviewId],
    ) -> Result<Option<Vec<bool>>, StoreError> {
        self.store.likes(member, reviews).await
    }
}
