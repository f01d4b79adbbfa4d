//! The expected growth of a spot's score.

use super::super::ledger::Bookmark;
use super::super::observation::Scores;

/// A smaller rest of an effect is lost in rounding.
const TOO_SMALL: f64 = 1e-6;

/// The expected growth of a score.
#[derive(Debug, Default)]
pub(super) struct Expected {
    pub(super) effects: u64,
    /// The bounds, by the earliest and the latest time of each effect.
    min: f64,
    pub(super) max: f64,
    /// The smallest of the effects.
    smallest: Option<f64>,
}

/// The deviation of a score, in effects.
pub(super) struct Deviation {
    pub(super) missing: u64,
    pub(super) surplus: u64,
    pub(super) is_unclear: bool,
}

impl Expected {
    pub(super) fn add(&mut self, bookmark: &Bookmark, scores: &Scores) {
        let weight = scores.weights.bookmark;
        let min = weight * scores.decay(bookmark.when.from.min(scores.at));
        let max = weight * scores.decay(bookmark.when.to.unwrap_or(scores.at).min(scores.at));
        self.effects += 1;
        self.min += min;
        self.max += max;
        self.smallest = Some(self.smallest.map_or(min, |smallest| smallest.min(min)));
    }

    /// The deviation of a growth, in whole effects. The tolerance is half of the smallest effect, which
    /// is a view.
    pub(super) fn off(&self, grown: f64, before: &Scores, scores: &Scores) -> Deviation {
        let weights = scores.weights;
        let oldest = weights.bookmark * scores.decay(before.at);
        let smallest = self.smallest.unwrap_or(oldest);
        let tolerance = smallest / 2.0 * (weights.view / weights.bookmark).min(1.0);
        let effects = |by: f64| {
            if by > tolerance { (by / smallest).round().clamp(1.0, 1e9) as u64 } else { 0 }
        };
        if self.max - self.min > tolerance || tolerance < TOO_SMALL {
            return Deviation { missing: 0, surplus: 0, is_unclear: true };
        }
        let (missing, surplus) = (effects(self.min - grown), effects(grown - self.max));
        Deviation { missing, surplus, is_unclear: false }
    }
}
