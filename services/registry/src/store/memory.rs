//! The instances of a registry that is alone. After a restart they register again within a heartbeat. What
//! operators decided is in a file, because nobody would say it again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch as signal;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::wire::{DepartureRecord, LeaseReport, LeaveRequest, OverrideRequest};
use tourin_registry_api::{Instance, Snapshot};

use crate::app::ports::{Store, StoreError, Unavailable};
use crate::authority::{read_private, write_private};
use crate::domain::{
    AckState, Acks, Catalogue, CatalogueLimits, Key, LeaseError, Override, RegisterError, Session,
    Since, Swept,
};

/// A wait for acknowledgements is woken by each, so it need not look again by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
const NO_LEASE: Duration = Duration::from_secs(60);

/// The instances, in memory.
pub struct MemoryStore {
    state: Mutex<State>,
    clock: SharedClock,
    version: signal::Sender<u64>,
    progress: signal::Sender<()>,
    /// The file of overrides.
    file: PathBuf,
    /// Held by who writes it.
    writing: tokio::sync::Mutex<()>,
}

struct State {
    catalogue: Catalogue,
    acks: Acks,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("file", &self.file).finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// No instances, and the overrides in `file`. The epoch is the current time.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn open(
        limits: CatalogueLimits,
        clock: SharedClock,
        file: PathBuf,
    ) -> anyhow::Result<Self> {
        let overrides = read(&file).with_context(|| format!("{}", file.display()))?;
        let catalogue = Catalogue::new(limits, clock.now()).with_overrides(overrides);
        Ok(Self {
            version: signal::Sender::new(catalogue.version()),
            progress: signal::Sender::new(()),
            state: Mutex::new(State { catalogue, acks: Acks::default() }),
            clock,
            file,
            writing: tokio::sync::Mutex::default(),
        })
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

    /// Writes the overrides to their file.
    async fn save(&self) -> Result<(), Unavailable> {
        let _writing = self.writing.lock().await;
        let overrides: BTreeMap<String, Override> = {
            let state = self.state();
            let known = state.catalogue.overrides().iter();
            known.map(|((service, id), decided)| (format!("{service}/{id}"), *decided)).collect()
        };
        let file = self.file.clone();
        let written = tokio::task::spawn_blocking(move || {
            write_private(&file, &serde_json::to_string(&overrides)?)
        });
        written.await.map_err(anyhow::Error::from)??;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave the catalogue half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(file: &Path) -> anyhow::Result<BTreeMap<Key, Override>> {
    if !file.exists() {
        return Ok(BTreeMap::new());
    }
    let known: BTreeMap<String, Override> = serde_json::from_str(&read_private(file)?)?;
    let keys = known.into_iter().filter_map(|(of, decided)| {
        let (service, id) = of.split_once('/')?;
        Some(((service.to_owned(), id.to_owned()), decided))
    });
    Ok(keys.collect())
}

#[async_trait]
impl Store for MemoryStore {
    async fn has(&self, instance: &Instance) -> Result<bool, Unavailable> {
        Ok(self.state().catalogue.has(instance))
    }

    async fn register(
        &self,
        instance: &Instance,
        length: TimeDelta,
    ) -> Result<u64, StoreError<RegisterError>> {
        self.change(|catalogue, now| catalogue.register(instance.clone(), length, now))
            .map_err(StoreError::Refused)
    }

    async fn renew(&self, service: &str, id: &str) -> Result<(), StoreError<LeaseError>> {
        self.change(|catalogue, now| catalogue.renew(service, id, now)).map_err(StoreError::Refused)
    }

    async fn drain(&self, service: &str, id: &str) -> Result<u64, StoreError<LeaseError>> {
        self.change(|catalogue, now| catalogue.drain(service, id, now)).map_err(StoreError::Refused)
    }

    async fn deregister(
        &self,
        service: &str,
        id: &str,
        said: Option<LeaveRequest>,
    ) -> Result<u64, StoreError<LeaseError>> {
        let (was_overridden, left) = self.change(|catalogue, now| {
            let before = catalogue.overrides().len();
            let left = catalogue.deregister(service, id, said, now);
            (catalogue.overrides().len() < before, left)
        });
        if was_overridden {
            self.save().await?;
        }
        left.map_err(StoreError::Refused)
    }

    async fn set_override(
        &self,
        of: (&str, &str),
        request: &OverrideRequest,
    ) -> Result<u64, StoreError<LeaseError>> {
        let set = self.change(|catalogue, now| catalogue.set_override(of, request, now));
        let version = set.map_err(StoreError::Refused)?;
        self.save().await?;
        Ok(version)
    }

    async fn end_protection(&self, service: &str) -> Result<bool, Unavailable> {
        Ok(self.change(|catalogue, now| catalogue.end_protection(service, now)))
    }

    async fn sweep(&self) -> Result<Swept, Unavailable> {
        Ok(self.change(Catalogue::sweep))
    }

    fn until_sweep(&self) -> Duration {
        let next = self.state().catalogue.next_expiry();
        next.map_or(NO_LEASE, |at| (at - self.clock.now()).to_std().unwrap_or_default())
    }

    async fn leases(&self, service: Option<&str>) -> Result<LeaseReport, Unavailable> {
        Ok(self.change(|catalogue, now| catalogue.report(service, now)))
    }

    async fn departures(&self, service: Option<&str>) -> Result<Vec<DepartureRecord>, Unavailable> {
        Ok(self.state().catalogue.departures(service))
    }

    fn ready(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn is_protecting(&self) -> bool {
        !self.state().catalogue.view().protected().is_empty()
    }

    fn snapshot(&self, service: Option<&str>) -> Snapshot {
        self.state().catalogue.view().snapshot(service)
    }

    fn since(&self, version: u64, epoch: u64) -> Since {
        self.state().catalogue.view().since(version, epoch)
    }

    fn version(&self) -> signal::Receiver<u64> {
        self.version.subscribe()
    }

    async fn joined(&self, session: &Session) -> Result<(), Unavailable> {
        if let Some(name) = &session.name {
            self.state().acks.join(name, session.number);
        }
        Ok(())
    }

    fn left(&self, session: &Session) {
        if let Some(name) = &session.name {
            self.state().acks.leave(name, session.number);
            self.progress.send_replace(());
        }
    }

    async fn acknowledge(&self, watcher: &str, version: u64) -> Result<bool, Unavailable> {
        let known = self.state().acks.acknowledge(watcher, version);
        if known {
            self.progress.send_replace(());
        }
        Ok(known)
    }

    async fn acks(&self, version: u64) -> Result<AckState, Unavailable> {
        Ok(self.state().acks.state(version))
    }

    async fn stop_waiting_for(&self, version: u64) -> Result<Vec<String>, Unavailable> {
        let late = self.state().acks.stop_waiting_for(version);
        self.progress.send_replace(());
        Ok(late)
    }

    fn progress(&self) -> signal::Receiver<()> {
        self.progress.subscribe()
    }

    fn look_again(&self) -> Duration {
        LOOK_AGAIN
    }

    async fn keep(&self, stop: Shutdown) {
        stop.begun().await;
    }
}
