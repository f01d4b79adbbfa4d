//! A local copy of the registry's instances that follows every change.

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
use follower::Follower;

/// What a readiness report says of a registry that cannot be reached.
pub const UNREACHABLE: &str = "unreachable; the last known instances stay in use";

/// Bounds of a [`Directory`].
#[derive(Clone, Copy, Debug)]
pub struct DirectorySettings {
    /// How long instances from before a restart of the registry are kept without registering again.
    /// One lease (3 s), which is three heartbeats.
    pub settle: Duration,
    /// A watch that is silent for this long counts as dead (5 s; the registry sends something every
    /// [`crate::wire::KEEP_ALIVE_MS`]).
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

/// The registered instances. Cheap to clone; clones share everything.
///
/// It follows the registry's watch and resumes it from the version it has. While the registry is
/// away, it keeps what it knows. A restarted registry begins empty, so the instances from before
/// stay for [`DirectorySettings::settle`].
///
/// ```
/// use tourin_registry_api::{Directory, Instance};
///
/// let address = "127.0.0.1:8081".parse().unwrap();
/// let directory = Directory::fixed([
///     Instance::new("core", "core-1", address),
///     Instance::new("core", "core-2", address),
/// ]);
/// // Round robin.
/// assert_eq!(directory.pick("core").unwrap().id, "core-1");
/// assert_eq!(directory.pick("core").unwrap().id, "core-2");
/// assert!(directory.pick("recommendation").is_none());
/// ```
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

/// The membership at one version.
#[derive(Default)]
struct View {
    version: u64,
    all: Arc<[Instance]>,
    up: HashMap<String, Pool>,
}

/// The instances of one service that are up; never empty.
struct Pool {
    instances: Arc<[Instance]>,
    /// Shared with the pool before, so that a change of membership does not restart round robin.
    next: Arc<AtomicUsize>,
}

impl Directory {
    /// Watches under the unique name `watcher` (see [`crate::limits::instance_id`]), such as the
    /// instance's own id. Instances that drain or leave wait for this watcher, so
    /// **[`Directory::acknowledge`] must be called** after every change; a caller with nothing to
    /// acknowledge uses [`Directory::follow`]. The caller spawns the future, which does the work
    /// and ends when `stop` is cancelled.
    pub fn watch(
        client: RegistryClient,
        watcher: impl Into<String>,
        stop: CancellationToken,
    ) -> (Self, BoxFuture<'static, ()>) {
        Self::with_settings(client, Some(watcher.into()), DirectorySettings::default(), stop)
    }

    /// Like [`Directory::watch`], without a name: no instance waits for this watcher.
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
        let shared = Arc::new(Shared::default());
        let follower = Follower::new(client, watcher, settings, Arc::clone(&shared));
        (Self { shared }, Box::pin(follower.run(stop)))
    }

    /// A directory of exactly these instances, without a registry: for tests and examples.
    pub fn fixed(instances: impl IntoIterator<Item = Instance>) -> Self {
        let shared = Arc::new(Shared::default());
        shared.publish(0, instances.into_iter().collect());
        Self { shared }
    }

    /// The instances of `service` that are up, sorted by id.
    pub fn instances(&self, service: &str) -> Arc<[Instance]> {
        match self.shared.view.load().up.get(service) {
            Some(pool) => Arc::clone(&pool.instances),
            None => Arc::default(),
        }
    }

    /// All instances, draining ones too, sorted by service and id.
    pub fn all(&self) -> Arc<[Instance]> {
        Arc::clone(&self.shared.view.load().all)
    }

    /// The registry's version that this copy has; 0 until the first snapshot.
    pub fn version(&self) -> u64 {
        self.shared.view.load().version
    }

    /// The version, with a wake-up at every change. The end of a settle period wakes with the same
    /// version as before.
    ///
    /// Read the version here *before* the instances, and acknowledge that one: the instances are
    /// then at least as new.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Whether the watch is open, with a wake-up at every change. For reports
    /// ([`UNREACHABLE`]); instances are served either way.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.shared.connected.subscribe()
    }

    /// The next instance of `service` that is up, round robin.
    pub fn pick(&self, service: &str) -> Option<Instance> {
        let view = self.shared.view.load();
        let Pool { instances, next } = view.up.get(service)?;
        let turn = next.fetch_add(1, Ordering::Relaxed);
        instances.get(turn % instances.len()).cloned()
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

    /// Acknowledges that everything up to `version` is in effect here. Returns at once; the follower
    /// sends the latest version, again after a reconnect. No effect without a watcher's name.
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

impl Default for Shared {
    fn default() -> Self {
        Self {
            view: ArcSwap::default(),
            changed: watch::Sender::new(0),
            connected: watch::Sender::new(false),
            acknowledged: watch::Sender::new(0),
        }
    }
}

impl Shared {
    /// Makes a membership visible, then wakes the readers, also when the version is the same.
    fn publish(&self, version: u64, all: Vec<Instance>) {
        let previous = self.view.load();
        let mut by_service: HashMap<&str, Vec<Instance>> = HashMap::new();
        for instance in all.iter().filter(|instance| instance.status == Status::Up) {
            by_service.entry(&instance.service).or_default().push(instance.clone());
        }
        let up = by_service
            .into_iter()
            .map(|(service, instances)| {
                let next = previous.up.get(service).map(|pool| Arc::clone(&pool.next));
                let pool = Pool { instances: instances.into(), next: next.unwrap_or_default() };
                (service.to_owned(), pool)
            })
            .collect();
        self.view.store(Arc::new(View { version, all: all.into(), up }));
        self.changed.send_replace(version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(ids: &[&str]) -> Vec<Instance> {
        let address = "127.0.0.1:1".parse().unwrap();
        ids.iter().map(|id| Instance::new("core", *id, address)).collect()
    }

    #[test]
    fn round_robin_goes_on_across_changes() {
        let directory = Directory::fixed(cores(&["a", "b", "c"]));
        let pick = || directory.pick("core").unwrap().id;
        assert_eq!([pick(), pick(), pick(), pick()], ["a", "b", "c", "a"]);
        directory.shared.publish(1, cores(&["a", "b"]));
        let mut picked = [pick(), pick()];
        picked.sort();
        assert_eq!(picked, ["a", "b"]);
        directory.shared.publish(2, Vec::new());
        assert!(directory.pick("core").is_none());
    }
}
