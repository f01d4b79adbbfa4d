//! Similarity by co-occurrence, normalised by degrees:
//!
//! `A_ij = d_i^-a * d_j^-b * sum over members v who know both of d_v^-c`
//!
//! where the degree `d` is the number of members who know a spot, or of spots that a member knows.
//! Members who know many spots say little about a pair, and so do spots that many members know. The
//! default exponents are the best of those tried on the Gowalla check-ins. Other data has other
//! optima.

use std::collections::HashMap;

use super::spot::SpotId;
use super::trend::{Ranked, rank};

/// The exponents `a`, `b` and `c`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exponents {
    /// `a`, for the degree of the seed.
    pub seed: f64,
    /// `b`, for the degree of the neighbour.
    pub neighbour: f64,
    /// `c`, for the degree of the member.
    pub member: f64,
}

impl Default for Exponents {
    fn default() -> Self {
        Self { seed: 0.8, neighbour: 0.15, member: 0.9 }
    }
}

/// A member who knows the spot in question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// How many spots the member knows.
    pub degree: u64,
    /// The latest of them.
    pub recent: Vec<SpotId>,
}

/// A spot and the members who know it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Neighbourhood {
    /// How many members know the spot.
    pub degree: u64,
    /// The latest of them.
    pub holders: Vec<Holder>,
}

/// The sum of `d_v^-c` over the members of the neighbourhood, for each of their spots except the
/// seed. Returns the `limit` largest.
pub fn overlaps(
    seed: SpotId,
    neighbourhood: &Neighbourhood,
    exponents: &Exponents,
    limit: usize,
) -> Vec<Ranked> {
    let mut sums = HashMap::<SpotId, f64>::new();
    for holder in &neighbourhood.holders {
        let weight = power(holder.degree, exponents.member);
        for spot in &holder.recent {
            *sums.entry(*spot).or_default() += weight;
        }
    }
    sums.remove(&seed);
    let mut overlaps = rank(sums.into_iter().map(|(spot, value)| Ranked { spot, value }).collect());
    overlaps.truncate(limit);
    overlaps
}

/// The seed's row of `A`, best first, with at most `keep` spots. `degrees` has the degree of each
/// spot in `overlaps`; a missing degree counts as 1.
///
/// If the neighbourhood has only the latest members of a popular seed, the row is scaled to all of
/// them, so that rows of different seeds can be added.
pub fn row(
    neighbourhood: &Neighbourhood,
    overlaps: &[Ranked],
    degrees: &HashMap<SpotId, u64>,
    exponents: &Exponents,
    keep: usize,
) -> Vec<Ranked> {
    let sampled = neighbourhood.holders.len().max(1) as f64;
    let scale = (neighbourhood.degree as f64 / sampled).max(1.0)
        * power(neighbourhood.degree, exponents.seed);
    let mut row = rank(
        overlaps
            .iter()
            .map(|overlap| {
                let degree = degrees.get(&overlap.spot).copied().unwrap_or(1);
                Ranked {
                    spot: overlap.spot,
                    value: scale * power(degree, exponents.neighbour) * overlap.value,
                }
            })
            .collect(),
    );
    row.truncate(keep);
    row
}

/// `degree^-exponent`; a degree of 0 counts as 1.
fn power(degree: u64, exponent: f64) -> f64 {
    (degree.max(1) as f64).powf(-exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: i64) -> SpotId {
        SpotId::new(number).expect("not negative")
    }

    fn holder(degree: u64, recent: &[i64]) -> Holder {
        Holder { degree, recent: recent.iter().copied().map(id).collect() }
    }

    #[test]
    fn a_row_is_the_formula() {
        let exponents = Exponents::default();
        let neighbourhood =
            Neighbourhood { degree: 2, holders: vec![holder(2, &[1, 2]), holder(3, &[1, 2, 3])] };
        let overlaps = overlaps(id(1), &neighbourhood, &exponents, 100);
        let degrees = HashMap::from([(id(2), 2), (id(3), 5)]);
        let row = row(&neighbourhood, &overlaps, &degrees, &exponents, 100);

        let to_2 = 2f64.powf(-0.8) * 2f64.powf(-0.15) * (2f64.powf(-0.9) + 3f64.powf(-0.9));
        let to_3 = 2f64.powf(-0.8) * 5f64.powf(-0.15) * 3f64.powf(-0.9);
        assert_eq!(row.iter().map(|r| r.spot).collect::<Vec<_>>(), [id(2), id(3)]);
        assert!((row[0].value - to_2).abs() < 1e-12);
        assert!((row[1].value - to_3).abs() < 1e-12);
    }

    #[test]
    fn a_sample_of_holders_is_scaled_to_all() {
        let exponents = Exponents::default();
        let all =
            Neighbourhood { degree: 2, holders: vec![holder(2, &[1, 2]), holder(2, &[1, 2])] };
        let sample = Neighbourhood { degree: 2, holders: vec![holder(2, &[1, 2])] };
        let of = |n: &Neighbourhood| {
            row(n, &overlaps(id(1), n, &exponents, 9), &HashMap::new(), &exponents, 9)
        };
        assert!((of(&all)[0].value - of(&sample)[0].value).abs() < 1e-12);
    }

    #[test]
    fn a_spot_that_no_member_knows_has_no_neighbours() {
        let empty = Neighbourhood::default();
        let overlaps = overlaps(id(1), &empty, &Exponents::default(), 9);
        assert!(row(&empty, &overlaps, &HashMap::new(), &Exponents::default(), 9).is_empty());
    }
}
