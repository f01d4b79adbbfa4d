//! The instances as everybody sees them, and how they came to be so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tourin_registry_api::{Change, ChangeKind, Instance, Snapshot, Status};

use super::history::{History, Since};

/// Service and id.
pub type Key = (String, String);

/// The change that makes an instance what it is.
pub fn kind_of(instance: &Instance) -> ChangeKind {
    match instance.status {
        Status::Draining => ChangeKind::Draining,
        Status::OutOfService => ChangeKind::OutOfService,
        Status::Up | Status::Expired => ChangeKind::Up,
    }
}

/// The visible instances at a version, and the latest changes up to it.
///
/// Every change has the next version. The changes after a version, applied to the state
/// at that version, give the current state.
#[derive(Debug)]
pub struct View {
    instances: BTreeMap<Key, Instance>,
    history: History,
    /// The services some of whose instances stay without a lease.
    protected: BTreeSet<String>,
}

impl View {
    /// An empty view. It keeps as many changes as `history` says.
    pub fn new(epoch: u64, history: usize) -> Self {
        let history = History::new(epoch, history);
        Self { instances: BTreeMap::new(), history, protected: BTreeSet::new() }
    }

    /// The version of the last change; the epoch before the first.
    pub fn version(&self) -> u64 {
        self.history.version()
    }

    /// Makes an instance visible as it is now.
    pub fn show(&mut self, key: Key, instance: Instance) {
        self.history.record(kind_of(&instance), instance.clone());
        self.instances.insert(key, instance);
    }

    /// Begins anew with what other registries know: all instances, and the latest changes up to `version`, of
    /// which those before a gap are left out.
    pub fn replace(
        &mut self,
        (epoch, version): (u64, u64),
        instances: impl IntoIterator<Item = (Key, Instance)>,
        changes: impl IntoIterator<Item = Change>,
    ) {
        let mut kept = VecDeque::new();
        for change in changes {
            if kept.back().is_some_and(|last: &Arc<Change>| last.version + 1 != change.version) {
                kept.clear();
            }
            kept.push_back(Arc::new(change));
        }
        if kept.back().is_some_and(|last| last.version != version) {
            kept.clear();
        }
        self.instances = instances.into_iter().collect();
        self.history = History::resumed(epoch, version, kept, self.history.limit());
    }

    /// Applies the next change of other registries. False if it is not the next one.
    pub fn apply(&mut self, key: Key, change: Change) -> bool {
        if change.version != self.version() + 1 {
            return false;
        }
        match change.kind {
            ChangeKind::Down { .. } => drop(self.instances.remove(&key)),
            _ => drop(self.instances.insert(key, change.instance.clone())),
        }
        self.history.record(change.kind, change.instance);
        true
    }

    /// Removes an instance. Gives it as it last was.
    pub fn remove(&mut self, key: &Key, kind: ChangeKind) -> Option<Instance> {
        let gone = self.instances.remove(key)?;
        self.history.record(kind, gone.clone());
        Some(gone)
    }

    /// The services some of whose instances stay without a lease.
    pub fn protected(&self) -> &BTreeSet<String> {
        &self.protected
    }

    /// Sets [`View::protected`].
    pub fn protect(&mut self, services: BTreeSet<String>) {
        self.protected = services;
    }

    /// All instances, by service and id.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// The instances of all services or of one.
    pub fn snapshot(&self, service: Option<&str>) -> Snapshot {
        let is_wanted = |name: &str| service.is_none_or(|service| name == service);
        let instances = self.instances().filter(|instance| is_wanted(&instance.service));
        let protected = self.protected.iter().filter(|name| is_wanted(name));
        Snapshot {
            epoch: self.history.epoch(),
            version: self.version(),
            instances: instances.cloned().collect(),
            protected: protected.cloned().collect(),
        }
    }

    /// How a watcher that has `version` of `epoch` (0: unknown) catches up.
    pub fn since(&self, version: u64, epoch: u64) -> Since {
        self.history.since(version, epoch)
    }
}
