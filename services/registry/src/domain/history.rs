//! The latest changes, so that a watcher can resume.

use std::collections::VecDeque;
use std::sync::Arc;

use tourin_registry_api::{Change, ChangeKind, Instance};

/// How a watcher catches up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// By the changes after its version, in order and without a gap.
    Changes(Vec<Arc<Change>>),
    /// By a snapshot: its version is too old, of another epoch, or in the future.
    NeedsSnapshot,
}

/// The last changes, without a gap.
#[derive(Debug)]
pub(super) struct History {
    epoch: u64,
    version: u64,
    changes: VecDeque<Arc<Change>>,
    limit: usize,
}

impl History {
    pub(super) fn new(epoch: u64, limit: usize) -> Self {
        Self { epoch, version: epoch, changes: VecDeque::new(), limit }
    }

    /// One that goes on from the latest changes of another registry, which are without a gap.
    pub(super) fn resumed(
        epoch: u64,
        version: u64,
        changes: VecDeque<Arc<Change>>,
        limit: usize,
    ) -> Self {
        Self { epoch, version, changes, limit }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Numbers and keeps a change; drops the oldest one above the limit.
    pub(super) fn record(&mut self, kind: ChangeKind, instance: Instance) {
        self.version += 1;
        self.changes.push_back(Arc::new(Change { version: self.version, kind, instance }));
        if self.changes.len() > self.limit {
            self.changes.pop_front();
        }
    }

    /// The changes after `version`. An `epoch` of 0 is not compared.
    pub(super) fn since(&self, version: u64, epoch: u64) -> Since {
        let oldest = self.version - self.changes.len() as u64;
        if (epoch != 0 && epoch != self.epoch) || !(oldest..=self.version).contains(&version) {
            return Since::NeedsSnapshot;
        }
        let known = usize::try_from(version - oldest).expect("at most the number of changes");
        Since::Changes(self.changes.iter().skip(known).cloned().collect())
    }
}
