//! Who is there: a local copy of the registry's knowledge that follows every change.

mod follower;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::client::RegistryClient;
use crate::instance::{Instance, Status};
use crate::membership::Membership;
use follower::Follower;

/// What a report says of a registry that is away.
pub const OUT_OF_REACH: &str = "it is out of reach; what it said last holds";

/// Bounds of a [`Directory`].
#[derive(Clone, Copy, Debug)]
pub struct DirectorySettings {
    /// How long instances known from before a restart of the registry are kept while they have not
    /// registered again. One lease (3 s): whoever lives has had three heartbeats to do so.
    pub settle: Duration,
    /// A watch without a sign of life for this long is taken for dead (5 s; the registry gives one
    /// every [`crate::wire::KEEP_ALIVE_MS`]).
    pub idle_timeout: Duration,
    /// Longest pause between two attempts to connect (1 s).
    pub max_backoff: Duration,
}

impl Default for DirectorySettings {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(3_000),
            idle_timeout: Duration::from_millis(5_000),
            max_backoff: Duration::from_millis(1_000),
        }
    }
}

/// Who is there. Cheap to clone; clones share everything.
///
/// It follows the registry's watch, resumes it from the version it has, and goes on with what it
/// knows for as long as the registry is gone. After a restart of the registry, instances that were
/// known before stay for [`DirectorySettings::settle`] so that a registry that knows nobody yet
/// does not empty every gateway; then the registry is believed.
#[derive(Clone)]
pub struct Directory {
    shared: Arc<Shared>,
}

/// What the handle and the follower share.
struct Shared {
    view: ArcSwap<View>,
    changed: watch::Sender<u64>,
    connected: watch::Sender<bool>,
    acknowledged: watch::Sender<u64>,
}

/// One consistent state of knowledge, ready for readers.
#[derive(Default)]
struct View {
    version: u64,
    all: Arc<[Instance]>,
    up: HashMap<String, Upstreams>,
}

struct Upstreams {
    instances: Arc<[Instance]>,
    /// Outlives the view, so that a change of membership does not restart the round.
    turn: Arc<AtomicUsize>,
}

impl Directory {
    /// Watches under the name `watcher` (see [`crate::limits::instance_id`]; unique, for instance
    /// the instance's own id). Draining and leaving instances wait until this watcher acknowledged,
    /// so **[`Directory::acknowledge`] must be called** after every change; who has nothing to
    /// acknowledge uses [`Directory::follow`]. The future does the work: the caller spawns it. It
    /// ends when `stop` is cancelled.
    pub fn watch(
        client: RegistryClient,
        watcher: impl Into<String>,
        stop: CancellationToken,
    ) -> (Self, BoxFuture<'static, ()>) {
        Self::with_settings(client, Some(watcher.into()), DirectorySettings::default(), stop)
    }

    /// Follows without a name: nobody waits for this one. Otherwise like [`Directory::watch`].
    pub fn follow(
        client: RegistryClient,
        stop: CancellationToken,
    ) -> (Self, BoxFuture<'static, ()>) {
        Self::with_settings(client, None, DirectorySettings::default(), stop)
    }

    /// Like [`Directory::watch`] (with a watcher) or [`Directory::follow`] (without one), with
    /// other bounds.
    pub fn with_settings(
        client: RegistryClient,
        watcher: Option<String>,
        settings: DirectorySettings,
        stop: CancellationToken,
    ) -> (Self, BoxFuture<'static, ()>) {
        let shared = Arc::new(Shared {
            view: ArcSwap::default(),
            changed: watch::Sender::new(0),
            connected: watch::Sender::new(false),
            acknowledged: watch::Sender::new(0),
        });
        let follower = Follower::new(client, watcher, settings, Arc::clone(&shared));
        (Self { shared }, Box::pin(follower.run(stop)))
    }

    /// The instances of `service` that are up, sorted by id.
    pub fn instances(&self, service: &str) -> Arc<[Instance]> {
        match self.shared.view.load().up.get(service) {
            Some(upstreams) => Arc::clone(&upstreams.instances),
            None => Arc::default(),
        }
    }

    /// Every instance known, draining ones too, sorted by service and id.
    pub fn all(&self) -> Arc<[Instance]> {
        Arc::clone(&self.shared.view.load().all)
    }

    /// The version of what is known; 0 until the first snapshot.
    pub fn version(&self) -> u64 {
        self.shared.view.load().version
    }

    /// The version, with a wake-up whenever something may have changed. A wake-up can come with the
    /// same version as before (when a settle period ends).
    ///
    /// Read the version here *before* reading the instances, and acknowledge that one: what is read
    /// is then at least as new as what is acknowledged.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Whether the watch is open, and every change of that. For reports only, which say
    /// [`OUT_OF_REACH`] where it is not: what is known is served either way.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.shared.connected.subscribe()
    }

    /// The next of the instances of `service` that are up, round robin; none when there is none.
    pub fn pick(&self, service: &str) -> Option<Instance> {
        let view = self.shared.view.load();
        let upstreams = view.up.get(service)?;
        let turn = upstreams.turn.fetch_add(1, Ordering::Relaxed);
        upstreams.instances.get(turn % upstreams.instances.len()).cloned()
    }

    /// Like [`Directory::pick`], but waits up to `limit` for an instance to appear.
    pub async fn wait_for(&self, service: &str, limit: Duration) -> Option<Instance> {
        let mut changed = self.changed();
        let appears = async {
            loop {
                changed.mark_unchanged();
                if let Some(instance) = self.pick(service) {
                    return Some(instance);
                }
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        timeout(limit, appears).await.ok().flatten()
    }

    /// Says that everything up to `version` is in effect here. Returns at once; the follower tells
    /// the registry, repeats it after a reconnect, and skips versions that a later one covers.
    /// Without effect on a directory that only follows.
    pub fn acknowledge(&self, version: u64) {
        self.shared.acknowledged.send_replace(version);
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.shared.view.load();
        f.debug_struct("Directory")
            .field("version", &view.version)
            .field("instances", &view.all.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Makes what is known visible, then wakes whoever waits for it.
    fn publish(&self, known: &Membership) {
        let previous = self.view.load();
        let mut by_service: HashMap<&str, Vec<Instance>> = HashMap::new();
        for instance in known.instances().filter(|i| i.status == Status::Up) {
            by_service.entry(&instance.service).or_default().push(instance.clone());
        }
        let up = by_service
            .into_iter()
            .map(|(service, instances)| {
                let turn = previous.up.get(service).map(|u| Arc::clone(&u.turn));
                let upstreams =
                    Upstreams { instances: instances.into(), turn: turn.unwrap_or_default() };
                (service.to_owned(), upstreams)
            })
            .collect();
        let view = View { version: known.version(), all: known.instances().cloned().collect(), up };
        self.view.store(Arc::new(view));
        // Wakes even when the version is the same.
        self.changed.send_replace(known.version());
    }
}
