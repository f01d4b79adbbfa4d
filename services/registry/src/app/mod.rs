//! Use cases: one per call, and the sweeper. What they know is in a [`Store`]. Channels wake waiting tasks,
//! which then read it.

pub mod ports;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::watch as signal;
use tokio::time::{Instant, sleep, timeout_at};
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::wire::{
    LeaseReport, LeaveRequest, OverrideRequest, ScaleReport, SlowestAck,
};
use tourin_registry_api::{Departure, Instance, Snapshot};
use tracing::{error, info, warn};

use self::ports::{Store, StoreError, Unavailable, Verifier};
use crate::domain::{LeaseError, RegisterError, Sessions, Swept, WatcherLimits};

pub use watch::{Watch, WatchError, WatchItem};

/// Longest pause of the sweeper (milliseconds); it also wakes when the next lease ends.
pub const SWEEP_MS: u64 = 100;
/// Pause of the sweeper after its store did not answer (milliseconds).
const UNAVAILABLE_MS: u64 = 500;
/// Shortest wait (milliseconds) after which a watcher counts as too slow.
const MIN_BLAMING_WAIT_MS: u64 = 1_000;

/// The registered instances and the watchers.
#[derive(Debug)]
pub struct Discovery {
    store: Arc<dyn Store>,
    verifier: Option<Arc<dyn Verifier>>,
    sessions: Mutex<Sessions>,
    /// A newer watch has replaced one of the same name.
    replaced: signal::Sender<()>,
    /// Instances of protected services that stay without a lease, by service, as of the last sweep.
    kept: Mutex<BTreeMap<String, usize>>,
}

impl Discovery {
    /// A registry on a store. With a verifier it lets nobody register whom others do not find.
    pub fn new(
        store: Arc<dyn Store>,
        verifier: Option<Arc<dyn Verifier>>,
        limits: WatcherLimits,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            verifier,
            sessions: Mutex::new(Sessions::new(limits)),
            replaced: signal::Sender::new(()),
            kept: Mutex::default(),
        })
    }

    /// Registers or renews an instance; gives a version that includes it.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub async fn register(
        &self,
        instance: Instance,
        lease: TimeDelta,
    ) -> Result<u64, StoreError<RegisterError>> {
        // It is verified before it takes traffic, not while it does.
        if let Some(verifier) = &self.verifier
            && !self.store.has(&instance).await?
        {
            let address = instance.address;
            verifier.verify(&instance).await.map_err(|reason| {
                StoreError::Refused(RegisterError::Unverified { address, reason })
            })?;
        }
        let before = *self.store.version().borrow();
        let version = self.store.register(&instance, lease).await?;
        if version > before {
            let Instance { service, id, address, .. } = instance;
            info!(service, id, %address, version, "registered");
        }
        Ok(version)
    }

    /// The number of instances by service and status.
    pub fn instance_counts(&self) -> BTreeMap<(String, String), usize> {
        let mut counts = BTreeMap::new();
        for instance in self.store.snapshot(None).instances {
            let status = instance.status.to_string().to_ascii_lowercase();
            *counts.entry((instance.service, status)).or_default() += 1;
        }
        counts
    }

    /// How many instances of protected services stay without a lease, by service.
    pub fn kept_counts(&self) -> BTreeMap<String, usize> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of open watches.
    pub fn watcher_count(&self) -> usize {
        self.sessions().count()
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// [`LeaseError::Unknown`] without a live lease.
    pub async fn renew(&self, service: &str, id: &str) -> Result<(), StoreError<LeaseError>> {
        self.store.renew(service, id).await
    }

    /// Marks an instance as draining, then waits for the watchers.
    ///
    /// # Errors
    /// [`LeaseError::Unknown`] when it is not there.
    pub async fn drain(
        &self,
        service: &str,
        id: &str,
        wait: Duration,
    ) -> Result<Departure, StoreError<LeaseError>> {
        let version = self.store.drain(service, id).await?;
        info!(service, id, version, "draining");
        Ok(self.acknowledged(version, wait).await?)
    }

    /// Removes an instance, with what it `said`, then waits for the watchers.
    ///
    /// # Errors
    /// [`LeaseError::Unknown`] when it is not there.
    pub async fn deregister(
        &self,
        service: &str,
        id: &str,
        said: Option<LeaveRequest>,
        wait: Duration,
    ) -> Result<Departure, StoreError<LeaseError>> {
        let version = self.store.deregister(service, id, said).await?;
        info!(service, id, version, "left");
        Ok(self.acknowledged(version, wait).await?)
    }

    /// Changes what an operator decides about an instance, then waits for the watchers.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub async fn set_override(
        &self,
        (service, id): (&str, &str),
        request: &OverrideRequest,
        wait: Duration,
    ) -> Result<Departure, StoreError<LeaseError>> {
        let version = self.store.set_override((service, id), request).await?;
        warn!(service, id, version, ?request, "an operator has decided about an instance");
        Ok(self.acknowledged(version, wait).await?)
    }

    /// Ends the protection of a service; false if there is none.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn end_protection(&self, service: &str) -> Result<bool, Unavailable> {
        let ended = self.store.end_protection(service).await?;
        if ended {
            warn!(service, "an operator has ended the protection");
        }
        Ok(ended)
    }

    /// The instances of one service or of all, as this registry shows them: also while its store is away.
    ///
    /// # Errors
    /// [`Unavailable`] before it has heard of its store.
    pub fn list(&self, service: Option<&str>) -> Result<Snapshot, Unavailable> {
        self.store.ready()?;
        Ok(self.store.snapshot(service))
    }

    /// The leases of one service or of all.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn leases(&self, service: Option<&str>) -> Result<LeaseReport, Unavailable> {
        self.store.leases(service).await
    }

    /// The latest departures of one service or of all.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn departures(&self, service: Option<&str>) -> Result<ScaleReport, Unavailable> {
        Ok(ScaleReport { departures: self.store.departures(service).await? })
    }

    /// Notes a watcher's acknowledgement; false when there is no such watcher.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn acknowledge(&self, watcher: &str, version: u64) -> Result<bool, Unavailable> {
        self.store.acknowledge(watcher, version).await
    }

    /// Expires leases until `stop`.
    pub async fn sweep(self: Arc<Self>, stop: Shutdown) {
        let mut was_available = true;
        loop {
            let pause = if was_available {
                self.store.until_sweep().min(Duration::from_millis(SWEEP_MS))
            } else {
                Duration::from_millis(UNAVAILABLE_MS)
            };
            tokio::select! {
                () = stop.begun() => return,
                () = sleep(pause) => {}
            }
            let swept = self.sweep_once().await;
            if let Err(error) = &swept
                && was_available
            {
                warn!(%error, "leases do not end meanwhile");
            }
            was_available = swept.is_ok();
        }
    }

    async fn sweep_once(&self) -> Result<(), Unavailable> {
        let Swept { gone, protected, unprotected } = self.store.sweep().await?;
        for Instance { service, id, address, .. } in &gone {
            warn!(service, id, %address, "its lease ended");
        }
        for service in &protected {
            error!(
                service,
                "too many leases ended at once: the last known instances stay until renewals return, or \
                 until `tourin ctl end-protection`"
            );
        }
        for service in &unprotected {
            warn!(service, "leases count again");
        }
        let kept = if self.store.is_protecting() {
            kept(&self.store.leases(None).await?)
        } else {
            BTreeMap::new()
        };
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        Ok(())
    }

    /// Waits until every watcher that is not too slow has acknowledged `version`.
    async fn acknowledged(&self, version: u64, wait: Duration) -> Result<Departure, Unavailable> {
        let mut progress = self.store.progress();
        let began = Instant::now();
        let (mut done, mut slowest) = (BTreeSet::new(), None);
        let acknowledged = loop {
            progress.mark_unchanged();
            let acks = self.store.acks(version).await?;
            for watcher in acks.done {
                if done.insert(watcher.clone()) {
                    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    slowest = Some(SlowestAck { watcher, ms });
                }
            }
            if acks.open.is_empty() {
                break true;
            }
            if began.elapsed() >= wait {
                break false;
            }
            let until = (began + wait).min(Instant::now() + self.store.look_again());
            // Looks again at the latest then; the sender lives as long as the store.
            timeout_at(until, progress.changed()).await.ok();
        };
        if !acknowledged && wait >= Duration::from_millis(MIN_BLAMING_WAIT_MS) {
            let watchers = self.store.stop_waiting_for(version).await?;
            warn!(?watchers, version, "watchers did not acknowledge in time");
        }
        Ok(Departure { version, acknowledged, watchers: done.len(), slowest })
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // A panic cannot leave them half-changed.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The instances without a lease, by protected service.
fn kept(report: &LeaseReport) -> BTreeMap<String, usize> {
    let mut counts: BTreeMap<String, usize> =
        report.protected.iter().map(|service| (service.clone(), 0)).collect();
    for lease in report.leases.iter().filter(|lease| lease.left_ms == 0) {
        if let Some(count) = counts.get_mut(&lease.instance.service) {
            *count += 1;
        }
    }
    counts
}
