//! Ranking for a member: personal candidates mixed with the trend, without known spots.

use std::collections::HashSet;

use super::spot::SpotId;

/// Candidates by source, each best first.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    /// By co-occurrence with the member's history.
    pub co_occurring: Vec<SpotId>,
    /// By tags and distance to the member's latest spots.
    pub alike: Vec<SpotId>,
    /// The trend.
    pub trending: Vec<SpotId>,
}

/// The trend's share of the result for a member who knows `known` spots: all for a newcomer, half
/// after the first interaction, then less and less.
pub fn trend_share(known: usize) -> f64 {
    1.0 / (1.0 + known as f64)
}

/// Orders the candidates for a member who knows `known`, best first, without duplicates and without
/// anything in `known`.
///
/// Personal candidates are the co-occurring ones, then those with similar content. The trend gets
/// its share of the positions, spread evenly, with personal ones first. Positions are used because
/// scores of different sources have no common scale, and because a first bookmark must change the
/// result even if the trend is strong.
pub fn blend(candidates: &Candidates, known: &HashSet<SpotId>) -> Vec<SpotId> {
    let share = trend_share(known.len());
    let mut shown = known.clone();
    let mut personal = candidates.co_occurring.iter().chain(&candidates.alike).copied();
    let mut trending = candidates.trending.iter().copied();
    let mut order = Vec::new();
    let mut from_trend = 0;
    loop {
        let positions = order.len() + 1;
        let is_trend_next = f64::from(from_trend + 1) <= share * positions as f64 + 1e-9;
        let mut next_trending = || trending.find(|spot| !shown.contains(spot));
        let mut next_personal = || personal.find(|spot| !shown.contains(spot));
        let next = if is_trend_next {
            next_trending().inspect(|_| from_trend += 1).or_else(next_personal)
        } else {
            next_personal().or_else(next_trending)
        };
        let Some(next) = next else {
            return order;
        };
        shown.insert(next);
        order.push(next);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(numbers: &[i64]) -> Vec<SpotId> {
        numbers.iter().map(|n| SpotId::new(*n).expect("not negative")).collect()
    }

    fn known(numbers: &[i64]) -> HashSet<SpotId> {
        ids(numbers).into_iter().collect()
    }

    #[test]
    fn a_newcomer_gets_the_trend() {
        let candidates = Candidates { trending: ids(&[3, 1, 2]), ..Candidates::default() };
        assert_eq!(blend(&candidates, &known(&[])), ids(&[3, 1, 2]));
    }

    #[test]
    fn after_one_interaction_every_other_position_is_the_trends() {
        let candidates = Candidates {
            alike: ids(&[9, 1, 8, 7]),
            trending: ids(&[1, 9, 2, 3, 4]),
            ..Candidates::default()
        };
        assert_eq!(blend(&candidates, &known(&[5])), ids(&[9, 1, 8, 2, 7, 3, 4]));
    }

    #[test]
    fn with_a_long_history_co_occurrence_is_first_then_likeness_then_the_trend() {
        let candidates =
            Candidates { co_occurring: ids(&[1, 2]), alike: ids(&[3, 1]), trending: ids(&[4]) };
        let known = known(&(100..130).collect::<Vec<_>>());
        assert_eq!(blend(&candidates, &known), ids(&[1, 2, 3, 4]));
    }

    proptest! {
        #[test]
        fn known_spots_are_left_out_and_no_spot_is_lost_or_repeated(
            co in prop::collection::vec(0..30i64, 0..20),
            alike in prop::collection::vec(0..30i64, 0..20),
            trend in prop::collection::vec(0..30i64, 0..20),
            seen in prop::collection::vec(0..30i64, 0..20),
        ) {
            let candidates = Candidates {
                co_occurring: ids(&co),
                alike: ids(&alike),
                trending: ids(&trend),
            };
            let known = known(&seen);
            let answer = blend(&candidates, &known);
            let distinct: HashSet<SpotId> = answer.iter().copied().collect();
            let all: HashSet<SpotId> = ids(&co).into_iter().chain(ids(&alike)).chain(ids(&trend)).collect();
            prop_assert_eq!(distinct.len(), answer.len());
            prop_assert_eq!(distinct, all.difference(&known).copied().collect::<HashSet<_>>());
        }
    }
}
