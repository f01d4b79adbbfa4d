//! The outbox as a log that other processes read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Depth, OutboxStore, Wake};

/// The most events on a page.
pub const MAX_PAGE_EVENTS: u32 = 500;
/// About how many bytes of envelopes a page holds; one event is always served whole. 4 MiB.
pub const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// The longest wait for something new that a reader may ask for.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// How often a waiting reader looks by himself, for commits of other processes, which give no signal here.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A page of the feed, as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeedPage {
    /// Names the log. Another name means another log (a new database): start from 0.
    pub log_id: String,
    /// The events above the number asked for, in order.
    pub events: Vec<FeedEvent>,
    /// What to ask for next. Below what was asked for only when the log was set back (a restored copy): start from 0.
    pub next: u64,
    /// Events up to and including this number may have been deleted. A reader who had not come so far missed some.
    pub pruned: u64,
}

/// An event on a page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeedEvent {
    /// Its place in the log; grows, with gaps.
    pub seq: u64,
    /// The domain's exchange.
    pub exchange: String,
    /// The topic.
    pub routing_key: String,
    /// The key by which it is ordered.
    pub ordering_key: String,
    /// The transport's metadata.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The envelope, left for the consumer to check.
    pub envelope: Value,
}

/// Serves pages to readers, and lets them wait for news.
#[derive(Clone)]
pub struct Feed {
    store: Arc<dyn OutboxStore>,
    wake: Wake,
    shutdown: CancellationToken,
}

impl Feed {
    /// A feed over `store`; `wake` is the signal its writers give, `shutdown` ends all waiting at once.
    pub fn new(store: Arc<dyn OutboxStore>, wake: Wake, shutdown: CancellationToken) -> Self {
        Self { store, wake, shutdown }
    }

    /// How much waits in the outbox.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn depth(&self) -> anyhow::Result<Depth> {
        self.store.depth().await
    }

    /// The events above `after`: at most `limit` (1 to [`MAX_PAGE_EVENTS`]; beyond that, the nearest bound). When there
    /// are none, waits up to `wait` (at most 30 s) for some, and may still return an empty page.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn page(&self, after: u64, limit: u32, wait: Duration) -> anyhow::Result<FeedPage> {
        let limit = limit.clamp(1, MAX_PAGE_EVENTS);
        let deadline = Instant::now() + wait.min(MAX_WAIT);
        let mut news = self.wake.listen();
        loop {
            let page = self.store.page_after(after, limit).await?;
            let now = Instant::now();
            if !page.events.is_empty() || page.next < after || now >= deadline {
                return Ok(page);
            }
            tokio::select! {
                () = news.notified() => {}
                () = sleep_until(deadline.min(now + POLL_INTERVAL)) => {}
                () = self.shutdown.cancelled() => return Ok(page),
            }
        }
    }
}
