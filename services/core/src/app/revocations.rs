//! The log of ended sessions, which gateways follow so that no request needs a look-up.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tourin_chassis::clock::SharedClock;

use super::StoreError;
use crate::domain::token::SessionId;

/// A session that was ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Its place in the log; grows, with gaps where entries have expired.
    pub seq: u64,
    /// The session.
    pub session: SessionId,
    /// From when on the entry is of no use: every access token of the session has expired.
    pub until: DateTime<Utc>,
}

/// A stretch of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationPage {
    /// The log's identity. Another one than before: begin again from 0.
    pub log_id: String,
    /// Where to go on: the last entry's place, or the place asked for when there is none.
    pub next: u64,
    /// The entries, oldest first.
    pub entries: Vec<Revocation>,
}

/// Reads the log. What is appended to it is appended by the stores of accounts and sessions, in the
/// transaction that ends the session.
#[async_trait]
pub trait RevocationLog: Send + Sync {
    /// At most `limit` entries after place `after`, in order, expired ones left out.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn page_after(
        &self,
        after: u64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<RevocationPage, StoreError>;

    /// Removes entries that have expired; says how many.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn prune_expired(&self, now: DateTime<Utc>) -> Result<u64, StoreError>;
}

/// Most entries in one answer; a follower asks again at once for the next.
pub const PAGE_LIMIT: u32 = 1_000;

/// How often a waiting follower looks for entries that another process appended.
const RECHECK: Duration = Duration::from_secs(1);

/// Serves the log to followers that wait for news.
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

    /// Wakes the followers: sessions have been ended.
    pub fn appended(&self) {
        self.news.send_replace(());
    }

    /// The entries after `after`; when there are none, waits for some for at most `wait`, or until
    /// `stop` ends, and then answers with an empty page.
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
            // Marked as seen before the look: what comes during it wakes us again.
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

    /// Removes entries that have expired at `now`, the time of a checked clock; says how many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn prune(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        self.log.prune_expired(now).await
    }
}
