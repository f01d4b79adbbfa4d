//! Reviews and their likes. Writing and deleting have events; likes have none.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_chassis::clock::SharedClock;
use tourin_shared_events::events::{DeleteReview, Outgoing, ReviewTourspot};

use super::StoreError;
use crate::domain::page::{Page, PageRequest};
use crate::domain::review::{Review, ReviewContent, ReviewId};
use crate::domain::spot::SpotId;

/// What writing a review did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It is there; the event is on its way.
    Written(Review),
    /// There is no such spot.
    NoSuchSpot,
    /// The member's account is gone.
    NoSuchMember,
}

/// What deleting a review did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone with its likes; the event is on its way.
    Deleted,
    /// Somebody else wrote it.
    NotYours,
    /// There is no such review.
    NotThere,
    /// The member's account is gone.
    NoSuchMember,
}

/// What liking a review, or not liking it any more, did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liked {
    /// It is as asked for, whether it was before or not.
    Done,
    /// There is no such review.
    NoSuchReview,
    /// The member's account is gone.
    NoSuchMember,
}

/// Where reviews and likes are kept.
#[async_trait]
pub trait ReviewStore: Send + Sync {
    /// Keeps a review and its [`reviewed`] event, or neither. The store numbers the review.
    async fn write(
        &self,
        member: &str,
        spot: SpotId,
        content: &ReviewContent,
        now: DateTime<Utc>,
    ) -> Result<Written, StoreError>;

    /// Deletes a member's own review, with its likes, and appends its [`deleted`] event; all or
    /// nothing.
    async fn delete(
        &self,
        member: &str,
        review: ReviewId,
        now: DateTime<Utc>,
    ) -> Result<Deleted, StoreError>;

    /// Makes a member like a review, or not; idempotent both ways.
    async fn like(&self, member: &str, review: ReviewId, liked: bool) -> Result<Liked, StoreError>;

    /// One page of a spot's reviews, newest first; `None` when there is no such spot.
    async fn page(
        &self,
        spot: SpotId,
        page: PageRequest,
    ) -> Result<Option<Page<Review>>, StoreError>;

    /// Whether a member likes each of these reviews, in their order; a review that is not there is
    /// not liked. `None` when there is no such member.
    async fn likes(
        &self,
        member: &str,
        reviews: &[ReviewId],
    ) -> Result<Option<Vec<bool>>, StoreError>;
}

/// The event of a review that was written.
pub fn reviewed(member: &str, spot: SpotId, review: ReviewId, now: DateTime<Utc>) -> Outgoing {
    let event = ReviewTourspot {
        user_id: member.to_owned(),
        tourspot_id: spot.to_string(),
        review_id: review.to_string(),
    };
    Outgoing::new(&event, now)
}

/// The event of a review that is gone.
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

    /// Keeps a review.
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

    /// Makes a member like a review, or not.
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
