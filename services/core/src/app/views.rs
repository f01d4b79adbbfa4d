//! Views of spots, grouped so that not every view costs a commit.
//!
//! # Delivery
//! A view waits in memory until [`FLUSH_AFTER`] has passed since the first one of its group, or until
//! [`FLUSH_AT`] views wait. Then the group is committed to the outbox in one transaction and is
//! durable. A crash of the process loses at most the views of the last 200 ms; an orderly stop loses
//! none. While the store refuses writes, at most [`MAX_WAITING`] views wait; more are dropped and
//! counted.
//!
//! # Repeats
//! The trend counts one view per viewer, spot and window. A repeat changes nothing, so it is dropped
//! before the outbox: otherwise one client could fill the outbox by reading. The windows are in
//! memory, the latest [`ViewPolicy::remembered`] of them, and in Redis if the store has it.
//!
//! # Bound
//! Views are dropped from [`ViewPolicy::max_pending`] waiting events on. That is below the number at
//! which the outbox refuses writes, so views cannot cause it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::metrics::{Counter, Metrics};
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::events::{Outgoing, ViewTourspot, is_pseudonym};
use tourin_shared_events::outbox::DEFAULT_MAX_PENDING;
use tourin_shared_events::trace;

use super::StoreError;
use crate::domain::spot::SpotId;

/// Longest time that a view waits for its group.
pub const FLUSH_AFTER: Duration = Duration::from_millis(200);
/// Most views of one group; a full group is written at once.
pub const FLUSH_AT: usize = 500;
/// Most views that wait at once.
pub const MAX_WAITING: usize = 10_000;
/// Pause after the store failed to write a group.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Which views become events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewPolicy {
    /// Within this time of a view, another one by the same viewer of the same spot is a repeat. At
    /// most the trend's own window, or the trend misses views. Default: an hour.
    pub window: TimeDelta,
    /// Most windows that are remembered, in memory and in Redis each. Default: 200,000, about 20 MB.
    pub remembered: u64,
    /// Waiting events from which views are dropped. Default: half of [`DEFAULT_MAX_PENDING`].
    pub max_pending: u64,
}

impl Default for ViewPolicy {
    fn default() -> Self {
        Self {
            window: TimeDelta::hours(1),
            remembered: 200_000,
            max_pending: DEFAULT_MAX_PENDING / 2,
        }
    }
}

/// The viewer and the spot of a view, as a hash: it neither names a member nor grows with the id.
pub type ViewKey = [u8; 16];

/// One view of a spot's page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// A member's id or a visitor's pseudonym.
    pub user_id: String,
    /// The viewed spot.
    pub spot: SpotId,
    /// When.
    pub at: DateTime<Utc>,
    /// The trace of the request, as the event's headers carry it.
    pub trace: BTreeMap<String, String>,
}

impl View {
    /// The view's event.
    pub fn event(&self) -> Outgoing {
        let event =
            ViewTourspot { user_id: self.user_id.clone(), tourspot_id: self.spot.to_string() };
        Outgoing { headers: self.trace.clone(), ..Outgoing::new(&event, self.at) }
    }

    /// The viewer and the spot, the same in every process.
    pub fn key(&self) -> ViewKey {
        let digest = Sha256::digest(format!("{}\n{}", self.spot, self.user_id));
        std::array::from_fn(|at| digest[at])
    }

    /// Whether the viewer is a member, not an anonymous visitor.
    pub fn is_by_member(&self) -> bool {
        !is_pseudonym(&self.user_id)
    }
}

/// The outcome of recording views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordedViews {
    /// Those that are to be recorded are committed.
    Committed,
    /// Too many events wait; nothing was written.
    Shed,
}

/// The store of views.
#[async_trait]
pub trait ViewStore: Send + Sync {
    /// Appends the views' events, in their order, in one transaction. Skips views by members whose
    /// account is deleted, so that no event follows an erasure, and repeats of views that another
    /// process has recorded, as far as the store knows.
    async fn record(
        &self,
        views: &[View],
        policy: &ViewPolicy,
    ) -> Result<RecordedViews, StoreError>;
}

/// Counts views that make no event. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct ViewCounts {
    dropped: Counter,
    repeated: Counter,
}

impl ViewCounts {
    /// Zero, in the service's `metrics`.
    pub fn register(metrics: &Metrics) -> Self {
        Self {
            dropped: metrics.counter(
                "tourin_views_dropped",
                "Views dropped because too many views or events waited",
            ),
            repeated: metrics.counter(
                "tourin_views_repeated",
                "Views dropped because the same viewer had just viewed the same spot",
            ),
        }
    }
}

/// Groups views and writes them.
#[derive(Clone)]
pub struct Views(Arc<Inner>);

struct Inner {
    store: Arc<dyn ViewStore>,
    policy: ViewPolicy,
    clock: SharedClock,
    /// When each viewer's view of a spot last became an event.
    recent: Cache<ViewKey, DateTime<Utc>>,
    waiting: Mutex<Vec<View>>,
    arrived: Notify,
    full: Notify,
    counts: ViewCounts,
    /// One group is written at a time, so that the views of one viewer keep their order.
    writing: tokio::sync::Mutex<()>,
}

impl Views {
    /// Views written to `store` by [`Views::run`].
    pub fn new(
        store: Arc<dyn ViewStore>,
        policy: ViewPolicy,
        clock: SharedClock,
        counts: ViewCounts,
    ) -> Self {
        // The least recent window is evicted first. By frequency, the windows of new viewers would not
        // be remembered during a flood.
        let recent = Cache::builder()
            .max_capacity(policy.remembered)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(policy.window.to_std().unwrap_or_default())
            .build();
        Self(Arc::new(Inner {
            store,
            policy,
            clock,
            recent,
            waiting: Mutex::new(Vec::new()),
            arrived: Notify::new(),
            full: Notify::new(),
            counts,
            writing: tokio::sync::Mutex::new(()),
        }))
    }

    /// Records a view at the current time, unless it is a repeat. Never waits.
    pub fn record(&self, user_id: String, spot: SpotId) {
        let mut view = View { user_id, spot, at: self.0.clock.now(), trace: BTreeMap::new() };
        if !self.begin_window(&view) {
            self.0.counts.repeated.increase();
            return;
        }
        view.trace = trace::current();
        let count = {
            let mut waiting = self.waiting();
            if waiting.len() >= MAX_WAITING {
                drop(waiting);
                self.drop_views(&[view], "too many wait");
                return;
            }
            waiting.push(view);
            waiting.len()
        };
        if count == 1 {
            self.0.arrived.notify_one();
        }
        if count >= FLUSH_AT {
            self.0.full.notify_one();
        }
    }

    /// Begins the window of a view. False when the view is within one. By the clock that dates events,
    /// as the trend counts: the cache's own expiry only frees memory.
    fn begin_window(&self, view: &View) -> bool {
        let key = view.key();
        let before = self.0.recent.get(&key);
        if before.is_some_and(|before| (view.at - before).abs() < self.0.policy.window) {
            return false;
        }
        self.0.recent.insert(key, view.at);
        true
    }

    /// Counts views that will not become events, and ends their windows: a later view counts.
    fn drop_views(&self, views: &[View], reason: &'static str) {
        for view in views {
            self.0.recent.invalidate(&view.key());
        }
        let count = views.len() as u64;
        let before = self.0.counts.dropped.value();
        self.0.counts.dropped.add(count);
        // Logged once per thousand: the cause is in the log already.
        if before == 0 || before / 1_000 != (before + count) / 1_000 {
            tracing::warn!(dropped = before + count, reason, "views dropped");
        }
    }

    /// Views that wait to be written.
    pub fn waiting_now(&self) -> usize {
        self.waiting().len()
    }

    /// Writes groups until the shutdown begins, then the remaining views. Requests in flight may
    /// still add views: call [`Views::flush`] again after the last response.
    pub async fn run(self, shutdown: Shutdown) {
        while !shutdown.is_begun() {
            tokio::select! {
                () = self.0.arrived.notified() => {}
                () = shutdown.begun() => break,
            }
            tokio::select! {
                () = tokio::time::sleep(FLUSH_AFTER) => {}
                () = self.0.full.notified() => {}
                () = shutdown.begun() => break,
            }
            while let Err(error) = self.flush().await {
                tracing::error!(error = error.describe(), "views not written; trying again");
                tokio::select! {
                    () = tokio::time::sleep(RETRY_AFTER) => {}
                    () = shutdown.begun() => break,
                }
            }
        }
        if let Err(error) = self.flush().await {
            tracing::error!(error = error.describe(), lost = self.waiting().len(), "views lost");
        }
    }

    /// Writes the waiting views, in groups of [`FLUSH_AT`]. Drops them all when too many events wait.
    ///
    /// # Errors
    /// When the store fails; the unwritten views keep waiting.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.0.writing.lock().await;
        loop {
            let group: Vec<View> = {
                let waiting = self.waiting();
                waiting[..waiting.len().min(FLUSH_AT)].to_vec()
            };
            if group.is_empty() {
                return Ok(());
            }
            // Only this function removes views, and only one call of it runs at a time.
            match self.0.store.record(&group, &self.0.policy).await? {
                RecordedViews::Committed => drop(self.waiting().drain(..group.len())),
                RecordedViews::Shed => {
                    let shed = std::mem::take(&mut *self.waiting());
                    self.drop_views(&shed, "too many events wait for the bus");
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<View>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tourin_chassis::clock::{ManualClock, SystemClock};

    use super::*;

    #[derive(Default)]
    struct Groups {
        taken: Mutex<Vec<Vec<View>>>,
        broken: AtomicBool,
        backed_up: AtomicBool,
    }

    impl Groups {
        fn sizes(&self) -> Vec<usize> {
            self.taken.lock().unwrap().iter().map(Vec::len).collect()
        }
    }

    #[async_trait]
    impl ViewStore for Groups {
        async fn record(
            &self,
            views: &[View],
            _: &ViewPolicy,
        ) -> Result<RecordedViews, StoreError> {
            if self.backed_up.load(Ordering::Relaxed) {
                return Ok(RecordedViews::Shed);
            }
            if self.broken.load(Ordering::Relaxed) {
                return Err(StoreError::Failed(anyhow::anyhow!("the disk is full")));
            }
            self.taken.lock().unwrap().push(views.to_vec());
            Ok(RecordedViews::Committed)
        }
    }

    fn views() -> (Views, Arc<Groups>) {
        views_by(Arc::new(SystemClock))
    }

    fn views_by(clock: SharedClock) -> (Views, Arc<Groups>) {
        let groups = Arc::new(Groups::default());
        (Views::new(groups.clone(), ViewPolicy::default(), clock, ViewCounts::default()), groups)
    }

    #[tokio::test]
    async fn one_visitor_who_reads_ten_thousand_times_makes_one_event_an_hour() {
        let clock = Arc::new(ManualClock::new(DateTime::UNIX_EPOCH));
        let (views, groups) = views_by(clock.clone());
        let read = || (0..10_000).for_each(|_| views.record("anon:abc".into(), SpotId::new(1)));
        read();
        views.record("anon:abc".into(), SpotId::new(2));
        views.record("member123".into(), SpotId::new(1));
        views.flush().await.unwrap();
        read();
        views.flush().await.unwrap();
        assert_eq!(groups.sizes(), [3]);
        assert_eq!(views.0.counts.repeated.value(), 2 * 10_000 - 1);
        clock.advance(TimeDelta::hours(1));
        read();
        views.flush().await.unwrap();
        assert_eq!(groups.sizes(), [3, 1]);
    }

    #[tokio::test]
    async fn views_are_dropped_while_too_many_events_wait_and_count_afterwards() {
        let (views, groups) = views();
        groups.backed_up.store(true, Ordering::Relaxed);
        for spot in 0..FLUSH_AT as i64 + 7 {
            views.record("member123".into(), SpotId::new(spot));
        }
        views.flush().await.unwrap();
        assert_eq!((views.0.counts.dropped.value(), views.waiting_now()), (FLUSH_AT as u64 + 7, 0));
        groups.backed_up.store(false, Ordering::Relaxed);
        views.record("member123".into(), SpotId::new(0));
        views.flush().await.unwrap();
        assert_eq!(groups.sizes(), [1], "a dropped view has begun no window");
    }

    #[tokio::test(start_paused = true)]
    async fn views_of_a_moment_are_one_group() {
        let (views, groups) = views();
        let shutdown = Shutdown::new();
        let running = tokio::spawn(views.clone().run(shutdown.clone()));
        for spot in 0..3 {
            views.record("member123".into(), SpotId::new(spot));
        }
        tokio::time::sleep(FLUSH_AFTER + Duration::from_millis(1)).await;
        assert_eq!(groups.sizes(), [3]);
        views.record("anon:abc".into(), SpotId::new(9));
        shutdown.begin();
        running.await.unwrap();
        assert_eq!(groups.sizes(), [3, 1], "what waits is written at the stop");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_group_does_not_wait() {
        let (views, groups) = views();
        let running = tokio::spawn(views.clone().run(Shutdown::new()));
        for spot in 0..FLUSH_AT as i64 + 1 {
            views.record("member123".into(), SpotId::new(spot));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(groups.sizes(), [FLUSH_AT, 1]);
        running.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_store_delays_views_in_bounded_number() {
        let (views, groups) = views();
        groups.broken.store(true, Ordering::Relaxed);
        let running = tokio::spawn(views.clone().run(Shutdown::new()));
        for spot in 0..MAX_WAITING as i64 + 7 {
            views.record("member123".into(), SpotId::new(spot));
        }
        tokio::time::sleep(RETRY_AFTER).await;
        assert_eq!(views.0.counts.dropped.value(), 7);
        groups.broken.store(false, Ordering::Relaxed);
        tokio::time::sleep(RETRY_AFTER * 2).await;
        assert_eq!(groups.sizes().iter().sum::<usize>(), MAX_WAITING);
        let taken = groups.taken.lock().unwrap().concat();
        assert!(taken.windows(2).all(|pair| pair[0].spot < pair[1].spot), "in order");
        running.abort();
    }
}
