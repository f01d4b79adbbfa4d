//! Views of spots, grouped so that not every view costs a commit.
//!
//! # Delivery
//! A view waits in memory until [`FLUSH_AFTER`] has passed since the first one of its group, or until
//! [`FLUSH_AT`] views wait. Then the group is committed to the outbox in one transaction and is
//! durable. A crash of the process loses at most the views of the last 200 ms; an orderly stop loses
//! none. While the store refuses writes, at most [`MAX_WAITING`] views wait; more are dropped and
//! counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::metrics::Counter;
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::events::{Outgoing, ViewTourspot, is_pseudonym};
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

    /// Whether the viewer is a member, not an anonymous visitor.
    pub fn is_by_member(&self) -> bool {
        !is_pseudonym(&self.user_id)
    }
}

/// The store of views.
#[async_trait]
pub trait ViewStore: Send + Sync {
    /// Appends the views' events, in their order, in one transaction. Skips views by members whose
    /// account is deleted, so that no event follows an erasure.
    async fn record(&self, views: &[View]) -> Result<(), StoreError>;
}

/// Groups views and writes them.
#[derive(Clone)]
pub struct Views(Arc<Inner>);

struct Inner {
    store: Arc<dyn ViewStore>,
    clock: SharedClock,
    waiting: Mutex<Vec<View>>,
    arrived: Notify,
    full: Notify,
    dropped: Counter,
    /// One group is written at a time, so that the views of one viewer keep their order.
    writing: tokio::sync::Mutex<()>,
}

impl Views {
    /// Views written to `store` by [`Views::run`]. `dropped` counts those that found the queue full.
    pub fn new(store: Arc<dyn ViewStore>, clock: SharedClock, dropped: Counter) -> Self {
        Self(Arc::new(Inner {
            store,
            clock,
            waiting: Mutex::new(Vec::new()),
            arrived: Notify::new(),
            full: Notify::new(),
            dropped,
            writing: tokio::sync::Mutex::new(()),
        }))
    }

    /// Records a view at the current time. Never waits.
    pub fn record(&self, user_id: String, spot: SpotId) {
        let view = View { user_id, spot, at: self.0.clock.now(), trace: trace::current() };
        let count = {
            let mut waiting = self.waiting();
            if waiting.len() >= MAX_WAITING {
                drop(waiting);
                // Logged once per thousand: the store's failure is in the log already.
                let dropped = self.0.dropped.increase();
                if dropped % 1_000 == 1 {
                    tracing::warn!(dropped, "views dropped: too many wait");
                }
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
                tracing::error!(error = describe(&error), "views not written; trying again");
                tokio::select! {
                    () = tokio::time::sleep(RETRY_AFTER) => {}
                    () = shutdown.begun() => break,
                }
            }
        }
        if let Err(error) = self.flush().await {
            tracing::error!(error = describe(&error), lost = self.waiting().len(), "views lost");
        }
    }

    /// Writes the waiting views, in groups of [`FLUSH_AT`].
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
            self.0.store.record(&group).await?;
            // Only this function removes views, and only one call of it runs at a time.
            self.waiting().drain(..group.len());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<View>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error and its causes, in one line.
fn describe(error: &StoreError) -> String {
    match error {
        StoreError::Unavailable(cause) | StoreError::Failed(cause) => format!("{error}: {cause:#}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tourin_chassis::clock::SystemClock;

    use super::*;

    #[derive(Default)]
    struct Groups {
        taken: Mutex<Vec<Vec<View>>>,
        broken: AtomicBool,
    }

    impl Groups {
        fn sizes(&self) -> Vec<usize> {
            self.taken.lock().unwrap().iter().map(Vec::len).collect()
        }
    }

    #[async_trait]
    impl ViewStore for Groups {
        async fn record(&self, views: &[View]) -> Result<(), StoreError> {
            if self.broken.load(Ordering::Relaxed) {
                return Err(StoreError::Failed(anyhow::anyhow!("the disk is full")));
            }
            self.taken.lock().unwrap().push(views.to_vec());
            Ok(())
        }
    }

    fn views() -> (Views, Arc<Groups>) {
        let groups = Arc::new(Groups::default());
        (Views::new(groups.clone(), Arc::new(SystemClock), Counter::default()), groups)
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
        assert_eq!(views.0.dropped.value(), 7);
        groups.broken.store(false, Ordering::Relaxed);
        tokio::time::sleep(RETRY_AFTER * 2).await;
        assert_eq!(groups.sizes().iter().sum::<usize>(), MAX_WAITING);
        let taken = groups.taken.lock().unwrap().concat();
        assert!(taken.windows(2).all(|pair| pair[0].spot < pair[1].spot), "in order");
        running.abort();
    }
}
