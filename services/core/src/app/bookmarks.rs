//! Bookmarks, each stored or removed in one transaction with its event.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_chassis::clock::SharedClock;
use tourin_shared_events::events::{BookmarkTourspot, Outgoing, UnbookmarkTourspot};

use super::StoreError;
use crate::domain::bookmark::Bookmark;
use crate::domain::page::{Page, PageRequest};
use crate::domain::spot::SpotId;

/// The outcome of placing a bookmark.
#[derive(Debug, Clone, PartialEq)]
pub enum Placed {
    /// The bookmark is new; its event is in the outbox.
    Placed(Bookmark),
    /// The bookmark existed; there is no event.
    AlreadyThere(Bookmark),
    /// The spot does not exist.
    NoSuchSpot,
    /// The account does not exist.
    NoSuchMember,
}

/// The outcome of removing a bookmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The bookmark is removed; its event is in the outbox.
    Removed,
    /// The bookmark did not exist.
    NotThere,
    /// The account does not exist.
    NoSuchMember,
}

/// The store of bookmarks.
#[async_trait]
pub trait BookmarkStore: Send + Sync {
    /// Stores a bookmark and appends its event, in one transaction.
    async fn place(
        &self,
        member: &str,
        spot: SpotId,
        now: DateTime<Utc>,
        event: Outgoing,
    ) -> Result<Placed, StoreError>;

    /// Removes a bookmark and appends its event, in one transaction.
    async fn remove(
        &self,
        member: &str,
        spot: SpotId,
        now: DateTime<Utc>,
        event: Outgoing,
    ) -> Result<Removed, StoreError>;

    /// A member's bookmark of a spot.
    async fn find(&self, member: &str, spot: SpotId) -> Result<Option<Bookmark>, StoreError>;

    /// One page of a member's bookmarks, newest first; `None` if the member does not exist.
    async fn page(
        &self,
        member: &str,
        page: PageRequest,
    ) -> Result<Option<Page<Bookmark>>, StoreError>;
}

/// The event of a removed bookmark.
pub fn unbookmarked(member: &str, spot: SpotId, now: DateTime<Utc>) -> Outgoing {
    let event = UnbookmarkTourspot { user_id: member.to_owned(), tourspot_id: spot.to_string() };
    Outgoing::new(&event, now)
}

/// The use cases of bookmarks.
#[derive(Clone)]
pub struct Bookmarks {
    store: Arc<dyn BookmarkStore>,
    clock: SharedClock,
}

impl Bookmarks {
    /// Bookmarks in `store`.
    pub fn new(store: Arc<dyn BookmarkStore>, clock: SharedClock) -> Self {
        Self { store, clock }
    }

    /// Places a bookmark for a member; placing it again changes nothing.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn place(&self, member: &str, spot: SpotId) -> Result<Placed, StoreError> {
        let now = self.clock.now();
        let event = BookmarkTourspot { user_id: member.to_owned(), tourspot_id: spot.to_string() };
        self.store.place(member, spot, now, Outgoing::new(&event, now)).await
    }

    /// Removes a bookmark.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn remove(&self, member: &str, spot: SpotId) -> Result<Removed, StoreError> {
        let now = self.clock.now();
        self.store.remove(member, spot, now, unbookmarked(member, spot, now)).await
    }

    /// A member's bookmark of a spot.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn find(&self, member: &str, spot: SpotId) -> Result<Option<Bookmark>, StoreError> {
        self.store.find(member, spot).await
    }

    /// See [`BookmarkStore::page`].
    ///
    /// # Errors
    /// When the store fails.
    pub async fn page(
        &self,
        member: &str,
        page: PageRequest,
    ) -> Result<Option<Page<Bookmark>>, StoreError> {
        self.store.page(member, page).await
    }
}
