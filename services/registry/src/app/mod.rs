//! Use cases: one per call, and the sweeper. All state is behind one lock, which is never held across
//! an await. Channels wake waiting tasks, which then read the state.

mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch as signal;
use tokio::time::{sleep, timeout};
use tourin_chassis::clock::SharedClock;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::{Departure, Instance, Snapshot, Status};
use tracing::{info, warn};

use crate::domain::{Catalogue, CatalogueLimits, RegisterError, Unknown, WatcherLimits, Watchers};

pub use watch::{Watch, WatchItem};

/// Longest pause of the sweeper (milliseconds); it also wakes when the next lease ends.
const SWEEP_MS: u64 = 100;
/// Shortest wait (milliseconds) after which a watcher counts as too slow.
const MIN_BLAMING_WAIT_MS: u64 = 1_000;

/// Limits of [`Discovery`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of instances and their changes.
    pub catalogue: CatalogueLimits,
    /// Of watchers.
    pub watchers: WatcherLimits,
}

/// The registered instances and the watchers.
#[derive(Debug)]
pub struct Discovery {
    state: Mutex<State>,
    clock: SharedClock,
    version: signal::Sender<u64>,
    /// A watcher has acknowledged or left.
    progress: signal::Sender<()>,
    /// A newer watch has replaced one of the same name.
    replaced: signal::Sender<()>,
}

#[derive(Debug)]
struct State {
    catalogue: Catalogue,
    watchers: Watchers,
}

impl Discovery {
    /// An empty registry, whose epoch is the current time.
    pub fn new(limits: Limits, clock: SharedClock) -> Arc<Self> {
        let catalogue = Catalogue::new(limits.catalogue, clock.now());
        Arc::new(Self {
            version: signal::Sender::new(catalogue.version()),
            progress: signal::Sender::new(()),
            replaced: signal::Sender::new(()),
            state: Mutex::new(State { catalogue, watchers: Watchers::new(limits.watchers) }),
            clock,
        })
    }

    /// Registers or renews an instance; gives a version that includes it.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn register(&self, instance: Instance, lease: TimeDelta) -> Result<u64, RegisterError> {
        let (service, id, address) =
            (instance.service.clone(), instance.id.clone(), instance.address);
        let (before, version) = self.change(|catalogue, now| {
            catalogue.expire(now);
            (catalogue.version(), catalogue.register(instance, lease, now))
        });
        let version = version?;
        if version > before {
            info!(service, id, %address, version, "registered");
        }
        Ok(version)
    }

    /// The number of instances by service and status.
    pub fn instance_counts(&self) -> BTreeMap<(String, &'static str), usize> {
        let mut counts = BTreeMap::new();
        for instance in self.list(None).instances {
            let status = match instance.status {
                Status::Up => "up",
                Status::Draining => "draining",
            };
            *counts.entry((instance.service, status)).or_default() += 1;
        }
        counts
    }

    /// The number of open watches.
    pub fn watcher_count(&self) -> usize {
        self.state().watchers.count()
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// [`Unknown`] without a live lease.
    pub fn renew(&self, service: &str, id: &str) -> Result<(), Unknown> {
        self.change(|catalogue, now| catalogue.renew(service, id, now))
    }

    /// Marks an instance as draining, then waits for the watchers.
    ///
    /// # Errors
    /// [`Unknown`] when it is not there.
    pub async fn drain(
        &self,
        service: &str,
        id: &str,
        wait: Duration,
    ) -> Result<Departure, Unknown> {
        let version = self.change(|catalogue, now| catalogue.drain(service, id, now))?;
        info!(service, id, version, "draining");
        Ok(self.acknowledged(version, wait).await)
    }

    /// Removes an instance, then waits for the watchers.
    ///
    /// # Errors
    /// [`Unknown`] when it is not there.
    pub async fn deregister(
        &self,
        service: &str,
        id: &str,
        wait: Duration,
    ) -> Result<Departure, Unknown> {
        let version = self.change(|catalogue, now| catalogue.deregister(service, id, now))?;
        info!(service, id, version, "left");
        Ok(self.acknowledged(version, wait).await)
    }

    /// The instances of one service or of all.
    pub fn list(&self, service: Option<&str>) -> Snapshot {
        self.change(|catalogue, now| {
            catalogue.expire(now);
            catalogue.snapshot(service)
        })
    }

    /// Notes a watcher's acknowledgement; false when there is no such watcher.
    pub fn acknowledge(&self, watcher: &str, version: u64) -> bool {
        let known = self.state().watchers.acknowledge(watcher, version);
        if known {
            self.progress.send_replace(());
        }
        known
    }

    /// Expires leases until `stop`.
    pub async fn sweep(self: Arc<Self>, stop: Shutdown) {
        loop {
            let now = self.clock.now();
            let next = self.state().catalogue.next_expiry();
            let until_next = next.and_then(|at| (at - now).to_std().ok()).unwrap_or_default();
            let pause = match next {
                Some(_) => until_next.min(Duration::from_millis(SWEEP_MS)),
                None => Duration::from_millis(SWEEP_MS),
            };
            tokio::select! {
                () = stop.begun() => return,
                () = sleep(pause) => {}
            }
            for gone in self.change(|catalogue, now| catalogue.expire(now)) {
                let Instance { service, id, address, .. } = gone;
                warn!(service, id, %address, "its lease ended");
            }
        }
    }

    /// Waits until every watcher that is not too slow has acknowledged `version`.
    async fn acknowledged(&self, version: u64, wait: Duration) -> Departure {
        let mut progress = self.progress.subscribe();
        let everybody = async {
            while !self.state().watchers.all_acknowledged(version) {
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        let acknowledged = timeout(wait, everybody).await.is_ok();
        if !acknowledged && wait >= Duration::from_millis(MIN_BLAMING_WAIT_MS) {
            let watchers = self.state().watchers.stop_waiting_for(version);
            warn!(?watchers, version, "watchers did not acknowledge in time");
            self.progress.send_replace(());
        }
        Departure { version, acknowledged }
    }

    /// Changes the catalogue, and wakes the watchers if there is a new version.
    fn change<T>(&self, act: impl FnOnce(&mut Catalogue, DateTime<Utc>) -> T) -> T {
        let mut state = self.state();
        // Read under the lock, so that times are in the order of the calls.
        let now = self.clock.now();
        let result = act(&mut state.catalogue, now);
        let version = state.catalogue.version();
        drop(state);
        self.version.send_if_modified(|known| {
            let newer = version > *known;
            *known = version.max(*known);
            newer
        });
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave the catalogue half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
