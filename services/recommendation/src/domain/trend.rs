//! The trend: decayed views and bookmarks of all members and visitors.

use std::cmp::Ordering;
use std::time::Duration;

use super::decay::Decay;
use super::spot::SpotId;

/// The minimum value of a spot in the trend: the value of one view after ten half-lives.
pub const DEFAULT_FLOOR: f64 = 1.0 / 1024.0;

/// A score below this value may be deleted. It does not change any visible order.
pub const NEGLIGIBLE: f64 = 1e-12;

/// The smallest step of the clock that counts as a jump.
const MIN_JUMP: Duration = Duration::from_secs(300);

/// A jump is trusted after the clock has advanced for this long.
pub const CONFIRMED_AFTER: Duration = Duration::from_secs(3_600);

/// The step of the clock between two events that counts as a jump: a half-life, at least 5 minutes.
/// A clock that is ahead by less than a half-life at most doubles the value of an event.
pub fn jump_of(half_life: Duration) -> Duration {
    half_life.max(MIN_JUMP)
}

/// The rules of a trend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrendRules {
    /// The time in which a count loses half of its value.
    pub half_life: Duration,
    /// Within this time of a count, the same person, spot and kind does not count again.
    pub window: Duration,
    /// The minimum value of a spot in the trend.
    pub floor: f64,
    /// The maximum age of events. Records that only older events need may be deleted.
    pub max_age: Duration,
}

impl TrendRules {
    /// The decay of these rules.
    pub fn decay(&self) -> Decay {
        Decay::with_half_life(self.half_life)
    }
}

impl Default for TrendRules {
    fn default() -> Self {
        Self {
            half_life: Duration::from_secs(3_600),
            window: Duration::from_secs(3_600),
            floor: DEFAULT_FLOOR,
            max_age: Duration::from_secs(24 * 3_600),
        }
    }
}

/// A spot with a value. A larger value is better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// The spot.
    pub spot: SpotId,
    /// Its value when it was read.
    pub value: f64,
}

/// Sorts entries, best first, then by id.
///
/// Values that agree in about their first nine digits count as equal: sums of the same numbers in
/// another order differ in the last bits, and must not rank differently.
pub fn rank(mut entries: Vec<Ranked>) -> Vec<Ranked> {
    let by_rounded = |entry: &Ranked| (Descending(rounded(entry.value)), entry.spot);
    entries.sort_by_cached_key(by_rounded);
    entries
}

/// The best `limit` spots with a value of at least `floor`, in the order of [`rank`].
pub fn best(entries: impl IntoIterator<Item = Ranked>, floor: f64, limit: usize) -> Vec<Ranked> {
    let mut best = rank(entries.into_iter().filter(|entry| entry.value >= floor).collect());
    best.truncate(limit);
    best
}

struct Descending(f64);

impl Ord for Descending {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.total_cmp(&self.0)
    }
}

impl PartialOrd for Descending {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Descending {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Descending {}

fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let magnitude = 10f64.powi(9 - value.abs().log10().floor() as i32);
    if magnitude.is_finite() { (value * magnitude).round() / magnitude } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(spot: i64, value: f64) -> Ranked {
        Ranked { spot: SpotId::new(spot).expect("not negative"), value }
    }

    #[test]
    fn equals_are_ordered_by_id_even_when_their_last_bits_differ() {
        let noisy = 0.1 + 0.2; // 0.30000000000000004
        let order: Vec<_> = rank(vec![ranked(2, noisy), ranked(1, 0.3), ranked(3, 0.4)])
            .iter()
            .map(|r| r.spot.number())
            .collect();
        assert_eq!(order, [3, 1, 2]);
    }

    #[test]
    fn tiny_values_keep_their_order() {
        let order: Vec<_> = rank(vec![ranked(1, 1e-305), ranked(2, 2e-305), ranked(3, 0.0)])
            .iter()
            .map(|r| r.spot.number())
            .collect();
        assert_eq!(order, [2, 1, 3]);
    }
}
