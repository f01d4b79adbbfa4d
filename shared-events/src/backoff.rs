//! How long to wait before the next attempt. backon 1.6 is not used: its jitter only lengthens a wait,
//! beyond the ceiling.

use std::time::Duration;

use rand::Rng as _;

/// Exponential backoff with a ceiling and jitter.
///
/// ```
/// use std::time::Duration;
/// use tourin_shared_events::backoff::Backoff;
///
/// let (base, max) = (Duration::from_millis(100), Duration::from_secs(1));
/// let backoff = Backoff { base, max, jitter: 0.0 };
/// assert_eq!(backoff.after(1), base);
/// assert_eq!(backoff.after(2), 2 * base);
/// assert_eq!(backoff.after(60), max);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The wait after the first failure.
    pub base: Duration,
    /// The longest wait, jitter included.
    pub max: Duration,
    /// The random part of each wait, 0.0 to 1.0. With 0.5 a wait of 2 s becomes 1 s to 2 s, so that simultaneous
    /// failures do not retry at the same time.
    pub jitter: f64,
}

impl Backoff {
    /// The wait after the given number of failures in a row, from 1.
    pub fn after(&self, failures: u32) -> Duration {
        self.after_with(failures, rand::rng().random::<f64>())
    }

    /// Like `after`, for a given random number from 0.0 (the shortest wait) to 1.0 (the longest).
    fn after_with(&self, failures: u32, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.base.saturating_mul(1_u32 << doublings).min(self.max);
        let jitter = self.jitter.clamp(0.0, 1.0);
        full.mul_f64(1.0 - jitter * (1.0 - random.clamp(0.0, 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_up_to_the_ceiling() {
        let backoff =
            Backoff { base: Duration::from_millis(100), max: Duration::from_secs(1), jitter: 0.0 };
        let waits: Vec<u128> = (1..=6).map(|n| backoff.after(n).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
    }

    proptest! {
        #[test]
        fn a_wait_stays_within_its_jitter(failures in 0_u32..1000, jitter in 0.0..1.0_f64, random in 0.0..1.0_f64) {
            let base = Duration::from_millis(100);
            let backoff = Backoff { base, max: Duration::from_secs(30), jitter };
            let wait = backoff.after_with(failures, random);
            let longest = backoff.after_with(failures, 1.0);
            prop_assert!(wait <= longest && longest <= backoff.max);
            prop_assert!(wait.as_secs_f64() >= longest.as_secs_f64() * (1.0 - jitter) - 1e-6);
        }
    }
}
