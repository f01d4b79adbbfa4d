//! Whether a store does its work, by what came of it lately.
//!
//! Two things say so. Whatever is asked of the store tells here how it ended ([`Outcomes`]). And every interval one
//! small write is made as a request would make it ([`StoreWatch`]), since a store that answers may refuse to write: a
//! full disk, a server without memory, a replica that is read-only. The write is made under load as well: a request
//! that went well need not have written anything.
//!
//! One failure is no outage and one success no recovery: two looks in a row must say the same.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::Dependency;

/// How long one look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// Looks in a row that must contradict what is known before that changes.
const LOOKS: u32 = 2;
/// Requests in a row that must have failed to count although the small write went well.
const FAILED_REQUESTS: u32 = 3;
/// How long they count after the last of them. Where nobody asks any more (an instance out of its load balancer), nothing
/// else would speak against the store, and nothing for it but the small write.
const FAILURES_COUNT_FOR: Duration = Duration::from_secs(10);
/// The shortest wait before the next look, however many requests fail.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// What a request did with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It read.
    Read,
    /// It wrote, or may have.
    Write,
}

/// How requests to a store ended, as they tell. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Outcomes(Arc<Tellings>);

#[derive(Debug, Default)]
struct Tellings {
    reads: Tally,
    writes: Tally,
    failed: Notify,
}

/// Of one kind of access.
#[derive(Debug, Default)]
struct Tally {
    succeeded: AtomicU64,
    failed_in_a_row: AtomicU32,
    last_failure: Mutex<Option<(Instant, String)>>,
}

impl Tally {
    fn last_failure(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why requests keep failing, if some did since then and none went well after them.
    fn failing(&self, since: Instant) -> Option<String> {
        if self.failed_in_a_row.load(Ordering::Relaxed) < FAILED_REQUESTS {
            return None;
        }
        let last = self.last_failure();
        let (at, why) = last.as_ref()?;
        (*at >= since && at.elapsed() < FAILURES_COUNT_FOR).then(|| why.clone())
    }
}

impl Outcomes {
    fn tally(&self, access: Access) -> &Tally {
        match access {
            Access::Read => &self.0.reads,
            Access::Write => &self.0.writes,
        }
    }

    /// A request was answered.
    pub fn succeeded(&self, access: Access) {
        let tally = self.tally(access);
        tally.succeeded.fetch_add(1, Ordering::Relaxed);
        tally.failed_in_a_row.store(0, Ordering::Relaxed);
    }

    /// The store failed a request that another time would have done well. `why` is for an operator, in words without
    /// anything of the request.
    pub fn failed(&self, access: Access, why: &str) {
        let tally = self.tally(access);
        *tally.last_failure() = Some((Instant::now(), why.to_owned()));
        tally.failed_in_a_row.fetch_add(1, Ordering::Relaxed);
        self.0.failed.notify_one();
    }

    fn written(&self) -> u64 {
        self.0.writes.succeeded.load(Ordering::Relaxed)
    }

    fn failing(&self, since: Instant) -> Option<String> {
        self.0.writes.failing(since).or_else(|| self.0.reads.failing(since))
    }
}

/// What is wrong with a store, in words for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It answers, and refuses the work.
    Refuses(String),
    /// It does not answer.
    Away(String),
}

/// What is known of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreState {
    /// It takes writes, and requests do not keep failing.
    Works,
    /// It does not.
    Troubled(Trouble),
}

impl StoreState {
    fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// Has readiness say it, as `NAME: WORDS`.
    pub fn report(&self, name: &str, dependency: &Dependency) {
        match self {
            Self::Works => dependency.set_ready(),
            Self::Troubled(Trouble::Refuses(words) | Trouble::Away(words)) => {
                dependency.set_unready(format!("{name}: {words}"));
            }
        }
    }
}

type Look = BoxFuture<'static, Result<(), Trouble>>;

/// Looks at a store every interval, and at once when a request has failed.
pub struct StoreWatch {
    probe: Box<dyn Fn() -> Look + Send + Sync>,
    outcomes: Outcomes,
    interval: Duration,
    /// A look that takes longer than it may. It is waited for all the same: there is never a second one at work.
    hanging: Option<Look>,
    state: StoreState,
    /// Looks in a row that contradict it.
    contradicted: u32,
    /// When the small write failed last. Requests that failed before that have been explained by it.
    was_bad_at: Instant,
}

impl StoreWatch {
    /// Of a store that works, as far as is known. `probe` makes the small write; it should end by itself within
    /// seconds, whatever the store does.
    pub fn new<F>(
        outcomes: Outcomes,
        interval: Duration,
        probe: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), Trouble>> + Send + 'static,
    {
        Self {
            probe: Box::new(move || probe().boxed()),
            outcomes,
            interval,
            hanging: None,
            state: StoreState::Works,
            contradicted: 0,
            was_bad_at: Instant::now(),
        }
    }

    /// Looks for the first time, and takes what it sees for true: for a store of which nothing is known.
    pub async fn begin(&mut self) -> StoreState {
        self.state = self.look().await;
        self.state.clone()
    }

    /// Waits until there is something new to say of the store: another state, or another reason for the same.
    pub async fn changed(&mut self) -> StoreState {
        loop {
            self.pause().await;
            let seen = self.look().await;
            if seen.is_like(&self.state) {
                self.contradicted = 0;
                if seen != self.state {
                    self.state = seen;
                    return self.state.clone();
                }
                continue;
            }
            self.contradicted += 1;
            if self.contradicted >= LOOKS {
                self.contradicted = 0;
                self.state = seen;
                return self.state.clone();
            }
        }
    }

    /// [`changed`](Self::changed) again and again: has readiness and the log say it. `name` is the store's, with where
    /// it is and without credentials.
    pub async fn report_to(mut self, name: &str, dependency: &Dependency) {
        let mut was_well = true;
        loop {
            let state = self.changed().await;
            state.report(name, dependency);
            match &state {
                StoreState::Works => tracing::info!(store = name, "it does its work again"),
                StoreState::Troubled(Trouble::Refuses(why) | Trouble::Away(why)) if was_well => {
                    tracing::warn!(store = name, why, "the store does not do its work");
                }
                StoreState::Troubled(_) => {}
            }
            was_well = state == StoreState::Works;
        }
    }

    // Exclusive, though it changes nothing: a look at work cannot be shared between threads.
    async fn pause(&mut self) {
        let interval = match self.contradicted {
            0 => self.interval,
            // Soon again, to know.
            _ => self.interval / 4,
        };
        tokio::select! {
            () = sleep(interval) => {}
            () = self.outcomes.0.failed.notified(), if self.state == StoreState::Works => {
                sleep(interval.min(SHORTEST_WAIT)).await;
            }
        }
    }

    async fn look(&mut self) -> StoreState {
        let written = self.outcomes.written();
        let mut look = self.hanging.take().unwrap_or_else(|| (self.probe)());
        let trouble = match timeout(LOOK_LIMIT, &mut look).await {
            Ok(Ok(())) => match self.outcomes.failing(self.was_bad_at) {
                Some(why) => Trouble::Refuses(why),
                None => return StoreState::Works,
            },
            Ok(Err(trouble)) => {
                self.was_bad_at = Instant::now();
                trouble
            }
            Err(_) => {
                self.hanging = Some(look);
                // It may only have to wait for its turn behind many others.
                if self.outcomes.written() > written {
                    return StoreState::Works;
                }
                self.was_bad_at = Instant::now();
                Trouble::Away("it takes too long to answer".to_owned())
            }
        };
        StoreState::Troubled(trouble)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    /// A store whose small write ends as it is told to; `None` hangs.
    type Told = Arc<Mutex<Option<Result<(), Trouble>>>>;

    fn watch(outcomes: &Outcomes) -> (Told, StoreWatch) {
        let told: Told = Arc::new(Mutex::new(Some(Ok(()))));
        let says = Arc::clone(&told);
        let probe = move || {
            let says = says.lock().unwrap().clone();
            async move {
                match says {
                    Some(result) => result,
                    None => std::future::pending().await,
                }
            }
        };
        (told, StoreWatch::new(outcomes.clone(), INTERVAL, probe))
    }

    fn refuses() -> Trouble {
        Trouble::Refuses("out of memory".to_owned())
    }

    async fn nothing_new(watch: &mut StoreWatch, within: Duration) {
        let new = timeout(within, watch.changed()).await;
        assert!(new.is_err(), "{new:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_refuses_is_reported_in_words_and_is_back_by_itself() {
        let (told, mut watch) = watch(&Outcomes::default());
        let (health, began) = (Health::new(), Instant::now());
        let dependency = health.register("store");
        nothing_new(&mut watch, 10 * INTERVAL).await;
        *told.lock().unwrap() = Some(Err(refuses()));
        watch.changed().await.report("redis at there:1", &dependency);
        assert_eq!(health.unready()["store"], "redis at there:1: out of memory");
        *told.lock().unwrap() = Some(Ok(()));
        watch.changed().await.report("redis at there:1", &dependency);
        assert!(health.unready().is_empty());
        assert!(began.elapsed() < 14 * INTERVAL, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_is_no_outage_and_one_success_no_recovery() {
        let looks = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&looks);
        let every_other = move || {
            let fails = counted.fetch_add(1, Ordering::Relaxed) % 2 == 1;
            async move { if fails { Err(refuses()) } else { Ok(()) } }
        };
        let mut watch = StoreWatch::new(Outcomes::default(), INTERVAL, every_other);
        nothing_new(&mut watch, 20 * INTERVAL).await;
        watch.state = StoreState::Troubled(refuses());
        nothing_new(&mut watch, 20 * INTERVAL).await;
        assert!(looks.load(Ordering::Relaxed) > 20);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_keep_failing_count_although_the_small_write_goes_well() {
        let outcomes = Outcomes::default();
        let (_told, mut watch) = watch(&outcomes);
        for _ in 0..FAILED_REQUESTS {
            outcomes.failed(Access::Write, "disk full");
            outcomes.succeeded(Access::Read);
        }
        let began = Instant::now();
        let trouble = Trouble::Refuses("disk full".to_owned());
        assert_eq!(watch.changed().await, StoreState::Troubled(trouble));
        assert!(began.elapsed() < INTERVAL, "a failure is looked at soon: {:?}", began.elapsed());
        assert_eq!(watch.changed().await, StoreState::Works, "after a while without requests");
        assert!(began.elapsed() >= FAILURES_COUNT_FOR);

        outcomes.failed(Access::Write, "disk full");
        outcomes.succeeded(Access::Write);
        nothing_new(&mut watch, 10 * INTERVAL).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_away_unless_requests_write_meanwhile() {
        let outcomes = Outcomes::default();
        let (told, mut watch) = watch(&outcomes);
        *told.lock().unwrap() = None;
        let writing = async {
            loop {
                outcomes.succeeded(Access::Write);
                sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = nothing_new(&mut watch, 10 * INTERVAL) => {}
            () = writing => {}
        }
        let away = Trouble::Away("it takes too long to answer".to_owned());
        assert_eq!(watch.changed().await, StoreState::Troubled(away));
    }
}
