//! The log of ended sessions. Gateways follow it, so that no request needs a look-up. The same log tells
//! them which cached responses are out of date ([`super::invalidations`]).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::invalidation::LONGEST_FRESHNESS;

use super::StoreError;
use crate::domain::token::SessionId;

/// A session that was ended, or a tag of cached responses that are out of date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The position in the log; grows, with gaps where entries have expired.
    pub seq: u64,
    /// The session; an id of no session if the entry has a tag.
    pub session: SessionId,
    /// The tag, such as `spot:42`.
    pub invalidates: Option<String>,
    /// When the entry expires: by then every access token of the session has expired.
    pub until: DateTime<Utc>,
}

/// A page of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationPage {
    /// The log's id. If it has changed, begin again from 0.
    pub log_id: String,
    /// The cursor of the next page: the last entry's position, or the requested one for an empty page.
    pub next: u64,
    /// The entries, oldest first.
    pub entries: Vec<Revocation>,
}

/// The log. The stores of accounts and sessions append to it, in the transaction that ends the session.
#[async_trait]
pub trait RevocationLog: Send + Sync {
    /// At most `limit` entries after position `after`, in order, without expired ones.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn page_after(
        &self,
        after: u64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<RevocationPage, StoreError>;

    /// Appends an entry for a session that does not exist.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn append_canary(
        &self,
        canary: SessionId,
        until: DateTime<Utc>,
    ) -> Result<(), StoreError>;

    /// Appends that the responses with each of these tags are out of date, in one transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn invalidate(&self, tags: &[String], until: DateTime<Utc>) -> Result<(), StoreError>;

    /// Removes expired entries; returns their number.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn prune_expired(&self, now: DateTime<Utc>) -> Result<u64, StoreError>;
}

/// Most entries in one page; a follower requests the next page at once.
pub const PAGE_LIMIT: u32 = 1_000;

/// How long an entry for a gateway's measurement is kept.
const CANARY_LIFE: TimeDelta = TimeDelta::seconds(60);

/// How often a waiting follower looks for entries that another process appended.
const RECHECK: Duration = Duration::from_secs(1);

/// Serves the log by long poll.
pub struct Revocations {
    log: Arc<dyn RevocationLog>,
    clock: SharedClock,
    news: watch::Sender<()>,
}

impl Revocations {
    /// Serves `log`.
    pub fn new(log: Arc<dyn RevocationLog>, clock: SharedClock) -> Self {
        Self { log, clock, news: watch::Sender::new(()) }
    }

    /// Wakes the followers after sessions were ended.
    pub fn appended(&self) {
        self.news.send_replace(());
    }

    /// Appends an entry that ends no session, so that a gateway sees how soon it learns of one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn append_canary(&self, canary: SessionId) -> Result<(), StoreError> {
        self.log.append_canary(canary, self.clock.now() + CANARY_LIFE).await?;
        self.appended();
        Ok(())
    }

    /// Appends that the responses with these tags are out of date.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn invalidate(&self, tags: &[String]) -> Result<(), StoreError> {
        self.log.invalidate(tags, self.clock.now() + LONGEST_FRESHNESS).await?;
        self.appended();
        Ok(())
    }

    /// The entries after `after`. If there are none, waits for new ones until `wait` has passed or
    /// `stop` has begun, and then returns an empty page.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn follow(
        &self,
        after: u64,
        wait: Duration,
        stop: impl Future<Output = ()>,
    ) -> Result<RevocationPage, StoreError> {
        let mut news = self.news.subscribe();
        let deadline = tokio::time::Instant::now() + wait;
        tokio::pin!(stop);
        loop {
            // Marked as seen before the log is read, so that an append during the read wakes the loop again.
            news.borrow_and_update();
            let page = self.log.page_after(after, PAGE_LIMIT, self.clock.now()).await?;
            let now = tokio::time::Instant::now();
            if !page.entries.is_empty() || now >= deadline {
                return Ok(page);
            }
            tokio::select! {
                () = &mut stop => return Ok(page),
                _ = news.changed() => {}
                () = tokio::time::sleep_until(deadline.min(now + RECHECK)) => {}
            }
        }
    }

    /// Removes entries that have expired at `now`, the time of a checked clock. Returns their number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn prune(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        self.log.prune_expired(now).await
    }
}
