//! The order in which instances are chosen, and the ring of hashes.

use std::collections::HashMap;
use std::net::SocketAddr;

use pingora_ketama::{Bucket, Continuum};

/// Largest number of turns in a schedule: weights beyond it are rounded.
const MAX_TURNS: u64 = 65_536;
/// Most weight of an instance on the ring. Each unit is 160 points, of 8 bytes each.
const MAX_RING_WEIGHT: u32 = 10;

/// Members by turn, each as often as its weight says.
#[derive(Debug, Default)]
pub(super) struct Schedule(Box<[u32]>);

impl Schedule {
    /// A schedule of members by their weights; those with the weight 0 have no turn.
    ///
    /// An instance's turns are spread evenly: its turn `k` of `weight` has the position
    /// `(k + 1/2) / weight`, and turns are sorted by position. Equal weights give plain round robin.
    pub(super) fn new(weights: impl Iterator<Item = (u32, u32)>) -> Self {
        let weights: Vec<_> = weights.filter(|(_, weight)| *weight > 0).collect();
        let divisor = weights.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
        let total: u64 = weights.iter().map(|(_, weight)| u64::from(weight / divisor)).sum();
        let scale = total.div_ceil(MAX_TURNS).max(1);
        let mut turns = Vec::new();
        for (member, weight) in weights {
            let count = (u64::from(weight / divisor) / scale).max(1);
            turns.extend((0..count).map(|turn| ((turn as f64 + 0.5) / count as f64, member)));
        }
        turns.sort_by(|(one, first), (other, second)| one.total_cmp(other).then(first.cmp(second)));
        Self(turns.into_iter().map(|(_, member)| member).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The member whose turn it is; the schedule must not be empty.
    pub(super) fn at(&self, turn: usize) -> usize {
        self.0[turn % self.0.len()] as usize
    }
}

fn gcd(one: u32, other: u32) -> u32 {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// The ring of hashes. Its points depend on instances' addresses, so that an instance that restarts at its
/// address keeps its keys.
pub(super) struct Ring {
    continuum: Continuum,
    members: HashMap<SocketAddr, usize>,
}

impl Ring {
    /// A ring of members by address and weight.
    pub(super) fn new(members: impl Iterator<Item = (SocketAddr, u32)>) -> Self {
        let members: Vec<_> = members.collect();
        let most = members.iter().map(|(_, weight)| *weight).max().unwrap_or(1).max(1);
        let is_even = members.iter().all(|(_, weight)| *weight == most);
        let mut indices = HashMap::new();
        let mut buckets = Vec::new();
        for (index, (address, weight)) in members.into_iter().enumerate() {
            // Two at one address: one of them is gone. `Continuum` numbers its nodes with 16 bits.
            if weight == 0 || indices.contains_key(&address) || buckets.len() > u16::MAX.into() {
                continue;
            }
            indices.insert(address, index);
            let units = if is_even {
                1
            } else {
                u64::from(weight) * u64::from(MAX_RING_WEIGHT) / u64::from(most)
            };
            buckets.push(Bucket::new(address, u32::try_from(units).unwrap_or(1).max(1)));
        }
        Self { continuum: Continuum::new(&buckets), members: indices }
    }

    /// The members at the key's position and after it, with repetitions, without end unless it is empty.
    pub(super) fn at_key(&self, key: &[u8]) -> impl Iterator<Item = usize> {
        let found = self.continuum.node_iter(key);
        found.filter_map(|address| self.members.get(address).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(weights: &[u32]) -> Vec<u32> {
        let weights = weights.iter().enumerate();
        let weights = weights.map(|(member, weight)| (u32::try_from(member).unwrap(), *weight));
        Schedule::new(weights).0.into_vec()
    }

    #[test]
    fn turns_follow_weights_and_are_spread() {
        assert_eq!(turns(&[7, 7, 7]), [0, 1, 2]);
        assert_eq!(turns(&[1, 3]), [1, 0, 1, 1]);
        assert_eq!(turns(&[4, 0, 2]), [0, 2, 0]);
        assert!(turns(&[]).is_empty() && turns(&[0]).is_empty());
        // Nobody waits longer than by its weight.
        let many = turns(&[100, 1, 99]);
        assert_eq!(many.len(), 200);
        assert!(many.windows(4).all(|four| four.contains(&0) && four.contains(&2)));
    }

    #[test]
    fn a_schedule_is_bounded() {
        let weights: Vec<_> = (0..1_000).map(|weight| 999_000 + weight).collect();
        let turns = turns(&weights);
        assert!(turns.len() as u64 <= MAX_TURNS + 1_000, "{}", turns.len());
        assert!((0..1_000).all(|member| turns.contains(&member)));
    }

    #[test]
    fn a_key_stays_when_others_leave() {
        let member = |port| (SocketAddr::from(([127, 0, 0, 1], port)), 1);
        let ring = |ports: &[u16]| Ring::new(ports.iter().map(|port| member(*port)));
        let ports = [1, 2, 3, 4];
        let (four, three) = (ring(&ports), ring(&ports[..3]));
        let mut moved = 0;
        for key in 0..1_000_u32 {
            let key = key.to_be_bytes();
            let before = four.at_key(&key).next().unwrap();
            let after = three.at_key(&key).next().unwrap();
            if before == 3 {
                moved += 1;
                // The next one on the ring takes over.
                assert_eq!(four.at_key(&key).find(|member| *member != 3), Some(after));
            } else {
                assert_eq!(before, after);
            }
        }
        assert!((150..350).contains(&moved), "{moved} of 1,000 keys were on one of four");
        assert!(ring(&[]).at_key(b"key").next().is_none());
    }
}
