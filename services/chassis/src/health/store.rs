//! The health of a store, from two sources:
//!
//! - [`Outcomes`]: the results of requests to the store.
//! - [`StoreWatch`]: a probe. Every interval it makes one small write like a request's, because a
//!   store that answers may refuse writes: disk full, out of memory, a read-only replica. The probe
//!   runs under load as well, because a successful request may have written nothing.
//!
//! One failure is not an outage, and one success is not a recovery: the state changes only after
//! two probes in a row.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::Dependency;

/// How long one probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Probes in a row that must contradict the known state before it changes.
const CONFIRMING_PROBES: u32 = 2;
/// Failed requests in a row after which the store counts as failing although the probe succeeds.
const FAILED_REQUESTS: u32 = 3;
/// How long those failures count after the last one. An instance that gets no requests any more
/// (its load balancer has removed it) can recover only by the probe.
const FAILURES_VALID_FOR: Duration = Duration::from_secs(10);
/// The shortest wait before the next probe, however many requests fail.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// The kind of a request to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It reads.
    Read,
    /// It writes, or may write.
    Write,
}

/// Counts the outcomes of requests to a store. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Outcomes(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    reads: AccessCounter,
    writes: AccessCounter,
    failed: Notify,
}

#[derive(Debug, Default)]
struct AccessCounter {
    succeeded: AtomicU64,
    failed_in_a_row: AtomicU32,
    last_failure: Mutex<Option<(Instant, String)>>,
}

impl AccessCounter {
    fn last_failure(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reason of the last failure, if requests have kept failing and the last one failed after
    /// `since`.
    fn failing(&self, since: Instant) -> Option<String> {
        if self.failed_in_a_row.load(Ordering::Relaxed) < FAILED_REQUESTS {
            return None;
        }
        let last = self.last_failure();
        let (at, why) = last.as_ref()?;
        (*at >= since && at.elapsed() < FAILURES_VALID_FOR).then(|| why.clone())
    }
}

impl Outcomes {
    fn counter(&self, access: Access) -> &AccessCounter {
        match access {
            Access::Read => &self.0.reads,
            Access::Write => &self.0.writes,
        }
    }

    /// A request succeeded.
    pub fn succeeded(&self, access: Access) {
        let counter = self.counter(access);
        counter.succeeded.fetch_add(1, Ordering::Relaxed);
        counter.failed_in_a_row.store(0, Ordering::Relaxed);
    }

    /// A request failed because of the store. `why` is for operators and contains no data of the
    /// request.
    pub fn failed(&self, access: Access, why: &str) {
        let counter = self.counter(access);
        *counter.last_failure() = Some((Instant::now(), why.to_owned()));
        counter.failed_in_a_row.fetch_add(1, Ordering::Relaxed);
        self.0.failed.notify_one();
    }

    fn written(&self) -> u64 {
        self.0.writes.succeeded.load(Ordering::Relaxed)
    }

    fn failing(&self, since: Instant) -> Option<String> {
        self.0.writes.failing(since).or_else(|| self.0.reads.failing(since))
    }
}

/// What is wrong with a store, with a reason for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It answers, but refuses the work.
    Refuses(String),
    /// It does not answer.
    Away(String),
}

/// The known state of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreState {
    /// The probe succeeds, and requests do not keep failing.
    Works,
    /// The probe fails, or requests keep failing.
    Troubled(Trouble),
}

impl StoreState {
    fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// Reports the state to readiness, as `NAME: REASON`.
    pub fn report(&self, name: &str, dependency: &Dependency) {
        match self {
            Self::Works => dependency.set_ready(),
            Self::Troubled(Trouble::Refuses(reason) | Trouble::Away(reason)) => {
                dependency.set_unready(format!("{name}: {reason}"));
            }
        }
    }
}

type ProbeRun = BoxFuture<'static, Result<(), Trouble>>;

/// Probes a store every interval, and soon after a failed request.
pub struct StoreWatch {
    probe: Box<dyn Fn() -> ProbeRun + Send + Sync>,
    outcomes: Outcomes,
    interval: Duration,
    /// A probe that exceeded its timeout. The next run waits for it, so that only one is in flight.
    unfinished: Option<ProbeRun>,
    state: StoreState,
    /// Probes in a row that contradict `state`.
    contradicted: u32,
    /// When the probe failed last. It explains the requests that failed before.
    probe_failed_at: Instant,
}

impl StoreWatch {
    /// Watches a store that is assumed to work. `probe` makes the small write. It should end by
    /// itself within seconds, even if the store hangs.
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
            unfinished: None,
            state: StoreState::Works,
            contradicted: 0,
            probe_failed_at: Instant::now(),
        }
    }

    /// Probes once and takes the result as the state, without a second probe to confirm it.
    pub async fn begin(&mut self) -> StoreState {
        self.state = self.run_probe().await;
        self.state.clone()
    }

    /// Waits for another state, or another reason of the same state.
    pub async fn changed(&mut self) -> StoreState {
        loop {
            self.pause().await;
            let seen = self.run_probe().await;
            if seen.is_like(&self.state) {
                self.contradicted = 0;
                if seen != self.state {
                    self.state = seen;
                    return self.state.clone();
                }
                continue;
            }
            self.contradicted += 1;
            if self.contradicted >= CONFIRMING_PROBES {
                self.contradicted = 0;
                self.state = seen;
                return self.state.clone();
            }
        }
    }

    /// Reports each change to readiness and to the log. `name` is the store's name with its
    /// address, without credentials.
    pub async fn report_to(mut self, name: &str, dependency: &Dependency) {
        let mut was_well = true;
        loop {
            let state = self.changed().await;
            state.report(name, dependency);
            match &state {
                StoreState::Works => tracing::info!(store = name, "the store works again"),
                StoreState::Troubled(Trouble::Refuses(why) | Trouble::Away(why)) if was_well => {
                    tracing::warn!(store = name, why, "the store does not work");
                }
                StoreState::Troubled(_) => {}
            }
            was_well = state == StoreState::Works;
        }
    }

    // `&mut self` because the unfinished probe is not `Sync`.
    async fn pause(&mut self) {
        let interval = match self.contradicted {
            0 => self.interval,
            // A contradiction is confirmed sooner.
            _ => self.interval / 4,
        };
        tokio::select! {
            () = sleep(interval) => {}
            () = self.outcomes.0.failed.notified(), if self.state == StoreState::Works => {
                sleep(interval.min(SHORTEST_WAIT)).await;
            }
        }
    }

    async fn run_probe(&mut self) -> StoreState {
        let written = self.outcomes.written();
        let mut run = self.unfinished.take().unwrap_or_else(|| (self.probe)());
        let trouble = match timeout(PROBE_TIMEOUT, &mut run).await {
            Ok(Ok(())) => match self.outcomes.failing(self.probe_failed_at) {
                Some(why) => Trouble::Refuses(why),
                None => return StoreState::Works,
            },
            Ok(Err(trouble)) => {
                self.probe_failed_at = Instant::now();
                trouble
            }
            Err(_) => {
                self.unfinished = Some(run);
                // The probe may only be queued behind other writes.
                if self.outcomes.written() > written {
                    return StoreState::Works;
                }
                self.probe_failed_at = Instant::now();
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

    /// What the probe returns. With `None` it hangs.
    type ProbeResult = Arc<Mutex<Option<Result<(), Trouble>>>>;

    fn watch(outcomes: &Outcomes) -> (ProbeResult, StoreWatch) {
        let result: ProbeResult = Arc::new(Mutex::new(Some(Ok(()))));
        let shared = Arc::clone(&result);
        let probe = move || {
            let shared = shared.lock().unwrap().clone();
            async move {
                match shared {
                    Some(result) => result,
                    None => std::future::pending().await,
                }
            }
        };
        (result, StoreWatch::new(outcomes.clone(), INTERVAL, probe))
    }

    fn refuses() -> Trouble {
        Trouble::Refuses("out of memory".to_owned())
    }

    async fn assert_unchanged(watch: &mut StoreWatch, within: Duration) {
        let new = timeout(within, watch.changed()).await;
        assert!(new.is_err(), "{new:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_refuses_is_reported_with_its_reason_and_recovers_by_itself() {
        let (result, mut watch) = watch(&Outcomes::default());
        let (health, began) = (Health::new(), Instant::now());
        let dependency = health.register("store");
        assert_unchanged(&mut watch, 10 * INTERVAL).await;
        *result.lock().unwrap() = Some(Err(refuses()));
        watch.changed().await.report("redis at there:1", &dependency);
        assert_eq!(health.unready()["store"], "redis at there:1: out of memory");
        *result.lock().unwrap() = Some(Ok(()));
        watch.changed().await.report("redis at there:1", &dependency);
        assert!(health.unready().is_empty());
        assert!(began.elapsed() < 14 * INTERVAL, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_is_not_an_outage_and_one_success_not_a_recovery() {
        let probes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&probes);
        let every_other = move || {
            let fails = counted.fetch_add(1, Ordering::Relaxed) % 2 == 1;
            async move { if fails { Err(refuses()) } else { Ok(()) } }
        };
        let mut watch = StoreWatch::new(Outcomes::default(), INTERVAL, every_other);
        assert_unchanged(&mut watch, 20 * INTERVAL).await;
        watch.state = StoreState::Troubled(refuses());
        assert_unchanged(&mut watch, 20 * INTERVAL).await;
        assert!(probes.load(Ordering::Relaxed) > 20);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_keep_failing_count_although_the_probe_succeeds() {
        let outcomes = Outcomes::default();
        let (_result, mut watch) = watch(&outcomes);
        for _ in 0..FAILED_REQUESTS {
            outcomes.failed(Access::Write, "disk full");
            outcomes.succeeded(Access::Read);
        }
        let began = Instant::now();
        let trouble = Trouble::Refuses("disk full".to_owned());
        assert_eq!(watch.changed().await, StoreState::Troubled(trouble));
        assert!(began.elapsed() < INTERVAL, "a failure is probed soon: {:?}", began.elapsed());
        assert_eq!(watch.changed().await, StoreState::Works, "after a while without requests");
        assert!(began.elapsed() >= FAILURES_VALID_FOR);

        outcomes.failed(Access::Write, "disk full");
        outcomes.succeeded(Access::Write);
        assert_unchanged(&mut watch, 10 * INTERVAL).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_away_unless_requests_write_meanwhile() {
        let outcomes = Outcomes::default();
        let (result, mut watch) = watch(&outcomes);
        *result.lock().unwrap() = None;
        let writing = async {
            loop {
                outcomes.succeeded(Access::Write);
                sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = assert_unchanged(&mut watch, 10 * INTERVAL) => {}
            () = writing => {}
        }
        let away = Trouble::Away("it takes too long to answer".to_owned());
        assert_eq!(watch.changed().await, StoreState::Troubled(away));
    }
}
