//! An open watch.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch as signal;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::{Change, Snapshot};
use tracing::{debug, info};

use super::Discovery;
use crate::domain::{Session, Since, TooManyWatchers, WatcherKind};

/// An item of a watch.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// All instances; only as the first item.
    Snapshot(Snapshot),
    /// The next change.
    Change(Arc<Change>),
}

/// An open watch: a snapshot first, unless the watcher can resume, then every change in order.
///
/// Changes are read from the shared history in batches, so a slow watcher costs no memory. A watch that
/// falls behind the history ends; the watcher comes back and gets a snapshot.
#[derive(Debug)]
pub struct Watch {
    discovery: Arc<Discovery>,
    session: Session,
    version: u64,
    first: Option<Snapshot>,
    batch: VecDeque<Arc<Change>>,
    changed: signal::Receiver<u64>,
    replaced: signal::Receiver<()>,
    stop: Shutdown,
}

impl Discovery {
    /// Opens a watch for a watcher that has `version` of `epoch` (0: unknown). It ends with `stop`, when
    /// it is too slow, or when a newer one has the same name.
    ///
    /// # Errors
    /// [`TooManyWatchers`].
    pub fn watch(
        self: &Arc<Self>,
        watcher: WatcherKind<'_>,
        version: u64,
        epoch: u64,
        stop: Shutdown,
    ) -> Result<Watch, TooManyWatchers> {
        let changed = self.version.subscribe();
        let mut state = self.state();
        let session = state.watchers.join(watcher)?;
        let (first, version) = match state.catalogue.since(version, epoch) {
            // `next` reads the changes.
            Since::Changes(_) => (None, version),
            Since::NeedsSnapshot => {
                let snapshot = state.catalogue.snapshot(None);
                let version = snapshot.version;
                (Some(snapshot), version)
            }
        };
        drop(state);
        info!(?watcher, version, resumed = first.is_none(), "watching");
        self.replaced.send_replace(());
        Ok(Watch {
            session,
            version,
            first,
            batch: VecDeque::new(),
            changed,
            replaced: self.replaced.subscribe(),
            stop,
            discovery: Arc::clone(self),
        })
    }
}

impl Watch {
    /// The next item; `None` when the watch has ended.
    pub async fn next(&mut self) -> Option<WatchItem> {
        if let Some(snapshot) = self.first.take() {
            return Some(WatchItem::Snapshot(snapshot));
        }
        loop {
            if let Some(change) = self.batch.pop_front() {
                self.version = change.version;
                return Some(WatchItem::Change(change));
            }
            self.changed.mark_unchanged();
            self.batch = self.take_batch()?.into();
            if !self.batch.is_empty() {
                continue;
            }
            tokio::select! {
                () = self.stop.begun() => return None,
                changed = self.changed.changed() => changed.ok()?,
                replaced = self.replaced.changed() => replaced.ok()?,
            }
        }
    }

    fn take_batch(&self) -> Option<Vec<Arc<Change>>> {
        let state = self.discovery.state();
        if !state.watchers.is_open(&self.session) {
            debug!(session = ?self.session, "replaced by a newer watch");
            return None;
        }
        match state.catalogue.since(self.version, 0) {
            Since::Changes(changes) => Some(changes),
            Since::NeedsSnapshot => {
                info!(session = ?self.session, "too slow; dropped");
                None
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.discovery.state().watchers.leave(&self.session);
        // Draining instances need not wait for this watcher any more.
        self.discovery.progress.send_replace(());
    }
}
