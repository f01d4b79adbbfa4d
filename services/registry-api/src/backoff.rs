//! Pauses between attempts: doubling, bounded, jittered. backon 1.6 is not used: its jitter only
//! lengthens a pause, beyond the bound.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// First pause (milliseconds), before jitter.
const BASE_MS: u64 = 100;

/// Pauses of 50 to 100 ms, then twice that, and so on up to a bound. The random half spreads the
/// clients that lost the registry at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    longest: Duration,
    next: Duration,
    rng: SmallRng,
}

impl Backoff {
    pub(crate) fn new(longest: Duration) -> Self {
        Self::with_rng(longest, SmallRng::from_rng(&mut rand::rng()))
    }

    fn with_rng(longest: Duration, rng: SmallRng) -> Self {
        // With a bound of zero, a dead registry would cause a busy loop.
        let longest = longest.max(Duration::from_millis(10));
        Self { longest, next: longest.min(Duration::from_millis(BASE_MS)), rng }
    }

    /// The pause before the next attempt.
    pub(crate) fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        let half = whole / 2;
        half + half.mul_f64(self.rng.random_range(0.0..=1.0))
    }

    /// Starts again with the shortest pause, after a success.
    pub(crate) fn reset(&mut self) {
        self.next = self.longest.min(Duration::from_millis(BASE_MS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_bound_and_start_again() {
        let longest = Duration::from_millis(1_000);
        let mut backoff = Backoff::with_rng(longest, SmallRng::seed_from_u64(7));
        for whole in [100, 200, 400, 800, 1_000, 1_000] {
            let pause = backoff.pause();
            let whole = Duration::from_millis(whole);
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
