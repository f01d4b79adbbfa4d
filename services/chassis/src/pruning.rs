//! Permanent deletion by age, with a checked clock.
//!
//! A clock that is weeks ahead, if only for a minute, makes every record look old, and a deletion
//! cannot be undone. So every pruning pass asks a [`PruneGuard`] for the time. The guard compares
//! the service's clock with
//!
//! - the clock of the store's server, if it has one: they may differ by [`MAX_SKEW`].
//! - the time of the previous pass, which the store keeps: a clock that is more than [`MAX_STEP`]
//!   later is trusted after [`CONFIRMING_PASSES`] passes in a row that find it advancing. For the
//!   first pass ever, a server that agrees is enough; without a server it is treated as a jump.
//!
//! After an outage of the service the clock is also much later than at the previous pass. Only
//! waiting distinguishes the two cases, and pruning can wait. A refused pass deletes nothing, is
//! logged and is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};

use crate::clock::SharedClock;
use crate::metrics::Metrics;

/// How far the clocks of a service and of its store's server may differ: 2 minutes.
pub const MAX_SKEW: TimeDelta = TimeDelta::minutes(2);
/// How much later than the previous pass a pass may be without confirmation: 10 minutes. Passes are
/// a minute apart, and a restart fits in between.
pub const MAX_STEP: TimeDelta = TimeDelta::minutes(10);
/// Passes in a row that must find a doubtful clock advancing: 10, about 10 minutes.
pub const CONFIRMING_PASSES: u32 = 10;

/// The times that a store knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreTimes {
    /// The time by its server's clock; `None` for a store without a server.
    pub server: Option<DateTime<Utc>>,
    /// The time of the last pass, by the clock of that pass; `None` before the first.
    pub last_pass: Option<DateTime<Utc>>,
}

/// A store that keeps the time of its last pruning pass.
#[async_trait]
pub trait PassLog: Send + Sync {
    /// The server's time and the last pass over `what`.
    async fn times(&self, what: &str) -> anyhow::Result<StoreTimes>;

    /// Stores a pass over `what`.
    async fn passed(&self, what: &str, at: DateTime<Utc>) -> anyhow::Result<()>;
}

/// For state in memory, which ends with the process.
#[async_trait]
impl PassLog for Mutex<StoreTimes> {
    async fn times(&self, _: &str) -> anyhow::Result<StoreTimes> {
        Ok(*self.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn passed(&self, _: &str, at: DateTime<Utc>) -> anyhow::Result<()> {
        self.lock().unwrap_or_else(PoisonError::into_inner).last_pass = Some(at);
        Ok(())
    }
}

/// Why a pass is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    /// The clock of the store's server differs.
    #[error("the clock is {0} s ahead of the store's server")]
    Disagrees(i64),
    /// The clock is much later than at the previous pass.
    #[error("the clock is {0} s later than at the previous pass")]
    Jumped(i64),
    /// There is no previous pass.
    #[error("there is no previous pass to compare the clock with")]
    First,
}

impl Refusal {
    const REASONS: [&str; 2] = ["server_clock", "jump"];

    fn index(self) -> usize {
        usize::from(!matches!(self, Self::Disagrees(_)))
    }
}

/// The last time of a doubtful clock, and the passes that saw it advance.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    at: DateTime<Utc>,
    passes: u32,
}

#[derive(Debug, Default)]
struct State {
    doubtful: Option<Sighting>,
    /// The last accepted pass.
    passed: Option<DateTime<Utc>>,
    /// The kind of the last refusal, until a pass is accepted.
    refused: Option<usize>,
}

/// Decides whether a pass may delete, and by which time.
pub struct PruneGuard {
    what: &'static str,
    log: Arc<dyn PassLog>,
    clock: SharedClock,
    state: Mutex<State>,
    refusals: [AtomicU64; Refusal::REASONS.len()],
}

impl std::fmt::Debug for PruneGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PruneGuard").field("what", &self.what).finish_non_exhaustive()
    }
}

impl PruneGuard {
    /// A guard of the passes over `what`, a name for the log, the metric and the store. `log` keeps
    /// the time of the passes.
    pub fn new(what: &'static str, log: Arc<dyn PassLog>, clock: SharedClock) -> Arc<Self> {
        Arc::new(Self { what, log, clock, state: Mutex::default(), refusals: Default::default() })
    }

    /// A guard of state in memory.
    pub fn in_memory(what: &'static str, clock: SharedClock) -> Arc<Self> {
        Self::new(what, Arc::new(Mutex::new(StoreTimes::default())), clock)
    }

    /// The time by which a pass may delete, or `None` when it must delete nothing. Each pass calls
    /// this once, about once a minute.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn pass(&self) -> anyhow::Result<Option<DateTime<Utc>>> {
        let times = self.log.times(self.what).await?;
        let now = self.clock.now();
        let judged = self.judge(now, times);
        match judged {
            Ok(()) => {
                self.log.passed(self.what, now).await?;
                let mut state = self.state();
                state.passed = Some(now);
                if state.refused.take().is_some() {
                    tracing::info!(of = self.what, "what is old is deleted again");
                }
                Ok(Some(now))
            }
            Err(refusal) => {
                self.refuse(refusal);
                Ok(None)
            }
        }
    }

    /// Whether a recent pass has confirmed a clock that shows `now`.
    pub fn confirms(&self, now: DateTime<Utc>) -> bool {
        self.state().passed.is_some_and(|passed| now.signed_duration_since(passed) <= MAX_STEP)
    }

    /// The number of refused passes.
    pub fn refused(&self) -> u64 {
        self.refusals.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Registers the number of refused passes of these guards as a metric.
    pub fn measure(guards: Vec<Arc<Self>>, metrics: &Metrics) {
        let help = "Passes that deleted nothing because the clock was not trusted";
        metrics.counters_read("tourin_pruning_refused", help, move || {
            let readings = guards.iter().flat_map(|guard| {
                Refusal::REASONS.iter().zip(&guard.refusals).map(|(reason, count)| {
                    let labels =
                        vec![("of", guard.what.to_owned()), ("reason", (*reason).to_owned())];
                    (labels, count.load(Ordering::Relaxed) as f64)
                })
            });
            readings.collect()
        });
    }

    fn judge(&self, now: DateTime<Utc>, times: StoreTimes) -> Result<(), Refusal> {
        let mut state = self.state();
        if let Some(server) = times.server {
            let ahead = now.signed_duration_since(server);
            if ahead.abs() > MAX_SKEW {
                state.doubtful = None;
                return Err(Refusal::Disagrees(ahead.num_seconds()));
            }
        }
        // A clock that went back makes nothing look old.
        let step = times.last_pass.map(|last| now.signed_duration_since(last));
        // Before the first pass only the server's clock can confirm ours.
        if step.map_or(times.server.is_some(), |step| step <= MAX_STEP) {
            state.doubtful = None;
            return Ok(());
        }
        let goes_on = |seen: &Sighting| {
            let step = now.signed_duration_since(seen.at);
            step >= TimeDelta::zero() && step <= MAX_STEP
        };
        let passes = state.doubtful.filter(goes_on).map_or(1, |seen| seen.passes + 1);
        if passes > CONFIRMING_PASSES {
            state.doubtful = None;
            return Ok(());
        }
        state.doubtful = Some(Sighting { at: now, passes });
        Err(step.map_or(Refusal::First, |step| Refusal::Jumped(step.num_seconds())))
    }

    /// Logs each kind once until a pass is accepted. The first pass over a new store is no reason to
    /// warn: the store has no old records.
    fn refuse(&self, refusal: Refusal) {
        let kind = refusal.index();
        self.refusals[kind].fetch_add(1, Ordering::Relaxed);
        if self.state().refused.replace(kind) == Some(kind) {
            return;
        }
        if refusal == Refusal::First {
            tracing::debug!(of = self.what, reason = %refusal, "nothing is deleted by its age for some minutes");
        } else {
            tracing::warn!(of = self.what, reason = %refusal, "nothing is deleted by its age until the clock is confirmed");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock as _, ManualClock};

    struct World {
        clock: Arc<ManualClock>,
        store: Arc<Mutex<StoreTimes>>,
        guard: Arc<PruneGuard>,
    }

    fn start() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    impl World {
        /// A store with a pass just now.
        fn new() -> Self {
            let clock = Arc::new(ManualClock::new(start()));
            let times = StoreTimes { server: None, last_pass: Some(start()) };
            let store = Arc::new(Mutex::new(times));
            let guard = PruneGuard::new("things", store.clone(), clock.clone());
            Self { clock, store, guard }
        }

        fn restarted(&mut self) {
            self.guard = PruneGuard::new("things", self.store.clone(), self.clock.clone());
        }

        async fn pass_after(&self, time: TimeDelta) -> bool {
            self.clock.advance(time);
            self.guard.pass().await.unwrap().is_some()
        }

        fn refusals(&self) -> [u64; 2] {
            [0, 1].map(|reason| self.guard.refusals[reason].load(Ordering::Relaxed))
        }
    }

    #[tokio::test]
    async fn minute_by_minute_and_over_a_restart_every_pass_is_made() {
        let mut world = World::new();
        for _ in 0..3 {
            assert!(world.pass_after(TimeDelta::minutes(1)).await);
        }
        world.restarted();
        assert!(world.pass_after(MAX_STEP).await);
        assert_eq!(world.refusals(), [0, 0]);
    }

    #[tokio::test]
    async fn a_clock_that_is_weeks_ahead_for_some_minutes_deletes_nothing() {
        let mut world = World::new();
        assert!(!world.pass_after(TimeDelta::days(40)).await);
        // A restart changes nothing: the store keeps the last pass.
        world.restarted();
        for _ in 0..3 {
            assert!(!world.pass_after(TimeDelta::minutes(1)).await);
        }
        assert!(!world.guard.confirms(world.clock.now()));
        // The clock is right again, and pruning resumes at once.
        assert!(world.pass_after(-TimeDelta::days(40)).await);
        assert!(world.pass_after(TimeDelta::minutes(1)).await);
        assert!(world.guard.confirms(world.clock.now()));
        assert_eq!(world.refusals(), [0, 3]);
    }

    #[tokio::test]
    async fn after_an_outage_the_clock_is_trusted_once_it_has_advanced_for_some_passes() {
        let world = World::new();
        assert!(!world.pass_after(TimeDelta::days(7)).await);
        for _ in 1..CONFIRMING_PASSES {
            assert!(!world.pass_after(TimeDelta::minutes(1)).await);
        }
        assert!(world.pass_after(TimeDelta::minutes(1)).await);
        assert!(world.pass_after(TimeDelta::minutes(1)).await);
    }

    #[tokio::test]
    async fn a_clock_that_keeps_jumping_is_never_trusted() {
        let world = World::new();
        for _ in 0..3 * CONFIRMING_PASSES {
            assert!(!world.pass_after(TimeDelta::days(1)).await);
        }
    }

    #[tokio::test]
    async fn a_server_with_another_time_makes_the_clock_doubtful() {
        let world = World::new();
        let server = |ahead: TimeDelta| {
            world.store.lock().unwrap().server = Some(world.clock.now() + ahead);
        };
        server(MAX_SKEW);
        assert!(world.pass_after(TimeDelta::zero()).await);
        for ahead in [TimeDelta::minutes(3), -TimeDelta::minutes(3)] {
            server(ahead);
            for _ in 0..2 * CONFIRMING_PASSES {
                assert!(!world.pass_after(TimeDelta::zero()).await);
            }
        }
        server(TimeDelta::zero());
        assert!(world.pass_after(TimeDelta::zero()).await);
        assert_eq!(world.refusals(), [40, 0]);
    }

    #[tokio::test]
    async fn the_first_pass_without_a_server_is_treated_as_a_jump() {
        let world = World::new();
        *world.store.lock().unwrap() = StoreTimes::default();
        for _ in 0..CONFIRMING_PASSES {
            assert!(!world.pass_after(TimeDelta::minutes(1)).await);
        }
        assert!(world.pass_after(TimeDelta::minutes(1)).await);
    }

    #[tokio::test]
    async fn the_first_pass_is_accepted_if_the_server_has_the_same_time() {
        let world = World::new();
        let server = |ahead: TimeDelta| {
            let server = Some(world.clock.now() + ahead);
            *world.store.lock().unwrap() = StoreTimes { server, last_pass: None };
        };
        server(TimeDelta::days(40));
        assert!(!world.pass_after(TimeDelta::zero()).await);
        server(MAX_SKEW);
        assert!(world.pass_after(TimeDelta::zero()).await);
        assert!(world.guard.confirms(world.clock.now()));
    }
}
