//! Forward exponential decay: Cormode, Shkapenyuk, Srivastava, Xu, "Forward Decay: A Practical
//! Time Decay Model for Streaming Systems", ICDE 2009.
//!
//! Each event is weighted once, when it is recorded, by `exp(lambda * (t - L))` for a landmark `L`
//! in the past. Reading at `now` divides by `exp(lambda * (now - L))`. The divisor is the same for
//! all spots, so ranking needs no background work, and events may arrive in any order. The landmark
//! moves before the exponent overflows a double.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// The landmark moves before the exponent reaches this. `exp(709)` is about the largest double.
pub const MOVE_AT: f64 = 500.0;

/// Exponential decay with a half-life.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decay {
    /// Per second.
    lambda: f64,
}

impl Decay {
    /// Decay with this half-life, at least a millisecond.
    pub fn with_half_life(half_life: Duration) -> Self {
        let seconds = half_life.max(Duration::from_millis(1)).as_secs_f64();
        Self { lambda: std::f64::consts::LN_2 / seconds }
    }

    /// The time in which a value halves.
    pub fn half_life(self) -> Duration {
        Duration::from_secs_f64(std::f64::consts::LN_2 / self.lambda)
    }

    /// `lambda * (to - from)`.
    fn exponent(self, from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
        // Microseconds of any two representable times fit an i64; chrono's range ends before.
        let micros = to.timestamp_micros().saturating_sub(from.timestamp_micros());
        self.lambda * (micros as f64 / 1e6)
    }

    /// What one unit recorded at `at` adds to a score at `landmark`.
    pub fn gain(self, landmark: DateTime<Utc>, at: DateTime<Utc>) -> f64 {
        self.exponent(landmark, at).exp()
    }

    /// The value at `now` of a score at `landmark`.
    pub fn value(self, score: f64, landmark: DateTime<Utc>, now: DateTime<Utc>) -> f64 {
        score * (-self.exponent(landmark, now)).exp()
    }

    /// The score at `landmark` that has `value` at `now`. Infinite on overflow.
    pub fn score(self, value: f64, landmark: DateTime<Utc>, now: DateTime<Utc>) -> f64 {
        value * self.exponent(landmark, now).exp()
    }

    /// Whether the landmark must move before an event at `at` is recorded.
    pub fn must_move(self, landmark: DateTime<Utc>, at: DateTime<Utc>) -> bool {
        self.exponent(landmark, at) >= MOVE_AT
    }

    /// The factor of every score when the landmark moves.
    pub fn move_factor(self, from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
        (-self.exponent(from, to)).exp()
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::spot::SpotId;
    use crate::domain::trend::{Ranked, rank};

    const HOUR_S: i64 = 3_600;

    fn start() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).expect("a valid time")
    }

    fn hourly() -> Decay {
        Decay::with_half_life(Duration::from_secs(3_600))
    }

    /// Ranks events in memory. The landmark moves when it must, and before the events in `moves`.
    fn ranking(events: &[(i64, u8, f64)], moves: &[usize], now_s: i64) -> Vec<SpotId> {
        let decay = hourly();
        let mut landmark = start();
        let mut scores = std::collections::BTreeMap::<SpotId, f64>::new();
        for (index, (at_s, spot, weight)) in events.iter().enumerate() {
            let at = start() + TimeDelta::seconds(*at_s);
            if decay.must_move(landmark, at) || moves.contains(&index) {
                let factor = decay.move_factor(landmark, at);
                scores.values_mut().for_each(|score| *score *= factor);
                landmark = at;
            }
            let id = SpotId::new(i64::from(*spot)).expect("not negative");
            *scores.entry(id).or_default() += weight * decay.gain(landmark, at);
        }
        let now = start() + TimeDelta::seconds(now_s);
        let ranked = scores
            .into_iter()
            .map(|(spot, score)| Ranked { spot, value: decay.value(score, landmark, now) });
        rank(ranked.collect()).into_iter().map(|r| r.spot).collect()
    }

    proptest! {
        #[test]
        fn any_order_of_the_same_events_ranks_the_same(
            events in prop::collection::vec((0..48 * HOUR_S, 0..6u8, prop::sample::select(vec![1.0, 2.0])), 1..40),
            seed in any::<u64>(),
        ) {
            let mut shuffled = events.clone();
            // A deterministic shuffle: sorts by a hash of the position.
            let mut keyed: Vec<_> = shuffled.drain(..).enumerate().collect();
            keyed.sort_by_key(|(i, _)| (*i as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));
            let shuffled: Vec<_> = keyed.into_iter().map(|(_, event)| event).collect();
            prop_assert_eq!(ranking(&events, &[], 48 * HOUR_S), ranking(&shuffled, &[], 48 * HOUR_S));
        }

        #[test]
        fn moving_the_landmark_changes_no_ranking(
            events in prop::collection::vec((0..48 * HOUR_S, 0..6u8, prop::sample::select(vec![1.0, 2.0])), 1..40),
            moves in prop::collection::vec(0..40usize, 0..6),
        ) {
            prop_assert_eq!(ranking(&events, &[], 48 * HOUR_S), ranking(&events, &moves, 48 * HOUR_S));
        }

        #[test]
        fn a_value_halves_in_a_half_life(half_life_ms in 1..10_000_000u64, ago_ms in 0..1_000_000i64) {
            let decay = Decay::with_half_life(Duration::from_millis(half_life_ms));
            let landmark = start() - TimeDelta::milliseconds(ago_ms.min(100 * half_life_ms as i64));
            let score = decay.gain(landmark, start());
            let later = start() + TimeDelta::milliseconds(half_life_ms as i64);
            prop_assert!((decay.value(score, landmark, start()) - 1.0).abs() < 1e-9);
            prop_assert!((decay.value(score, landmark, later) - 0.5).abs() < 1e-9);
        }

        #[test]
        fn score_is_the_inverse_of_value(value in 1e-6..1e6f64, age_s in 0..200 * HOUR_S) {
            let now = start() + TimeDelta::seconds(age_s);
            let score = hourly().score(value, start(), now);
            prop_assert!((hourly().value(score, start(), now) / value - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn a_landmark_a_year_behind_moves_before_anything_overflows() {
        let year_on = start() + TimeDelta::days(365);
        assert!(hourly().must_move(start(), year_on));
        assert!(!hourly().must_move(start(), start() + TimeDelta::hours(700)));
        assert!(hourly().gain(start(), start() + TimeDelta::hours(721)).is_finite());
        assert_eq!(
            ranking(&[(0, 1, 2.0), (365 * 24 * HOUR_S, 2, 1.0)], &[], 365 * 24 * HOUR_S),
            [SpotId::new(2).expect("valid"), SpotId::new(1).expect("valid")]
        );
    }
}
