//! The instances of several registries that share a Redis 7: each serves everything.
//!
//! Every change is one script, which numbers it and appends it to a stream. Each registry follows the stream
//! ([`replica`]) and answers reads and open watches from what it has read, also while Redis is away. A watcher
//! that acknowledges is let in by Redis alone: a departure at another registry waits for it from then on. So
//! versions grow over all registries, and a watch is resumed at any of them. Leases are measured by Redis's clock; one
//! counts only time in which some registry swept.
//!
//! Every key begins with `{PREFIX}:`, where `PREFIX` is a setting, so all are in one slot of a cluster:
//!
//! | key | type | what |
//! |---|---|---|
//! | `epoch`, `version` | string | the first version and the last |
//! | `instances` | hash | instances as they registered (JSON), by `SERVICE/ID` |
//! | `lengths`, `draining`, `overrides` | hash | leases' lengths in milliseconds, who drains, what operators decided (JSON) |
//! | `leases` | sorted set | `SERVICE/ID` by the end of its lease (milliseconds) |
//! | `counts` | hash | number of instances by service |
//! | `protected`, `lifted` | set, hash | services whose ended leases are kept; those of which an operator has ended that, until when |
//! | `changes` | stream | the latest changes; an entry's id is its version |
//! | `departures` | stream | the latest departures |
//! | `watchers`, `seen` | hash, sorted set | what gateways have acknowledged; until when each is believed to be there |
//! | `join:ID` | string | uses of a join token, until it expires |
//! | `join:ID:REQUEST` | string | a request that used it, by its digest, for as long as it may be repeated |
//! | `clock` | string | the time of the last call |
//!
//! Nothing in it is secret. Without Redis no lease ends and nothing is registered; certificates are issued.
//! If it is emptied, instances register again within a heartbeat, and gateways keep the last known ones for a
//! lease, as after a restart of a registry that is alone.

mod entries;
mod replica;
mod server;
mod uses;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use async_trait::async_trait;
use chrono::TimeDelta;
use redis::FromRedisValue;
use tokio::sync::{Notify, watch as signal};
use tokio::time::timeout;
use tourin_chassis::health::Dependency;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::wire::{
    DepartureRecord, LeaseInfo, LeaseReport, LeaveRequest, OverrideRequest,
};
use tourin_registry_api::{Instance, Snapshot, Status};
use uuid::Uuid;

use self::entries::Entry;
pub(crate) use self::server::Redis;
pub use self::uses::RedisUses;
use crate::app::ports::{Store, StoreError, Unavailable};
use crate::domain::{
    AckState, CatalogueLimits, Key, LeaseError, LeaseState, Override, RegisterError, Session,
    Since, Swept, View,
};

/// How long a watcher is believed to be there without a word of its registry.
const BELIEVED: Duration = Duration::from_millis(5_000);
/// How often a registry says who watches there.
const SAY_EVERY: Duration = Duration::from_millis(1_000);
/// How soon a wait for acknowledgements looks again: they may arrive at another registry.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// How long a change may take to come back from the stream.
const SHOWN_WITHIN: Duration = Duration::from_millis(1_000);
const SWEEP: Duration = Duration::from_millis(100);

/// The instances, in Redis.
pub struct RedisStore {
    redis: Redis,
    limits: CatalogueLimits,
    view: Mutex<View>,
    /// Whether the view is that of Redis.
    is_loaded: AtomicBool,
    version: signal::Sender<u64>,
    progress: signal::Sender<()>,
    /// The sessions of watchers that are here, by name.
    here: Mutex<BTreeMap<String, String>>,
    /// The sessions that have left and of which Redis was not told yet.
    left: Mutex<Vec<(String, String)>>,
    has_left: Notify,
    /// Makes the numbers of sessions unique among registries.
    node: String,
    health: Dependency,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("redis", &self.redis.address).finish_non_exhaustive()
    }
}

impl RedisStore {
    /// A registry's store on a server. `health` says whether it has read the instances.
    pub(crate) fn new(redis: Redis, limits: CatalogueLimits, health: Dependency) -> Self {
        health.set_unready(format!("waiting for redis at {}", redis.address));
        Self {
            view: Mutex::new(View::new(0, limits.history)),
            redis,
            limits,
            is_loaded: AtomicBool::new(false),
            version: signal::Sender::new(0),
            progress: signal::Sender::new(()),
            here: Mutex::default(),
            left: Mutex::default(),
            has_left: Notify::new(),
            node: Uuid::new_v4().simple().to_string(),
            health,
        }
    }

    /// Waits until this registry shows a version, so that who made the change sees it here.
    async fn shown(&self, version: u64) -> u64 {
        let mut shown = self.version.subscribe();
        timeout(SHOWN_WITHIN, shown.wait_for(|shown| *shown >= version)).await.ok();
        version
    }

    /// The version that a script made; `None`: there is no lease.
    async fn changed(&self, version: Option<String>) -> Result<u64, StoreError<LeaseError>> {
        let version = version.ok_or(StoreError::Refused(LeaseError::Unknown))?;
        Ok(self.shown(number(&version)?).await)
    }

    fn session(&self, session: &Session) -> String {
        format!("{}.{}", self.node, session.number)
    }

    /// Calls the script of watchers.
    async fn of_watchers<T: FromRedisValue>(
        &self,
        act: &str,
        arguments: &[&str],
    ) -> Result<T, Unavailable> {
        let mut call = self.redis.call(&self.redis.scripts.watch);
        call.arg(act).arg(millis(BELIEVED)).arg(arguments);
        self.redis.run(&call).await
    }

    /// Says who watches here and who has left, until the end.
    async fn say(&self) {
        let mut due = tokio::time::interval(SAY_EVERY);
        loop {
            let said = tokio::select! {
                () = self.has_left.notified() => self.say_who_left().await,
                _ = due.tick() => self.say_who_is_here().await,
            };
            if let Err(error) = said {
                tracing::debug!(%error, "the watchers of this registry are not known to others");
            }
        }
    }

    async fn say_who_left(&self) -> Result<(), Unavailable> {
        let left = std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner));
        for (name, session) in left {
            // One that is not said is forgotten when it has not been kept for a while.
            self.of_watchers::<()>("leave", &[&name, &session]).await?;
        }
        Ok(())
    }

    async fn say_who_is_here(&self) -> Result<(), Unavailable> {
        let here = self.here.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let pairs: Vec<&str> =
            here.iter().flat_map(|(name, session)| [&**name, &**session]).collect();
        if pairs.is_empty() { Ok(()) } else { self.of_watchers("keep", &pairs).await }
    }

    async fn rows(&self, all: bool) -> Result<Leases, Unavailable> {
        let mut call = self.redis.call(&self.redis.scripts.leases);
        call.arg(u8::from(all));
        let (now, protected, lifted, rows): (String, Vec<String>, Vec<String>, Vec<Row>) =
            self.redis.run(&call).await?;
        let now: i64 = now.parse().map_err(anyhow::Error::from)?;
        let leases = rows.into_iter().map(|(id, ends, length, drains)| {
            anyhow::Ok(LeaseState {
                key: key(&id)?,
                left: TimeDelta::milliseconds(ends.parse::<i64>()? - now),
                length: TimeDelta::milliseconds(length.parse()?),
                drains: drains == "1",
            })
        });
        let leases = leases.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Leases { protected, lifted, leases })
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A row of the script of leases: the id, the end, the length, and whether it drains.
type Row = (String, String, String, String);

struct Leases {
    protected: Vec<String>,
    lifted: Vec<String>,
    leases: Vec<LeaseState>,
}

fn id_of(service: &str, id: &str) -> String {
    format!("{service}/{id}")
}

fn key(id: &str) -> anyhow::Result<Key> {
    let (service, id) =
        id.split_once('/').ok_or_else(|| anyhow!("redis: an id without a service"))?;
    Ok((service.to_owned(), id.to_owned()))
}

fn number(text: &str) -> Result<u64, Unavailable> {
    text.parse().context("redis: not a version").map_err(Unavailable)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, Unavailable> {
    serde_json::to_string(value).map_err(|error| Unavailable(error.into()))
}

#[async_trait]
impl Store for RedisStore {
    async fn has(&self, instance: &Instance) -> Result<bool, Unavailable> {
        self.ready()?;
        let snapshot = self.snapshot(Some(&instance.service));
        let is_it = |known: &Instance| known.id == instance.id && known.address == instance.address;
        Ok(snapshot.instances.iter().any(is_it))
    }

    async fn register(
        &self,
        instance: &Instance,
        length: TimeDelta,
    ) -> Result<u64, StoreError<RegisterError>> {
        let drains = instance.status == Status::Draining;
        // The script compares texts: whether it drains is not in this one.
        let stored = Instance { status: Status::Up, ..instance.clone() };
        let CatalogueLimits { instances, per_service, .. } = self.limits;
        let mut call = self.redis.call(&self.redis.scripts.register);
        call.arg(id_of(&instance.service, &instance.id)).arg(json(&stored)?);
        call.arg(u8::from(drains)).arg(instance.address.to_string());
        call.arg(length.num_milliseconds()).arg(instances).arg(per_service);
        let outcome: Vec<String> = self.redis.run(&call).await?;
        let outcome: Vec<&str> = outcome.iter().map(String::as_str).collect();
        match *outcome.as_slice() {
            ["ok", version] => Ok(self.shown(number(version)?).await),
            ["held", address] => {
                let held_by =
                    address.parse().map_err(|error| Unavailable(anyhow!("redis: {error}")))?;
                Err(StoreError::Refused(RegisterError::Held { held_by }))
            }
            ["full"] => Err(StoreError::Refused(RegisterError::Full { limit: instances })),
            ["service_full"] => {
                Err(StoreError::Refused(RegisterError::ServiceFull { limit: per_service }))
            }
            _ => Err(Unavailable(anyhow!("redis: the answer to a registration")).into()),
        }
    }

    async fn renew(&self, service: &str, id: &str) -> Result<(), StoreError<LeaseError>> {
        let mut call = self.redis.call(&self.redis.scripts.renew);
        match self.redis.run(call.arg(id_of(service, id))).await? {
            1 => Ok(()),
            _ => Err(StoreError::Refused(LeaseError::Unknown)),
        }
    }

    async fn drain(&self, service: &str, id: &str) -> Result<u64, StoreError<LeaseError>> {
        let mut call = self.redis.call(&self.redis.scripts.drain);
        let version = self.redis.run(call.arg(id_of(service, id))).await?;
        self.changed(version).await
    }

    async fn deregister(
        &self,
        service: &str,
        id: &str,
        said: Option<LeaveRequest>,
    ) -> Result<u64, StoreError<LeaseError>> {
        let said = said.map(|said| json(&said)).transpose()?.unwrap_or_default();
        let mut call = self.redis.call(&self.redis.scripts.deregister);
        let version = self.redis.run(call.arg(id_of(service, id)).arg(said)).await?;
        self.changed(version).await
    }

    async fn set_override(
        &self,
        (service, id): (&str, &str),
        request: &OverrideRequest,
    ) -> Result<u64, StoreError<LeaseError>> {
        let id = id_of(service, id);
        let mut known = String::new();
        loop {
            let before: Override = entries::decided(&known).map_err(Unavailable)?;
            let wanted = before.changed(request);
            let wanted = if wanted.is_empty() { String::new() } else { json(&wanted)? };
            let mut call = self.redis.call(&self.redis.scripts.decide);
            call.arg(&id).arg(&known).arg(wanted).arg(self.limits.instances);
            let (outcome, value): (String, String) = self.redis.run(&call).await?;
            match &*outcome {
                "ok" => return Ok(self.shown(number(&value)?).await),
                // Somebody else has decided meanwhile, or before.
                "other" => known = value,
                _ => return Err(StoreError::Refused(LeaseError::Unknown)),
            }
        }
    }

    async fn end_protection(&self, service: &str) -> Result<bool, Unavailable> {
        let mut call = self.redis.call(&self.redis.scripts.lift);
        let lifted: u8 = self.redis.run(call.arg(service)).await?;
        Ok(lifted == 1)
    }

    async fn sweep(&self) -> Result<Swept, Unavailable> {
        let Leases { protected, lifted, leases } = self.rows(false).await?;
        let is_lifted = |service: &str| lifted.iter().any(|lifted| lifted == service);
        let verdict = self.limits.protection.verdict(&leases, is_lifted);
        self.view().protect(verdict.protected.clone());
        let is_same = protected.into_iter().collect::<BTreeSet<_>>() == verdict.protected;
        if is_same && verdict.gone.is_empty() {
            return Ok(Swept::default());
        }
        let mut call = self.redis.call(&self.redis.scripts.sweep);
        call.arg(verdict.protected.len());
        for service in &verdict.protected {
            call.arg(service);
        }
        let known: BTreeMap<Key, Instance> = {
            let view = self.view();
            let known = view.instances().map(|i| ((i.service.clone(), i.id.clone()), i.clone()));
            known.collect()
        };
        for (service, id) in &verdict.gone {
            call.arg(id_of(service, id));
        }
        let (gone, protected, unprotected): (Vec<String>, Vec<String>, Vec<String>) =
            self.redis.run(&call).await?;
        let gone = gone.iter().filter_map(|id| known.get(&key(id).ok()?).cloned());
        Ok(Swept { gone: gone.collect(), protected, unprotected })
    }

    fn until_sweep(&self) -> Duration {
        SWEEP
    }

    async fn leases(&self, service: Option<&str>) -> Result<LeaseReport, Unavailable> {
        let rows = self.rows(true).await?;
        let Snapshot { version, instances, .. } = self.snapshot(service);
        let known = instances.into_iter().map(|i| ((i.service.clone(), i.id.clone()), i));
        let mut known: BTreeMap<Key, Instance> = known.collect();
        let leases = rows.leases.into_iter().filter_map(|lease| {
            let mut instance = known.remove(&lease.key)?;
            let left_ms = u64::try_from(lease.left.num_milliseconds()).unwrap_or(0);
            if left_ms == 0 {
                instance.status = Status::Expired;
            }
            Some((lease.key, LeaseInfo { instance, left_ms }))
        });
        let leases: BTreeMap<Key, LeaseInfo> = leases.collect();
        let is_wanted = |name: &String| service.is_none_or(|service| name == service);
        let protected = rows.protected.into_iter().filter(is_wanted).collect();
        Ok(LeaseReport { version, protected, leases: leases.into_values().collect() })
    }

    async fn departures(&self, service: Option<&str>) -> Result<Vec<DepartureRecord>, Unavailable> {
        let mut read = redis::cmd("XRANGE");
        read.arg(self.redis.key("departures")).arg("-").arg("+");
        let read = read.query_async(&mut self.redis.connection.clone()).await;
        let entries: Vec<Entry> = read.map_err(anyhow::Error::from)?;
        let records = entries.iter().map(entries::departure).collect::<anyhow::Result<Vec<_>>>()?;
        let is_wanted =
            |record: &DepartureRecord| service.is_none_or(|name| record.instance.service == name);
        Ok(records.into_iter().filter(is_wanted).collect())
    }

    fn ready(&self) -> Result<(), Unavailable> {
        if self.is_loaded.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Unavailable(anyhow!("waiting for redis at {}", self.redis.address)))
    }

    fn is_protecting(&self) -> bool {
        !self.view().protected().is_empty()
    }

    fn snapshot(&self, service: Option<&str>) -> Snapshot {
        self.view().snapshot(service)
    }

    fn since(&self, version: u64, epoch: u64) -> Since {
        self.view().since(version, epoch)
    }

    fn version(&self) -> signal::Receiver<u64> {
        self.version.subscribe()
    }

    async fn joined(&self, session: &Session) -> Result<(), Unavailable> {
        if let Some(name) = &session.name {
            let number = self.session(session);
            self.of_watchers::<()>("join", &[name, &number]).await?;
            let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
            here.insert(name.clone(), number);
        }
        Ok(())
    }

    fn left(&self, session: &Session) {
        let Some(name) = &session.name else { return };
        let number = self.session(session);
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        if here.get(name) == Some(&number) {
            here.remove(name);
        }
        drop(here);
        self.left.lock().unwrap_or_else(PoisonError::into_inner).push((name.clone(), number));
        self.has_left.notify_one();
        self.progress.send_replace(());
    }

    async fn acknowledge(&self, watcher: &str, version: u64) -> Result<bool, Unavailable> {
        let known: Vec<String> =
            self.of_watchers("acknowledge", &[watcher, &version.to_string()]).await?;
        self.progress.send_replace(());
        Ok(!known.is_empty())
    }

    async fn acks(&self, version: u64) -> Result<AckState, Unavailable> {
        let version = version.to_string();
        // The open ones first: who acknowledges in between is in both, and waited for once more.
        let open = self.of_watchers("open", &[&version]).await?;
        let done = self.of_watchers("done", &[&version]).await?;
        Ok(AckState { done, open })
    }

    async fn stop_waiting_for(&self, version: u64) -> Result<Vec<String>, Unavailable> {
        let late = self.of_watchers("skip", &[&version.to_string()]).await?;
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
        tokio::select! {
            () = stop.begun() => {}
            () = self.follow() => {}
            () = self.say() => {}
        }
    }
}
