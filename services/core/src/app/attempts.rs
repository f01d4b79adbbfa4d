//! Slows down guessing of one account's password, before any hash is computed.
//!
//! Two counts are charged before the password is compared. The strict one counts per account and
//! source: guesses from one source do not lock out the member, who logs in from another source. The
//! loose one counts per account: it bounds the guesses of all sources together.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};

use crate::domain::token::SessionId;

/// How many wrong passwords are allowed per account. Defaults: see [`AttemptPolicy::default`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptPolicy {
    /// Failures in a row from one source before its first wait.
    pub burst: NonZeroU32,
    /// After the burst, one attempt from that source per this long.
    pub refill: Duration,
    /// Failures in a row from all sources together before the first wait.
    pub account_burst: NonZeroU32,
    /// After that burst, one attempt per this long.
    pub account_refill: Duration,
    /// Most keys of each count: accounts, and pairs of an account and a source. A key without new
    /// failures is forgotten after `burst * refill`.
    pub keys: usize,
}

impl Default for AttemptPolicy {
    /// From one source 10 failures, then one per 6 s; from all together 100, then one per second;
    /// 100,000 accounts.
    fn default() -> Self {
        Self {
            burst: NonZeroU32::new(10).expect("10 is not zero"),
            refill: Duration::from_secs(6),
            account_burst: NonZeroU32::new(100).expect("100 is not zero"),
            account_refill: Duration::from_secs(1),
            keys: 100_000,
        }
    }
}

/// Too many failures; try again after `retry_after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many failed attempts; try again in {} s", .retry_after.as_millis().div_ceil(1_000).max(1))]
pub struct TooManyAttempts {
    /// The time until the next attempt is allowed.
    pub retry_after: Duration,
}

/// The source that an attempt comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientSource {
    /// A client's network, by its first address.
    Network(IpAddr),
    /// A visitor whose network is unknown.
    Visitor(String),
    /// An open session.
    Session(SessionId),
    /// Unknown. All such attempts count as one source.
    Unknown,
}

impl fmt::Display for ClientSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => write!(f, "network {address}"),
            Self::Visitor(pseudonym) => write!(f, "visitor {}", key(pseudonym)),
            Self::Session(session) => write!(f, "session {session}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Counts failures per account.
///
/// An attempt is charged before it is made, so that concurrent attempts cannot bypass the count. A
/// successful attempt is refunded, so that frequent log-ins are not slowed down.
#[derive(Debug)]
pub struct Attempts<C: Clock<Instant = Nanos> = Uptime> {
    from_place: Count<C>,
    in_all: Count<C>,
}

/// Account names have at most 17 characters, pseudonyms 31. Longer keys cannot be valid and are cut.
const KEY_CHARS: usize = 32;

impl Attempts {
    /// Counts on the process's monotonic clock: a wall clock set back must not lock members out.
    pub fn new(policy: &AttemptPolicy) -> Self {
        Self::with_clock(policy, &Uptime(Instant::now()))
    }
}

impl<C: Clock<Instant = Nanos> + Clone> Attempts<C> {
    /// Counts on a given clock.
    pub fn with_clock(policy: &AttemptPolicy, clock: &C) -> Self {
        Self {
            from_place: Count::new(policy.burst, policy.refill, policy.keys, clock.clone()),
            in_all: Count::new(
                policy.account_burst,
                policy.account_refill,
                policy.keys,
                clock.clone(),
            ),
        }
    }

    /// Charges `account` with one attempt from `source`.
    ///
    /// # Errors
    /// [`TooManyAttempts`] when the source or the account has no attempt left. A refusal by the
    /// source's count does not charge the account's.
    pub fn charge(&self, account: &str, source: &ClientSource) -> Result<(), TooManyAttempts> {
        let (account, there) = keys(account, source);
        self.from_place.charge(&there)?;
        self.in_all.charge(&account).inspect_err(|_| self.from_place.refund(&there))
    }

    /// Refunds one attempt: it succeeded, or was never made.
    pub fn refund(&self, account: &str, source: &ClientSource) {
        let (account, there) = keys(account, source);
        self.from_place.refund(&there);
        self.in_all.refund(&account);
    }
}

/// The key of the account, and the key of the account and `source`.
fn keys(account: &str, source: &ClientSource) -> (String, String) {
    let account = key(account);
    let there = format!("{source}\n{account}");
    (account, there)
}

/// One count per key (generic cell rate algorithm).
#[derive(Debug)]
struct Count<C: Clock<Instant = Nanos>> {
    limiter: RateLimiter<String, Ledger<C>, C, NoOpMiddleware<Nanos>>,
    ledger: Ledger<C>,
    refill: Duration,
}

impl<C: Clock<Instant = Nanos> + Clone> Count<C> {
    fn new(burst: NonZeroU32, refill: Duration, keys: usize, clock: C) -> Self {
        let quota = Quota::with_period(refill.max(Duration::from_millis(1)))
            .expect("the period is not zero")
            .allow_burst(burst);
        let start = clock.now();
        let ledger = Ledger { due: Arc::default(), keys: keys.max(1), start, clock: clock.clone() };
        Self { limiter: RateLimiter::new(quota, ledger.clone(), clock), ledger, refill }
    }

    fn charge(&self, key: &String) -> Result<(), TooManyAttempts> {
        self.limiter.check_key(key).map_err(|until| TooManyAttempts {
            retry_after: until.wait_time_from(self.limiter.clock().now()),
        })
    }

    fn refund(&self, key: &str) {
        let mut due = self.ledger.lock();
        if let Some(at) = due.get_mut(key) {
            *at = at.saturating_sub(self.refill.into());
            if *at <= self.ledger.now() {
                due.remove(key);
            }
        }
    }
}

fn key(account: &str) -> String {
    account.chars().take(KEY_CHARS).collect()
}

/// Time since the count was created.
#[derive(Clone, Copy, Debug)]
pub struct Uptime(Instant);

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
mod tests {
    use std::net::Ipv4Addr;

    use governor::clock::FakeRelativeClock;

    use super::*;

    const HANA: &str = "hana12345";

    fn attempts(keys: usize) -> (Attempts<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let policy = AttemptPolicy { keys, ..AttemptPolicy::default() };
        (Attempts::with_clock(&policy, &clock), clock)
    }

    fn network(number: u32) -> ClientSource {
        ClientSource::Network(Ipv4Addr::from_bits(number).into())
    }

    /// Charges until the source has to wait; returns the number of attempts.
    fn exhaust(attempts: &Attempts<FakeRelativeClock>, source: &ClientSource) -> usize {
        (0..1_000).take_while(|_| attempts.charge(HANA, source).is_ok()).count()
    }

    #[test]
    fn ten_failures_then_one_per_six_seconds() {
        let (attempts, clock) = attempts(100);
        for source in
            [network(1), ClientSource::Visitor("anon:a".to_owned()), ClientSource::Unknown]
        {
            assert_eq!(exhaust(&attempts, &source), 10);
            let refused = attempts.charge(HANA, &source).unwrap_err();
            assert_eq!(refused.retry_after, Duration::from_secs(6));
            assert_eq!(attempts.charge("another123", &source), Ok(()), "another account");
            clock.advance(Duration::from_secs(6));
            assert_eq!(exhaust(&attempts, &source), 1);
        }
    }

    #[test]
    fn guesses_from_one_network_never_limit_another() {
        let (attempts, clock) = attempts(100);
        for _ in 0..10_000 {
            for _ in 0..5 {
                let _refused_mostly = attempts.charge(HANA, &network(1));
            }
            clock.advance(Duration::from_secs(1));
        }
        assert!(attempts.charge(HANA, &network(1)).is_err());
        assert_eq!(exhaust(&attempts, &network(2)), 10);
    }

    #[test]
    fn all_places_together_have_a_hundred_failures_then_one_per_second() {
        let (attempts, clock) = attempts(1_000);
        let allowed: usize = (0..50).map(|n| exhaust(&attempts, &network(n))).sum();
        assert_eq!(allowed, 100);
        let refused = attempts.charge(HANA, &network(50)).unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_secs(1));
        assert_eq!(attempts.charge("another123", &network(50)), Ok(()));
        clock.advance(Duration::from_secs(1));
        assert_eq!(exhaust(&attempts, &network(50)), 1);
        // A refusal by the account's count has not charged the source's.
        clock.advance(Duration::from_secs(100));
        assert_eq!(exhaust(&attempts, &network(49)), 10);
    }

    #[test]
    fn attempts_that_are_right_are_free() {
        let (attempts, _clock) = attempts(100);
        for _ in 0..1_000 {
            attempts.charge(HANA, &network(1)).unwrap();
            attempts.refund(HANA, &network(1));
        }
        assert!(attempts.in_all.ledger.lock().is_empty());
        assert_eq!(exhaust(&attempts, &network(1)), 10);
        assert_eq!(attempts.from_place.ledger.lock().len(), 1);
    }

    #[test]
    fn a_flood_of_made_up_names_frees_no_account_under_attack() {
        let (attempts, _clock) = attempts(50);
        let sources: Vec<_> = (0..10).map(network).collect();
        let allowed: usize = sources.iter().map(|source| exhaust(&attempts, source)).sum();
        assert_eq!(allowed, 100);
        for n in 0..10_000 {
            attempts.charge(&format!("madeup{n}"), &network(n)).unwrap();
            assert!(attempts.from_place.ledger.lock().len() <= 50);
            assert!(attempts.in_all.ledger.lock().len() <= 50);
        }
        let source = network(20_000);
        assert!(attempts.charge(HANA, &source).is_err(), "the account is still counted");
        for source in &sources {
            let (_, there) = keys(HANA, source);
            assert!(attempts.from_place.charge(&there).is_err(), "{source} is still counted");
        }
    }

    #[test]
    fn accounts_without_failures_are_evicted_first() {
        let (attempts, clock) = attempts(10);
        for n in 0..10 {
            attempts.charge(&format!("member{n}"), &ClientSource::Unknown).unwrap();
        }
        clock.advance(Duration::from_secs(7));
        attempts.charge(HANA, &ClientSource::Unknown).unwrap();
        assert_eq!(attempts.from_place.ledger.lock().len(), 1);
        assert_eq!(attempts.in_all.ledger.lock().len(), 1);
    }

    #[test]
    fn guesses_at_once_do_not_slip_past_the_count() {
        let attempts = Attempts::new(&AttemptPolicy::default());
        let guess = || attempts.charge(HANA, &ClientSource::Unknown).is_ok();
        let allowed: usize = std::thread::scope(|scope| {
            let guessers: Vec<_> =
                (0..8).map(|_| scope.spawn(|| (0..10).filter(|_| guess()).count())).collect();
            guessers.into_iter().map(|guesser| guesser.join().unwrap()).sum()
        });
        assert_eq!(allowed, 10);
    }
}
