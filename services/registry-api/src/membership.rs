//! The state of a directory, and how snapshots and changes alter it. No I/O; time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::instance::{Instance, Status};
use crate::wire::{Change, ChangeKind, Snapshot};

/// Service and id.
type Key = (String, String);

/// A change cannot be applied because an earlier one is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("version {got} came after version {known}")]
pub(crate) struct Gap {
    known: u64,
    got: u64,
}

/// The known instances.
///
/// # After a restart of the registry
/// A restarted registry knows no instance until each registers again. Instances that the first
/// snapshot of a new epoch lacks are therefore kept, *unconfirmed*, for a settle period of one lease.
/// An instance that registers again is confirmed; one that is reported down is removed. Those still
/// unconfirmed at the period's end are removed. The period starts anew with each connection. A
/// snapshot of the same epoch replaces everything at once.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    epoch: u64,
    version: u64,
    instances: BTreeMap<Key, Instance>,
    unconfirmed: BTreeSet<Key>,
    settles_at: Option<Instant>,
}

impl Membership {
    /// The epoch of the last snapshot; 0 before the first.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last version applied; 0 before the first snapshot.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// All instances, sorted by service and id.
    pub(crate) fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// When [`Membership::settle`] is due.
    pub(crate) fn settles_at(&self) -> Option<Instant> {
        self.settles_at
    }

    /// Restarts a running settle period, because a watch was opened.
    pub(crate) fn connected(&mut self, now: Instant, settle: Duration) {
        if self.settles_at.is_some() {
            self.settles_at = Some(now + settle);
        }
    }

    pub(crate) fn replace(&mut self, snapshot: Snapshot, now: Instant, settle: Duration) {
        let known = std::mem::take(&mut self.instances);
        self.instances = snapshot
            .instances
            .into_iter()
            .map(|i| ((i.service.clone(), i.id.clone()), i))
            .collect();
        if snapshot.epoch != self.epoch {
            self.unconfirmed = known.keys().cloned().collect();
            self.settles_at = Some(now + settle);
        }
        self.unconfirmed.retain(|key| !self.instances.contains_key(key));
        for (key, instance) in known {
            if self.unconfirmed.contains(&key) {
                self.instances.insert(key, instance);
            }
        }
        if self.unconfirmed.is_empty() {
            self.settles_at = None;
        }
        self.epoch = snapshot.epoch;
        self.version = snapshot.version;
    }

    /// Applies the next change; an older one is ignored.
    pub(crate) fn apply(&mut self, change: Change) -> Result<(), Gap> {
        if change.version <= self.version {
            return Ok(());
        }
        if change.version != self.version + 1 {
            return Err(Gap { known: self.version, got: change.version });
        }
        self.version = change.version;
        let mut instance = change.instance;
        let key = (instance.service.clone(), instance.id.clone());
        self.unconfirmed.remove(&key);
        if self.unconfirmed.is_empty() {
            self.settles_at = None;
        }
        match change.kind {
            ChangeKind::Up => instance.status = Status::Up,
            ChangeKind::Draining => instance.status = Status::Draining,
            ChangeKind::OutOfService => instance.status = Status::OutOfService,
            ChangeKind::Down { .. } => {
                self.instances.remove(&key);
                return Ok(());
            }
        }
        self.instances.insert(key, instance);
        Ok(())
    }

    /// Removes unconfirmed instances once the settle period is over. True when any were removed.
    pub(crate) fn settle(&mut self, now: Instant) -> bool {
        if self.settles_at.is_none_or(|at| now < at) {
            return false;
        }
        self.settles_at = None;
        let unconfirmed = std::mem::take(&mut self.unconfirmed);
        for key in &unconfirmed {
            self.instances.remove(key);
        }
        !unconfirmed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::DownReason;

    const SETTLE: Duration = Duration::from_secs(3);

    fn instance(id: &str) -> Instance {
        Instance::new("core", id, ([127, 0, 0, 1], 4000).into())
    }

    fn snapshot(epoch: u64, version: u64, ids: &[&str]) -> Snapshot {
        let instances = ids.iter().map(|id| instance(id)).collect();
        Snapshot { epoch, version, instances, protected: Vec::new() }
    }

    fn change(version: u64, kind: ChangeKind, id: &str) -> Change {
        Change { version, kind, instance: instance(id) }
    }

    fn ids(membership: &Membership) -> Vec<&str> {
        membership.instances().map(|i| i.id.as_str()).collect()
    }

    const LEFT: ChangeKind = ChangeKind::Down { reason: DownReason::Left };

    #[test]
    fn changes_follow_a_snapshot() {
        let mut known = Membership::default();
        known.replace(snapshot(1, 10, &["a", "b"]), Instant::now(), SETTLE);
        assert_eq!(known.settles_at(), None, "nothing was known before");
        known.apply(change(11, LEFT, "a")).unwrap();
        known.apply(change(12, ChangeKind::Up, "c")).unwrap();
        known.apply(change(13, ChangeKind::Draining, "b")).unwrap();
        assert_eq!(ids(&known), ["b", "c"]);
        assert_eq!(known.instances().next().unwrap().status, Status::Draining);
        known.apply(change(11, ChangeKind::Up, "a")).unwrap();
        assert_eq!(ids(&known), ["b", "c"], "an old change is ignored");
        assert_eq!(known.apply(change(15, LEFT, "b")), Err(Gap { known: 13, got: 15 }));
        assert_eq!((known.epoch(), known.version()), (1, 13));
    }

    #[test]
    fn a_snapshot_of_the_same_epoch_is_trusted_at_once() {
        let mut known = Membership::default();
        known.replace(snapshot(1, 10, &["a", "b"]), Instant::now(), SETTLE);
        known.replace(snapshot(1, 20, &[]), Instant::now(), SETTLE);
        assert_eq!(ids(&known), [""; 0]);
    }

    #[test]
    fn an_empty_registry_after_a_restart_empties_nothing_until_the_settle_period_ends() {
        let start = Instant::now();
        let mut known = Membership::default();
        known.replace(snapshot(1, 10, &["a", "b", "c", "d"]), start, SETTLE);
        known.replace(snapshot(100, 100, &["d"]), start, SETTLE);
        assert_eq!(ids(&known), ["a", "b", "c", "d"]);
        // One registers again, one leaves first, one does not come back.
        known.apply(change(101, ChangeKind::Up, "a")).unwrap();
        known.apply(change(102, LEFT, "b")).unwrap();
        assert!(!known.settle(start + SETTLE - Duration::from_millis(1)));
        assert_eq!(ids(&known), ["a", "c", "d"]);
        assert!(known.settle(start + SETTLE));
        assert_eq!(ids(&known), ["a", "d"]);
        assert_eq!(known.settles_at(), None);
    }

    #[test]
    fn a_clock_set_back_does_not_hide_a_restart() {
        let mut known = Membership::default();
        known.replace(snapshot(100, 110, &["a"]), Instant::now(), SETTLE);
        known.replace(snapshot(50, 50, &[]), Instant::now(), SETTLE);
        assert_eq!((known.epoch(), known.version()), (50, 50));
        assert_eq!(ids(&known), ["a"]);
    }

    #[test]
    fn settling_ends_early_when_everybody_is_back_and_starts_anew_with_a_connection() {
        let start = Instant::now();
        let mut known = Membership::default();
        known.replace(snapshot(1, 10, &["a", "b"]), start, SETTLE);
        known.replace(snapshot(100, 100, &[]), start, SETTLE);
        let later = start + SETTLE * 2;
        known.connected(later, SETTLE);
        assert!(!known.settle(later), "the watch was cut meanwhile");
        // A second snapshot of the new epoch confirms some and keeps the others.
        known.replace(snapshot(100, 104, &["a"]), later, SETTLE);
        assert_eq!(ids(&known), ["a", "b"]);
        assert_eq!(known.settles_at(), Some(later + SETTLE));
        known.apply(change(105, ChangeKind::Up, "b")).unwrap();
        assert_eq!(known.settles_at(), None);
    }
}
