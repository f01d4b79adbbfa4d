//! The ports with a span around each operation: a client span of the engine, below the request's.
//!
//! The words are fixed. What an operation is given (ids, addresses, what somebody searches for) is in
//! none of them.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_chassis::health::{Access, Outcomes, Trouble};
use tourin_chassis::telemetry::{DbCall, db_call};
use tourin_shared_events::events::Outgoing;

use super::errors::trouble;
use crate::app::StoreError;
use crate::app::accounts::{AccountStore, Changed, Created, Credentials, PasswordChange};
use crate::app::bookmarks::{BookmarkStore, Placed, Removed};
use crate::app::reviews::{Deleted, Liked, ReviewStore, Written};
use crate::app::sessions::{OpenSession, Opened, Rotation, SessionStore};
use crate::domain::account::{Account, Member, MemberId, ProfileChange};
use crate::domain::bookmark::Bookmark;
use crate::domain::page::{Page, PageRequest};
use crate::domain::review::{Review, ReviewContent, ReviewId};
use crate::domain::search::SearchText;
use crate::domain::session::{SessionPolicy, SessionTimes};
use crate::domain::spot::SpotId;
use crate::domain::token::{Salt, SessionId, TokenHash};

/// An engine, by OpenTelemetry's name, and whom readiness asks how what is asked of it ends.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    name: &'static str,
    outcomes: Option<Outcomes>,
}

/// A file.
pub(super) const SQLITE: Engine = Engine::named("sqlite");
/// MySQL or MariaDB.
pub(super) const MYSQL: Engine = Engine::named("mysql");
/// Redis.
pub(super) const REDIS: Engine = Engine::named("redis");

/// Operations that only read. Others may have written.
const READS: [&str; 3] = ["select", "search", "search map"];

impl Engine {
    const fn named(name: &'static str) -> Self {
        Self { name, outcomes: None }
    }

    /// The one of which `outcomes` tells.
    pub(super) fn with(&self, outcomes: &Outcomes) -> Self {
        Self { name: self.name, outcomes: Some(outcomes.clone()) }
    }

    /// Runs an operation on one kind of thing within a span.
    pub(super) async fn call<T>(
        &self,
        operation: &'static str,
        on: &'static str,
        run: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let result = db_call(DbCall::new(self.name, operation, on), class, run).await;
        if let Some(outcomes) = &self.outcomes {
            let access = if READS.contains(&operation) { Access::Read } else { Access::Write };
            match &result {
                Ok(_) => outcomes.succeeded(access),
                Err(error @ StoreError::Unavailable(_)) => {
                    let (Trouble::Refuses(why) | Trouble::Away(why)) = trouble(error);
                    outcomes.failed(access, &why);
                }
                // It may be the request's own fault.
                Err(StoreError::Failed(_)) => {}
            }
        }
        result
    }
}

/// The kind of failure, without what the engine says of it.
fn class(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unavailable(_) => "unavailable",
        StoreError::Failed(_) => "failed",
    }
}

/// A port on an engine.
pub(super) struct Traced<S: ?Sized> {
    engine: Engine,
    port: Arc<S>,
}

impl<S: ?Sized> Traced<S> {
    pub(super) fn new(engine: Engine, port: Arc<S>) -> Self {
        Self { engine, port }
    }
}

impl<S: ?Sized> Clone for Traced<S> {
    fn clone(&self) -> Self {
        Self { engine: self.engine.clone(), port: Arc::clone(&self.port) }
    }
}

#[async_trait]
impl<S: AccountStore + ?Sized> AccountStore for Traced<S> {
    async fn create(
        &self,
        credentials: &Credentials,
        now: DateTime<Utc>,
    ) -> Result<Created, StoreError> {
        self.engine.call("insert", "accounts", self.port.create(credentials, now)).await
    }

    async fn is_taken(&self, id: &MemberId) -> Result<bool, StoreError> {
        self.engine.call("select", "accounts", self.port.is_taken(id)).await
    }

    async fn member(&self, id: &MemberId) -> Result<Option<Member>, StoreError> {
        self.engine.call("select", "accounts", self.port.member(id)).await
    }

    async fn credentials(&self, id: &MemberId) -> Result<Option<Credentials>, StoreError> {
        self.engine.call("select", "accounts", self.port.credentials(id)).await
    }

    async fn update_profile(
        &self,
        id: &MemberId,
        change: &ProfileChange,
        now: DateTime<Utc>,
    ) -> Result<Option<Account>, StoreError> {
        self.engine.call("update", "accounts", self.port.update_profile(id, change, now)).await
    }

    async fn change_password(&self, change: PasswordChange) -> Result<Changed, StoreError> {
        self.engine.call("change password", "accounts", self.port.change_password(change)).await
    }

    async fn delete(
        &self,
        id: &MemberId,
        revoked_until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Option<Vec<SessionId>>, StoreError> {
        self.engine.call("delete", "accounts", self.port.delete(id, revoked_until, now)).await
    }

    async fn members(
        &self,
        query: Option<&SearchText>,
        page: PageRequest,
    ) -> Result<Page<Member>, StoreError> {
        self.engine.call("search", "accounts", self.port.members(query, page)).await
    }
}

#[async_trait]
impl<S: SessionStore + ?Sized> SessionStore for Traced<S> {
    async fn open(&self, open: OpenSession, policy: &SessionPolicy) -> Result<Opened, StoreError> {
        self.engine.call("open", "sessions", self.port.open(open, policy)).await
    }

    async fn rotate(
        &self,
        presented: &TokenHash,
        salt: &Salt,
        successor: &TokenHash,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Rotation, StoreError> {
        self.engine
            .call("rotate", "sessions", self.port.rotate(presented, salt, successor, policy, now))
            .await
    }

    async fn touch(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<SessionTimes>, StoreError> {
        self.engine.call("touch", "sessions", self.port.touch(member, session, policy, now)).await
    }

    async fn session_of(
        &self,
        presented: &TokenHash,
    ) -> Result<Option<(MemberId, SessionId)>, StoreError> {
        self.engine.call("select", "sessions", self.port.session_of(presented)).await
    }

    async fn account(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<Account>, StoreError> {
        self.engine
            .call("select", "sessions", self.port.account(member, session, policy, now))
            .await
    }

    async fn end(
        &self,
        member: &MemberId,
        session: SessionId,
        everywhere: bool,
        revoked_until: DateTime<Utc>,
    ) -> Result<Vec<SessionId>, StoreError> {
        self.engine
            .call("end", "sessions", self.port.end(member, session, everywhere, revoked_until))
            .await
    }

    async fn prune(&self, policy: &SessionPolicy, now: DateTime<Utc>) -> Result<u64, StoreError> {
        self.engine.call("prune", "sessions", self.port.prune(policy, now)).await
    }
}

#[async_trait]
impl<S: BookmarkStore + ?Sized> BookmarkStore for Traced<S> {
    async fn place(
        &self,
        member: &str,
        spot: SpotId,
        now: DateTime<Utc>,
        event: Outgoing,
    ) -> Result<Placed, StoreError> {
        self.engine.call("place", "bookmarks", self.port.place(member, spot, now, event)).await
    }

    async fn remove(
        &self,
        member: &str,
        spot: SpotId,
        now: DateTime<Utc>,
        event: Outgoing,
    ) -> Result<Removed, StoreError> {
        self.engine.call("remove", "bookmarks", self.port.remove(member, spot, now, event)).await
    }

    async fn find(&self, member: &str, spot: SpotId) -> Result<Option<Bookmark>, StoreError> {
        self.engine.call("select", "bookmarks", self.port.find(member, spot)).await
    }

    async fn page(
        &self,
        member: &str,
        page: PageRequest,
    ) -> Result<Option<Page<Bookmark>>, StoreError> {
        self.engine.call("select", "bookmarks", self.port.page(member, page)).await
    }
}

#[async_trait]
impl<S: ReviewStore + ?Sized> ReviewStore for Traced<S> {
    async fn write(
        &self,
        member: &str,
        spot: SpotId,
        content: &ReviewContent,
        now: DateTime<Utc>,
    ) -> Result<Written, StoreError> {
        self.engine.call("write", "reviews", self.port.write(member, spot, content, now)).await
    }

    async fn delete(
        &self,
        member: &str,
        review: ReviewId,
        now: DateTime<Utc>,
    ) -> Result<Deleted, StoreError> {
        self.engine.call("delete", "reviews", self.port.delete(member, review, now)).await
    }

    async fn like(&self, member: &str, review: ReviewId, liked: bool) -> Result<Liked, StoreError> {
        self.engine.call("like", "reviews", self.port.like(member, review, liked)).await
    }

    async fn page(
        &self,
        spot: SpotId,
        page: PageRequest,
    ) -> Result<Option<Page<Review>>, StoreError> {
        self.engine.call("select", "reviews", self.port.page(spot, page)).await
    }

    async fn likes(
        &self,
        member: &str,
        reviews: &[ReviewId],
    ) -> Result<Option<Vec<bool>>, StoreError> {
        self.engine.call("select", "review_likes", self.port.likes(member, reviews)).await
    }
}
