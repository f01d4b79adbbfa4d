//! Slows down guessing of one account's password, before any hash is computed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};

/// How many wrong passwords an account bears. Defaults: see [`AttemptPolicy::default`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptPolicy {
    /// Failures in a row before the first wait.
    pub burst: std::num::NonZeroU32,
    /// After the burst, one attempt per this long.
    pub refill: Duration,
    /// Accounts watched at once. An account that nobody fails on is forgotten after
    /// `burst * refill`.
    pub keys: usize,
}

impl Default for AttemptPolicy {
    /// 10 failures, then one per 6 s; 100,000 accounts.
    fn default() -> Self {
        Self {
            burst: std::num::NonZeroU32::new(10).expect("10 is not zero"),
            refill: Duration::from_secs(6),
            keys: 100_000,
        }
    }
}

/// Too many failures; try again after the time given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many failed attempts; try again in {} s", .retry_after.as_secs().max(1))]
pub struct TooManyAttempts {
    /// When one attempt is free again.
    pub retry_after: Duration,
}

/// Counts failures per account (generic cell rate algorithm).
///
/// An attempt is charged before it is made, so that many at once cannot slip past the count, and
/// refunded when it turns out right: a member who logs in often is not slowed down.
#[derive(Debug)]
pub struct Attempts<C: Clock<Instant = Nanos> = Uptime> {
    limiter: RateLimiter<String, Ledger<C>, C, NoOpMiddleware<Nanos>>,
    ledger: Ledger<C>,
    refill: Duration,
}

/// Account names are at most 17 characters; anything much longer names no account and is cut.
const KEY_CHARS: usize = 32;

impl Attempts {
    /// Counts on the process's monotonic clock: a wall clock set back must not lock members out.
    pub fn new(policy: &AttemptPolicy) -> Self {
        Self::with_clock(policy, Uptime(Instant::now()))
    }
}

impl<C: Clock<Instant = Nanos> + Clone> Attempts<C> {
    /// Counts on a given clock.
    pub fn with_clock(policy: &AttemptPolicy, clock: C) -> Self {
        let quota = Quota::with_period(policy.refill.max(Duration::from_millis(1)))
            .expect("the period is not zero")
            .allow_burst(policy.burst);
        let start = clock.now();
        let ledger =
            Ledger { due: Arc::default(), keys: policy.keys.max(1), start, clock: clock.clone() };
        Self {
            limiter: RateLimiter::new(quota, ledger.clone(), clock),
            ledger,
            refill: policy.refill,
        }
    }

    /// Charges `account` with one attempt.
    ///
    /// # Errors
    /// [`TooManyAttempts`] when the account has no attempt left.
    pub fn charge(&self, account: &str) -> Result<(), TooManyAttempts> {
        let key = key(account);
        self.limiter.check_key(&key).map_err(|until| TooManyAttempts {
            retry_after: until.wait_time_from(self.limiter.clock().now()),
        })
    }

    /// Takes the charge of one attempt back: it was right, or was never made.
    pub fn refund(&self, account: &str) {
        let mut due = self.ledger.lock();
        let key = key(account);
        if let Some(at) = due.get_mut(&key) {
            *at = at.saturating_sub(self.refill.into());
            if *at <= self.ledger.now() {
                due.remove(&key);
            }
        }
    }
}

fn key(account: &str) -> String {
    account.chars().take(KEY_CHARS).collect()
}

/// Time since the process began to count.
#[derive(Clone, Copy, Debug)]
pub struct Uptime(Instant);

impl Clock for Uptime {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

/// For each account, the theoretical arrival time up to which its attempts are paid for.
#[derive(Clone, Debug)]
struct Ledger<C: Clock<Instant = Nanos>> {
    due: Arc<Mutex<HashMap<String, Nanos>>>,
    keys: usize,
    start: Nanos,
    clock: C,
}

impl<C: Clock<Instant = Nanos>> Ledger<C> {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Nanos>> {
        // Nothing in here panics half-way through a change.
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Nanos {
        self.clock.now().saturating_sub(self.start)
    }

    /// Makes room: forgets accounts that owe nothing, then those that owe least. A flood of made-up
    /// names, one attempt each, so pushes out only itself, never an account under attack.
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
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn attempts(keys: usize) -> (Attempts<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let policy = AttemptPolicy { keys, ..AttemptPolicy::default() };
        (Attempts::with_clock(&policy, clock.clone()), clock)
    }

    #[test]
    fn ten_failures_then_one_per_six_seconds() {
        let (attempts, clock) = attempts(100);
        for n in 1..=10 {
            assert_eq!(attempts.charge("hana12345"), Ok(()), "attempt {n}");
        }
        let refused = attempts.charge("hana12345").unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_secs(6));
        assert_eq!(attempts.charge("another123"), Ok(()), "another account is not touched");
        clock.advance(Duration::from_secs(6));
        assert_eq!(attempts.charge("hana12345"), Ok(()));
        assert!(attempts.charge("hana12345").is_err());
    }

    #[test]
    fn attempts_that_are_right_are_free() {
        let (attempts, _clock) = attempts(100);
        for _ in 0..1_000 {
            attempts.charge("hana12345").unwrap();
            attempts.refund("hana12345");
        }
        for n in 1..=10 {
            assert_eq!(attempts.charge("hana12345"), Ok(()), "attempt {n}");
        }
        assert!(attempts.charge("hana12345").is_err());
        assert_eq!(attempts.ledger.lock().len(), 1);
    }

    #[test]
    fn a_flood_of_made_up_names_frees_no_account_under_attack() {
        let (attempts, _clock) = attempts(50);
        while attempts.charge("hana12345").is_ok() {}
        for n in 0..10_000 {
            attempts.charge(&format!("madeup{n}")).unwrap();
            assert!(attempts.ledger.lock().len() <= 50);
        }
        assert!(attempts.charge("hana12345").is_err());
    }

    #[test]
    fn accounts_that_owe_nothing_are_forgotten_first() {
        let (attempts, clock) = attempts(10);
        for n in 0..10 {
            attempts.charge(&format!("member{n}")).unwrap();
        }
        clock.advance(Duration::from_secs(7));
        attempts.charge("hana12345").unwrap();
        assert_eq!(attempts.ledger.lock().len(), 1);
    }

    #[test]
    fn guesses_at_once_do_not_slip_past_the_count() {
        let attempts = Attempts::new(&AttemptPolicy::default());
        let allowed: usize = std::thread::scope(|scope| {
            let guessers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| (0..10).filter(|_| attempts.charge("hana12345").is_ok()).count())
                })
                .collect();
            guessers.into_iter().map(|guesser| guesser.join().unwrap()).sum()
        });
        assert_eq!(allowed, 10);
    }
}
