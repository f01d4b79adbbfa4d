//! Whether ended leases are taken for the end of their instances.
//!
//! When most instances of a service stop renewing at once, a fault of the network or of the registry itself
//! is likelier than that all of them have died. The last known members then stay, and gateways find out
//! themselves which of them answer. Instances that leave, or that drain, are never counted: a service that
//! is scaled down loses no lease.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;

use super::view::Key;

/// When a service's ended leases are kept.
#[derive(Clone, Copy, Debug)]
pub struct ProtectionRule {
    /// The share of a service's leases (percent) above which lost ones are kept; 100 keeps none.
    pub percent: usize,
    /// The least number of leases at which the rule holds. One instance of two that dies is no sign of
    /// anything else.
    pub min_leases: usize,
}

impl ProtectionRule {
    /// Never keeps a lease.
    pub const OFF: Self = Self { percent: 100, min_leases: usize::MAX };

    /// What becomes of leases that have ended. Services of which `is_lifted` says so are not protected.
    pub fn verdict(&self, leases: &[LeaseState], is_lifted: impl Fn(&str) -> bool) -> Verdict {
        let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
        for lease in leases.iter().filter(|lease| !lease.drains) {
            counts.entry(&lease.key.0).or_default().add(lease.left, lease.length);
        }
        let is_kept = |service: &str, counts: Counts| {
            counts.ended > 0 && self.keeps(counts) && !is_lifted(service)
        };
        let kept = counts.into_iter().filter(|(service, counts)| is_kept(service, *counts));
        let protected: BTreeSet<String> = kept.map(|(service, _)| service.to_owned()).collect();
        let is_over = |lease: &&LeaseState| {
            lease.left <= TimeDelta::zero() && (lease.drains || !protected.contains(&lease.key.0))
        };
        let gone = leases.iter().filter(is_over).map(|lease| lease.key.clone()).collect();
        Verdict { gone, protected }
    }

    fn keeps(&self, counts: Counts) -> bool {
        counts.leases >= self.min_leases && counts.lost * 100 > counts.leases * self.percent
    }
}

/// A lease at a moment.
#[derive(Clone, Debug)]
pub struct LeaseState {
    /// Its instance.
    pub key: Key,
    /// What is left of it; zero or less once it has ended.
    pub left: TimeDelta,
    /// How long it is after a renewal.
    pub length: TimeDelta,
    /// Whether its instance drains.
    pub drains: bool,
}

/// What becomes of leases that have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Instances that are gone.
    pub gone: Vec<Key>,
    /// Services whose ended leases are kept.
    pub protected: BTreeSet<String>,
}

/// The leases of one service whose instances do not drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// All.
    leases: usize,
    /// Those that have ended.
    ended: usize,
    /// Those that have ended or are about to.
    lost: usize,
}

impl Counts {
    /// Counts a lease of this `length` of which `left` is left.
    ///
    /// Instances that stop at the same moment last renewed at different ones, up to a heartbeat apart, so
    /// their leases end one after the other. A lease of three heartbeats or more (as
    /// [`tourin_registry_api::Registration`] asks for) of which a third is left has missed two.
    fn add(&mut self, left: TimeDelta, length: TimeDelta) {
        self.leases += 1;
        self.ended += usize::from(left <= TimeDelta::zero());
        self.lost += usize::from(left * 3 <= length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(lefts_ms: &[i64]) -> Counts {
        let mut counts = Counts::default();
        for left in lefts_ms {
            counts.add(TimeDelta::milliseconds(*left), TimeDelta::milliseconds(3_000));
        }
        counts
    }

    #[test]
    fn leases_that_end_within_a_heartbeat_are_lost_together() {
        assert_eq!(counts(&[0, 300, 1_000]), Counts { leases: 3, ended: 1, lost: 3 });
        assert_eq!(counts(&[-5, 2_100, 3_000]), Counts { leases: 3, ended: 1, lost: 1 });
    }

    #[test]
    fn more_than_the_share_of_enough_leases_is_kept() {
        let rule = ProtectionRule { percent: 50, min_leases: 3 };
        assert!(!rule.keeps(counts(&[0, 3_000, 3_000])), "a third");
        assert!(rule.keeps(counts(&[0, 500, 3_000])), "two thirds");
        assert!(!rule.keeps(counts(&[0, 500, 3_000, 3_000])), "half is not more than half");
        assert!(!rule.keeps(counts(&[0, 0])), "too few to say");
        assert!(!ProtectionRule::OFF.keeps(counts(&[0, 0, 0, 0])));
    }
}
