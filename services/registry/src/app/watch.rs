//! An open watch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch as signal;
use tokio::time::timeout;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::{Change, Snapshot};
use tracing::{debug, info};

use super::Discovery;
use super::ports::Unavailable;
use crate::domain::{Session, Since, TooManyWatchers, WatcherKind};

/// How long a watch waits for changes of which another registry has told its watcher.
const CATCH_UP: Duration = Duration::from_millis(1_000);

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

/// Why a watch is not opened.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// A limit is reached.
    #[error(transparent)]
    TooMany(#[from] TooManyWatchers),
    /// The store does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Discovery {
    /// Opens a watch of a `peer`, for a watcher that has `version` of `epoch` (0: unknown). It ends with
    /// `stop`, when it is too slow, or when a newer one has the same name.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn watch(
        self: &Arc<Self>,
        (watcher, peer): (WatcherKind<'_>, &str),
        (version, epoch): (u64, u64),
        stop: Shutdown,
    ) -> Result<Watch, WatchError> {
        self.store.ready()?;
        self.caught_up(version, epoch).await;
        let changed = self.store.version();
        let session = self.sessions().join(watcher, peer)?;
        let mut watch = Watch {
            session,
            version,
            first: None,
            batch: VecDeque::new(),
            changed,
            replaced: self.replaced.subscribe(),
            stop,
            discovery: Arc::clone(self),
        };
        // From here on a drop of `watch` ends the session.
        self.store.joined(&watch.session).await?;
        let (first, version) = match self.store.since(version, epoch) {
            // `next` reads the changes.
            Since::Changes(_) => (None, version),
            Since::NeedsSnapshot => {
                let snapshot = self.store.snapshot(None);
                let version = snapshot.version;
                (Some(snapshot), version)
            }
        };
        info!(?watcher, version, resumed = first.is_none(), "watching");
        self.replaced.send_replace(());
        (watch.first, watch.version) = (first, version);
        Ok(watch)
    }

    /// Another registry may have told the watcher more than this one knows yet.
    async fn caught_up(&self, version: u64, epoch: u64) {
        let known = self.store.snapshot(Some(""));
        if epoch == known.epoch && version > known.version {
            let mut shown = self.store.version();
            let reached = shown.wait_for(|shown| *shown >= version);
            timeout(CATCH_UP, reached).await.ok();
        }
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
        if !self.discovery.sessions().is_open(&self.session) {
            debug!(session = ?self.session, "replaced by a newer watch");
            return None;
        }
        match self.discovery.store.since(self.version, 0) {
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
        self.discovery.sessions().leave(&self.session);
        // Draining instances need not wait for this watcher any more.
        self.discovery.store.left(&self.session);
    }
}
