//! One rate of failures, counted per key in bounded memory.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};

use super::TooManyAttempts;

/// One count per key (generic cell rate algorithm).
#[derive(Debug)]
pub(super) struct Count<C: Clock<Instant = Nanos>> {
    limiter: RateLimiter<String, Ledger<C>, C, NoOpMiddleware<Nanos>>,
    ledger: Ledger<C>,
    refill: Duration,
}

impl<C: Clock<Instant = Nanos> + Clone> Count<C> {
    pub(super) fn new(burst: NonZeroU32, refill: Duration, keys: usize, clock: C) -> Self {
        let quota = Quota::with_period(refill.max(Duration::from_millis(1)))
            .expect("the period is not zero")
            .allow_burst(burst);
        let start = clock.now();
        let ledger = Ledger { due: Arc::default(), keys: keys.max(1), start, clock: clock.clone() };
        Self { limiter: RateLimiter::new(quota, ledger.clone(), clock), ledger, refill }
    }

    pub(super) fn charge(&self, key: &String) -> Result<(), TooManyAttempts> {
        self.limiter.check_key(key).map_err(|until| TooManyAttempts {
            retry_after: until.wait_time_from(self.limiter.clock().now()),
        })
    }

    pub(super) fn refund(&self, key: &str) {
        let mut due = self.ledger.lock();
        if let Some(at) = due.get_mut(key) {
            *at = at.saturating_sub(self.refill.into());
            if *at <= self.ledger.now() {
                due.remove(key);
            }
        }
    }
}

/// Time since the count was created.
#[derive(Clone, Copy, Debug)]
pub(super) struct Uptime(Instant);

impl Uptime {
    /// Begins now.
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for Uptime {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

/// For each key, the theoretical arrival time up to which its attempts are paid for.
#[derive(Clone, Debug)]
struct Ledger<C: Clock<Instant = Nanos>> {
    due: Arc<Mutex<HashMap<String, Nanos>>>,
    keys: usize,
    start: Nanos,
    clock: C,
}

impl<C: Clock<Instant = Nanos>> Ledger<C> {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Nanos>> {
        // No change can panic half-way, so a poisoned lock is safe to use.
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Nanos {
        self.clock.now().saturating_sub(self.start)
    }

    /// Evicts keys that owe nothing, then those that owe least. A flood of made-up names with one
    /// attempt each therefore evicts only itself, never an account under attack.
    fn make_room(&self, due: &mut HashMap<String, Nanos>) {
        let now = self.now();
        due.retain(|_, at| *at > now);
        if due.len() >= self.keys {
            let mut owed: Vec<Nanos> = due.values().copied().collect();
            let middle = owed.len() / 2;
            let (_, median, _) = owed.select_nth_unstable(middle);
            let median = *median;
            let mut surplus = owed.len() - middle;
            due.retain(|_, at| {
                let drop = *at <= median && surplus > 0;
                surplus -= usize::from(drop);
                !drop
            });
        }
    }
}

impl<C: Clock<Instant = Nanos>> StateStore for Ledger<C> {
    type Key = String;

    fn measure_and_replace<T, F, E>(&self, key: &String, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut due = self.lock();
        let (outcome, at) = decide(due.get(key).copied())?;
        if !due.contains_key(key) && due.len() >= self.keys {
            self.make_room(&mut due);
        }
        due.insert(key.clone(), at);
        Ok(outcome)
    }
}

#[cfg(test)]
impl<C: Clock<Instant = Nanos>> Count<C> {
    pub(super) fn keys(&self) -> usize {
        self.ledger.lock().len()
    }
}
