//! Slows down guessing of passwords, before any hash is computed.
//!
//! An attempt is charged before the password is compared, to these counts:
//!
//! | count | of | charged for |
//! |---|---|---|
//! | strict | the account from one source | every attempt |
//! | of the account | the account from everywhere | attempts by strangers |
//! | of the network | all accounts from one network | attempts without a device or a session of the member |
//!
//! A stranger is a client without the cookie of a device, outside the networks, from which the member
//! has logged in before. So strangers who guess lock out strangers, and not the member. The count of
//! the network slows down a client that tries one password on many accounts.
//!
//! Counts are in this process's memory, and in Redis too if the store has it: then they hold for all
//! processes together. While Redis is away each process counts alone.

mod count;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use governor::clock::Clock;
use governor::nanos::Nanos;

use self::count::{Count, Uptime};
use super::StoreError;
use super::client_source::ClientSource;

/// How many wrong passwords are allowed. Defaults: see [`AttemptPolicy::default`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptPolicy {
    /// Failures in a row on one account from one source before its first wait.
    pub burst: NonZeroU32,
    /// After the burst, one attempt from that source per this long.
    pub refill: Duration,
    /// Failures in a row on one account by all strangers together before the first wait.
    pub account_burst: NonZeroU32,
    /// After that burst, one attempt per this long.
    pub account_refill: Duration,
    /// Failures in a row on all accounts from one network before its first wait.
    pub network_burst: NonZeroU32,
    /// After that burst, one attempt per this long.
    pub network_refill: Duration,
    /// Most keys of each count: accounts, networks, and pairs of an account and a source. A key
    /// without new failures is forgotten after `burst * refill`.
    pub keys: usize,
}

impl Default for AttemptPolicy {
    /// From one source 10 failures, then one per 6 s; by strangers together 100, then one per second;
    /// from one network on all accounts 100, then one per 3 s; 100,000 keys.
    fn default() -> Self {
        Self {
            burst: NonZeroU32::new(10).expect("10 is not zero"),
            refill: Duration::from_secs(6),
            account_burst: NonZeroU32::new(100).expect("100 is not zero"),
            account_refill: Duration::from_secs(1),
            network_burst: NonZeroU32::new(100).expect("100 is not zero"),
            network_refill: Duration::from_secs(3),
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

/// One charge of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Which count.
    pub count: Counted,
    /// What is counted, distinct within its count.
    pub key: String,
    /// Failures in a row before the first wait.
    pub burst: NonZeroU32,
    /// After the burst, one attempt per this long.
    pub refill: Duration,
}

/// A kind of count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// An account from one source.
    Strict,
    /// An account from everywhere.
    Account,
    /// All accounts from one network.
    Network,
}

/// An attempt that was charged.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a right password is refunded"]
pub struct Attempt(Vec<Charge>);

/// Counts that all processes share.
#[async_trait]
pub trait SharedAttempts: Send + Sync {
    /// Makes all charges or, when one has none left, none. Returns the wait in that case.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn charge(&self, charges: &[Charge]) -> Result<Option<Duration>, StoreError>;

    /// Takes charges back.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn refund(&self, charges: &[Charge]) -> Result<(), StoreError>;
}

/// The counts of this process and the shared ones.
pub struct Attempts {
    here: Counts,
    shared: Option<Arc<dyn SharedAttempts>>,
}

impl Attempts {
    /// Counts on the process's monotonic clock: a wall clock set back must not lock members out.
    pub fn new(policy: &AttemptPolicy, shared: Option<Arc<dyn SharedAttempts>>) -> Self {
        Self { here: Counts::with_clock(policy, &Uptime::start()), shared }
    }

    /// Charges `account` with one attempt from `source`. `known` says that the member has logged in
    /// from its network before.
    ///
    /// # Errors
    /// [`TooManyAttempts`] when a count has no attempt left. Then nothing is charged.
    pub async fn charge(
        &self,
        account: &str,
        source: &ClientSource,
        known: bool,
    ) -> Result<Attempt, TooManyAttempts> {
        let attempt = self.here.charge(account, source, known)?;
        let Some(shared) = &self.shared else { return Ok(attempt) };
        match shared.charge(&attempt.0).await {
            Ok(None) => {}
            Ok(Some(retry_after)) => {
                self.here.refund(&attempt);
                return Err(TooManyAttempts { retry_after });
            }
            Err(error) => tracing::debug!(%error, "an attempt was not charged for all processes"),
        }
        Ok(attempt)
    }

    /// Refunds an attempt: it succeeded, or was never made.
    pub async fn refund(&self, attempt: &Attempt) {
        self.here.refund(attempt);
        if let Some(shared) = &self.shared
            && let Err(error) = shared.refund(&attempt.0).await
        {
            tracing::debug!(%error, "an attempt was not refunded for all processes");
        }
    }
}

/// The counts of one process.
///
/// An attempt is charged before it is made, so that concurrent attempts cannot bypass the count. A
/// successful attempt is refunded, so that frequent log-ins are not slowed down.
#[derive(Debug)]
struct Counts<C: Clock<Instant = Nanos> = Uptime> {
    policy: AttemptPolicy,
    strict: Count<C>,
    of_account: Count<C>,
    of_network: Count<C>,
}

/// Account names have at most 17 characters, pseudonyms 31. Longer keys cannot be valid and are cut.
const KEY_CHARS: usize = 32;

impl<C: Clock<Instant = Nanos> + Clone> Counts<C> {
    fn with_clock(policy: &AttemptPolicy, clock: &C) -> Self {
        let count = |burst, refill| Count::new(burst, refill, policy.keys, clock.clone());
        Self {
            policy: *policy,
            strict: count(policy.burst, policy.refill),
            of_account: count(policy.account_burst, policy.account_refill),
            of_network: count(policy.network_burst, policy.network_refill),
        }
    }

    fn charge(
        &self,
        account: &str,
        source: &ClientSource,
        known: bool,
    ) -> Result<Attempt, TooManyAttempts> {
        let charges = self.charges(&key(account), source, known);
        for (at, charge) in charges.iter().enumerate() {
            self.count(charge.count).charge(&charge.key).inspect_err(|_| {
                charges[..at].iter().for_each(|done| self.count(done.count).refund(&done.key));
            })?;
        }
        Ok(Attempt(charges))
    }

    fn refund(&self, attempt: &Attempt) {
        attempt.0.iter().for_each(|charge| self.count(charge.count).refund(&charge.key));
    }

    /// The charges of an attempt, the strictest first.
    fn charges(&self, account: &str, source: &ClientSource, known: bool) -> Vec<Charge> {
        let AttemptPolicy {
            burst,
            refill,
            account_burst,
            account_refill,
            network_burst,
            network_refill,
            ..
        } = self.policy;
        let strict =
            Charge { count: Counted::Strict, key: format!("{source}\n{account}"), burst, refill };
        let of_network = || Charge {
            count: Counted::Network,
            key: source.to_string(),
            burst: network_burst,
            refill: network_refill,
        };
        let of_account = || Charge {
            count: Counted::Account,
            key: account.to_owned(),
            burst: account_burst,
            refill: account_refill,
        };
        match source {
            ClientSource::Device(_) | ClientSource::Session(_) => vec![strict],
            ClientSource::Network(_) | ClientSource::Visitor(_) if known => {
                vec![strict, of_network()]
            }
            ClientSource::Network(_) | ClientSource::Visitor(_) => {
                vec![strict, of_network(), of_account()]
            }
            ClientSource::Unknown => vec![strict, of_account()],
        }
    }

    fn count(&self, count: Counted) -> &Count<C> {
        match count {
            Counted::Strict => &self.strict,
            Counted::Account => &self.of_account,
            Counted::Network => &self.of_network,
        }
    }
}

fn key(account: &str) -> String {
    account.chars().take(KEY_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use governor::clock::FakeRelativeClock;

    use super::*;
    use crate::app::client_source::DeviceId;
    use crate::domain::token::SessionId;

    const HANA: &str = "hana12345";

    fn attempts(keys: usize) -> (Counts<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let policy = AttemptPolicy { keys, ..AttemptPolicy::default() };
        (Counts::with_clock(&policy, &clock), clock)
    }

    fn network(number: u32) -> ClientSource {
        ClientSource::Network(Ipv4Addr::from_bits(number).into())
    }

    /// Charges until the source has to wait; returns the number of attempts.
    fn exhaust(attempts: &Counts<FakeRelativeClock>, source: &ClientSource) -> usize {
        (0..1_000).take_while(|_| attempts.charge(HANA, source, false).is_ok()).count()
    }

    #[test]
    fn ten_failures_then_one_per_six_seconds() {
        let (attempts, clock) = attempts(100);
        for source in
            [network(1), ClientSource::Visitor("anon:a".to_owned()), ClientSource::Unknown]
        {
            assert_eq!(exhaust(&attempts, &source), 10);
            let refused = attempts.charge(HANA, &source, false).unwrap_err();
            assert_eq!(refused.retry_after, Duration::from_secs(6));
            assert_eq!(
                attempts.charge("another123", &source, false).map(drop),
                Ok(()),
                "another account"
            );
            clock.advance(Duration::from_secs(6));
            assert_eq!(exhaust(&attempts, &source), 1);
        }
    }

    #[test]
    fn guesses_from_one_network_never_limit_another() {
        let (attempts, clock) = attempts(100);
        for _ in 0..10_000 {
            for _ in 0..5 {
                let _refused_mostly = attempts.charge(HANA, &network(1), false);
            }
            clock.advance(Duration::from_secs(1));
        }
        assert!(attempts.charge(HANA, &network(1), false).is_err());
        assert_eq!(exhaust(&attempts, &network(2)), 10);
    }

    #[test]
    fn all_places_together_have_a_hundred_failures_then_one_per_second() {
        let (attempts, clock) = attempts(1_000);
        let allowed: usize = (0..50).map(|n| exhaust(&attempts, &network(n))).sum();
        assert_eq!(allowed, 100);
        let refused = attempts.charge(HANA, &network(50), false).unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_secs(1));
        assert!(attempts.charge("another123", &network(50), false).is_ok());
        clock.advance(Duration::from_secs(1));
        assert_eq!(exhaust(&attempts, &network(50)), 1);
        // A refusal by the account's count has not charged the source's.
        clock.advance(Duration::from_secs(100));
        assert_eq!(exhaust(&attempts, &network(49)), 10);
    }

    #[test]
    fn strangers_lock_out_strangers_and_not_the_member() {
        let (attempts, _clock) = attempts(10_000);
        let botnet: usize = (0..1_000).map(|n| exhaust(&attempts, &network(n))).sum();
        assert_eq!(botnet, 100);
        assert!(attempts.charge(HANA, &network(5_000), false).is_err(), "one more stranger");
        assert!(attempts.charge(HANA, &network(6_000), true).is_ok(), "the member's network");
        let device = ClientSource::Device(DeviceId([7; 16]));
        assert!(attempts.charge(HANA, &device, false).is_ok(), "the member's device");
        let session = ClientSource::Session(SessionId::new());
        assert!(attempts.charge(HANA, &session, false).is_ok(), "a change of the password");
        // Each of these still has a strict count of its own.
        assert_eq!(exhaust(&attempts, &device), 9);
        assert_eq!(exhaust(&attempts, &session), 9);
    }

    #[test]
    fn one_password_tried_on_many_accounts_is_counted_for_its_network() {
        let (attempts, clock) = attempts(10_000);
        let spray = |from| {
            let accounts = (0..1_000).map(|n| format!("member{n}"));
            let tried = accounts.map(|account| attempts.charge(&account, &network(from), false));
            tried.filter(Result::is_ok).count()
        };
        assert_eq!(spray(1), 100);
        clock.advance(Duration::from_secs(3));
        assert_eq!(spray(1), 1);
        assert_eq!(spray(2), 100, "another network");
        let device = ClientSource::Device(DeviceId([7; 16]));
        assert!(attempts.charge(HANA, &device, false).is_ok(), "a member behind the same address");
    }

    #[test]
    fn attempts_that_are_right_are_free() {
        let (attempts, _clock) = attempts(100);
        for _ in 0..1_000 {
            let attempt = attempts.charge(HANA, &network(1), false).unwrap();
            attempts.refund(&attempt);
        }
        assert_eq!((attempts.of_account.keys(), attempts.of_network.keys()), (0, 0));
        assert_eq!(exhaust(&attempts, &network(1)), 10);
        assert_eq!(attempts.strict.keys(), 1);
    }

    #[test]
    fn a_flood_of_made_up_names_frees_no_account_under_attack() {
        let (attempts, _clock) = attempts(50);
        let sources: Vec<_> = (0..10).map(network).collect();
        let allowed: usize = sources.iter().map(|source| exhaust(&attempts, source)).sum();
        assert_eq!(allowed, 100);
        for n in 0..10_000 {
            let _failed = attempts.charge(&format!("madeup{n}"), &network(n), false).unwrap();
            for count in [&attempts.strict, &attempts.of_account, &attempts.of_network] {
                assert!(count.keys() <= 50);
            }
        }
        let source = network(20_000);
        assert!(attempts.charge(HANA, &source, false).is_err(), "the account is still counted");
        for source in &sources {
            let there = &attempts.charges(HANA, source, false)[0].key;
            assert!(attempts.strict.charge(there).is_err(), "{source} is still counted");
        }
    }

    #[test]
    fn accounts_without_failures_are_evicted_first() {
        let (attempts, clock) = attempts(10);
        for n in 0..10 {
            let account = format!("member{n}");
            let _failed = attempts.charge(&account, &ClientSource::Unknown, false).unwrap();
        }
        clock.advance(Duration::from_secs(7));
        let _failed = attempts.charge(HANA, &ClientSource::Unknown, false).unwrap();
        assert_eq!((attempts.strict.keys(), attempts.of_account.keys()), (1, 1));
    }

    #[test]
    fn guesses_at_once_do_not_slip_past_the_count() {
        let attempts = Counts::with_clock(&AttemptPolicy::default(), &Uptime::start());
        let guess = || attempts.charge(HANA, &ClientSource::Unknown, false).is_ok();
        let allowed: usize = std::thread::scope(|scope| {
            let guessers: Vec<_> =
                (0..8).map(|_| scope.spawn(|| (0..10).filter(|_| guess()).count())).collect();
            guessers.into_iter().map(|guesser| guesser.join().unwrap()).sum()
        });
        assert_eq!(allowed, 10);
    }
}
