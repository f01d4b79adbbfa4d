//! The bus for services in separate processes on embedded stores: follows another service's outbox over HTTP.
//!
//! `GET {base}/internal/events?after=SEQ&limit=N&wait_ms=MS` answers a [`FeedPage`] and waits up to `wait_ms` for one
//! that is not empty. The follower keeps a [`Cursor`] and moves it only over events that are settled, so a crash makes
//! it read again what had not taken effect.

#[cfg(any(test, feature = "testing"))]
pub mod contract;
mod queue;
mod source;

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::HeaderMap;

use self::queue::Queue;
use super::{Backlog, Carrier, Deliveries, SubscribeError, Subscriber, Subscription};
use crate::Clock;
use crate::backoff::Backoff;
use crate::consumer::counters;
use crate::dead_letters::DeadLetterStore;
#[cfg(doc)]
use crate::outbox::FeedPage;

/// How far a queue has come in a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The log's name.
    pub log_id: String,
    /// Every event up to and including this number is settled.
    pub seq: u64,
}

/// Where cursors are kept: by the service that consumes, next to the effects.
#[async_trait]
pub trait CursorStore: Send + Sync {
    /// A queue's cursor, if one was saved.
    async fn load(&self, queue: &str) -> anyhow::Result<Option<Cursor>>;

    /// Saves a queue's cursor. Losing the latest is harmless: events are read and deduped again.
    async fn save(&self, queue: &str, cursor: &Cursor) -> anyhow::Result<()>;
}

/// Where the log is right now, and what to say to be let in.
#[derive(Clone, Debug)]
pub struct Target {
    /// Such as `http://127.0.0.1:4001`.
    pub base_url: String,
    /// Sent with the request: the caller's identity.
    pub headers: HeaderMap,
}

/// Finds the log before each request, so that it may move and identities may be short-lived.
#[async_trait]
pub trait Endpoint: Send + Sync {
    /// An instance to ask.
    async fn resolve(&self) -> anyhow::Result<Target>;

    /// The service whose log it is, as traces name it.
    fn service(&self) -> &'static str {
        Carrier::IN_PROCESS.peer
    }
}

/// The follower's bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedSettings {
    /// Events asked for at once. Default 500.
    pub page_events: u32,
    /// How long the other side may wait for news. Default 20 s.
    pub wait: Duration,
    /// How long to wait for the connection. Default 2 s.
    pub connect_timeout: Duration,
    /// How long an answer may take beyond `wait`. Default 10 s.
    pub response_timeout: Duration,
    /// The longest answer that is read, in bytes. Default 16 MiB.
    pub max_response_bytes: usize,
    /// No page is asked for while at least this many events wait here. Default 1000.
    pub max_buffered: usize,
    /// The shortest time between two saves of the cursor. Default 250 ms.
    pub save_interval: Duration,
    /// The waits after failures in a row. Default 100 ms doubling to at most 5 s.
    pub backoff: Backoff,
}

impl Default for FeedSettings {
    fn default() -> Self {
        Self {
            page_events: crate::outbox::MAX_PAGE_EVENTS,
            wait: Duration::from_secs(20),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(10),
            max_response_bytes: 16 * 1024 * 1024,
            max_buffered: 1000,
            save_interval: Duration::from_millis(250),
            backoff: Backoff {
                base: Duration::from_millis(100),
                max: Duration::from_secs(5),
                jitter: 0.5,
            },
        }
    }
}

counters! {
    /// Counters of a follower.
    FeedStats,
    /// [`FeedStats`] at a moment.
    FeedSnapshot {
        /// Pages read, empty ones included.
        pages,
        /// Events read that a binding wanted.
        events,
        /// Requests that failed, each tried again.
        failures,
        /// Times the log turned out to be another one, or set back, and was read from its start.
        restarts,
        /// Times events had been deleted before they were read: some are missed, and a resync is due.
        gaps,
    }
}

/// A [`Subscriber`] over another service's outbox.
///
/// One follower per queue name: two that share a cursor would each have all events. (With shared effects that is
/// harmless, for they dedupe, but it is work done twice.) `shards` of a subscription has no meaning here.
pub struct FeedSubscriber {
    follower: Arc<Follower>,
    /// Those of the subscriptions that are alive.
    queues: Mutex<Vec<Weak<Queue>>>,
}

struct Follower {
    endpoint: Arc<dyn Endpoint>,
    cursors: Arc<dyn CursorStore>,
    dead_letters: Arc<dyn DeadLetterStore>,
    clock: Clock,
    settings: FeedSettings,
    stats: Arc<FeedStats>,
    http: reqwest::Client,
}

impl FeedSubscriber {
    /// A follower of the log at `endpoint`.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(
        endpoint: Arc<dyn Endpoint>,
        cursors: Arc<dyn CursorStore>,
        dead_letters: Arc<dyn DeadLetterStore>,
        clock: Clock,
        settings: FeedSettings,
    ) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.wait + settings.response_timeout)
            .redirect(reqwest::redirect::Policy::none())
            // Services speak to each other directly, whatever the environment says of proxies.
            .no_proxy()
            .build()?;
        let stats = Arc::default();
        let follower =
            Arc::new(Follower { endpoint, cursors, dead_letters, clock, settings, stats, http });
        Ok(Self { follower, queues: Mutex::default() })
    }

    fn queues(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Queue>>> {
        // Nothing under this lock can panic halfway through a change.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<FeedStats> {
        self.follower.stats.clone()
    }
}

#[async_trait]
impl Subscriber for FeedSubscriber {
    async fn subscribe(&self, subscription: Subscription) -> Result<Deliveries, SubscribeError> {
        let bindings = subscription.check()?;
        let cursor = self
            .follower
            .cursors
            .load(&subscription.queue)
            .await
            .map_err(SubscribeError::Unavailable)?;
        let cursor = cursor.unwrap_or_default();
        let queue = Arc::new(Queue::new(subscription.queue, self.follower.clone(), cursor.seq));
        self.queues().push(Arc::downgrade(&queue));
        let source = source::Source::new(queue, subscription.prefetch, bindings, cursor);
        Ok(Deliveries::new(source))
    }

    async fn backlog(&self) -> anyhow::Result<Backlog> {
        let mut backlog = Backlog::default();
        let mut queues = self.queues();
        queues.retain(|queue| queue.strong_count() > 0);
        for queue in queues.iter().filter_map(Weak::upgrade) {
            let state = queue.lock();
            backlog.waiting += (state.lanes.waiting() + state.unsettled) as u64;
            let settled = state.settled();
            backlog.settled_to = Some(backlog.settled_to.unwrap_or(settled).min(settled));
        }
        Ok(backlog)
    }
}
