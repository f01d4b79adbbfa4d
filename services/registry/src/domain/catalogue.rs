//! Instances, their leases, and the numbered changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use chrono::{DateTime, TimeDelta, Utc};
use tourin_registry_api::{ChangeKind, DownReason, Instance, Snapshot, Status};

use super::history::{History, Since};

/// Leases start anew when the registry was paused for longer than this, or the clock was set back by
/// more (see [`Catalogue`]).
const MAX_PAUSE: TimeDelta = TimeDelta::seconds(1);

/// Bounds of a [`Catalogue`].
#[derive(Clone, Copy, Debug)]
pub struct CatalogueLimits {
    /// Maximum number of instances.
    pub instances: usize,
    /// Maximum number of changes kept for watchers that resume.
    pub history: usize,
}

/// A registration that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The id belongs to a live lease of another address.
    #[error(
        "the id is held by a live instance at {held_by}; choose another id or wait for its lease to end"
    )]
    Held {
        /// The holder's address.
        held_by: SocketAddr,
    },
    /// The limit of instances is reached.
    #[error("the registry holds as many instances as it may ({limit})")]
    Full {
        /// The limit.
        limit: usize,
    },
}

/// No live lease has this service and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such instance")]
pub struct Unknown;

/// The registered instances, their leases, and the changes.
///
/// - An instance is registered until its lease ends or it leaves. A lease ends exactly its length after
///   the last registration or renewal.
/// - A service and id belong to one address at a time. That address may register again, also with other
///   metadata; another one only after the lease has ended.
/// - Every difference is one change with the next version. A renewal, or the same registration again,
///   is no change. The changes after a version, applied to the state at that version, give the
///   current state.
/// - A lease counts only time in which the registry ran. If no call came for more than a second (the
///   machine slept, the process was stopped), or the clock was set back by more than that, every lease
///   starts anew, because instances could not renew. The sweeper calls ten times a second.
#[derive(Debug)]
pub struct Catalogue {
    leases: BTreeMap<(String, String), Lease>,
    history: History,
    limits: CatalogueLimits,
    last_call: DateTime<Utc>,
}

#[derive(Debug)]
struct Lease {
    instance: Instance,
    length: TimeDelta,
    ends_at: DateTime<Utc>,
}

impl Catalogue {
    /// An empty catalogue. Its epoch and first version is `now` in microseconds since the Unix epoch.
    pub fn new(limits: CatalogueLimits, now: DateTime<Utc>) -> Self {
        // Version 0 means unknown; a clock before 1970 must not give it.
        let epoch = u64::try_from(now.timestamp_micros()).unwrap_or(0).max(1);
        Self {
            leases: BTreeMap::new(),
            history: History::new(epoch, limits.history),
            limits,
            last_call: now,
        }
    }

    /// The version of the last change; the epoch before the first.
    pub fn version(&self) -> u64 {
        self.history.version()
    }

    /// Registers an instance, or renews its lease if nothing about it has changed. Gives a version that
    /// includes it.
    ///
    /// # Errors
    /// [`RegisterError`] when another address holds the id, or the limit is reached.
    pub fn register(
        &mut self,
        instance: Instance,
        length: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<u64, RegisterError> {
        self.expire(now);
        let key = (instance.service.clone(), instance.id.clone());
        let ends_at = now + length;
        if let Some(lease) = self.leases.get_mut(&key) {
            if lease.instance.address != instance.address {
                return Err(RegisterError::Held { held_by: lease.instance.address });
            }
            (lease.length, lease.ends_at) = (length, ends_at);
            if lease.instance == instance {
                return Ok(self.version());
            }
            lease.instance = instance.clone();
        } else if self.leases.len() >= self.limits.instances {
            return Err(RegisterError::Full { limit: self.limits.instances });
        } else {
            self.leases.insert(key, Lease { instance: instance.clone(), length, ends_at });
        }
        let kind = match instance.status {
            Status::Up => ChangeKind::Up,
            Status::Draining => ChangeKind::Draining,
        };
        self.history.record(kind, instance);
        Ok(self.version())
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// [`Unknown`] when there is no such live lease.
    pub fn renew(&mut self, service: &str, id: &str, now: DateTime<Utc>) -> Result<(), Unknown> {
        self.expire(now);
        let lease = self.leases.get_mut(&key(service, id)).ok_or(Unknown)?;
        lease.ends_at = now + lease.length;
        Ok(())
    }

    /// Marks an instance as draining; its lease continues. Gives a version that includes the change.
    ///
    /// # Errors
    /// [`Unknown`] when there is no such live lease.
    pub fn drain(&mut self, service: &str, id: &str, now: DateTime<Utc>) -> Result<u64, Unknown> {
        self.expire(now);
        let lease = self.leases.get_mut(&key(service, id)).ok_or(Unknown)?;
        if lease.instance.status != Status::Draining {
            lease.instance.status = Status::Draining;
            self.history.record(ChangeKind::Draining, lease.instance.clone());
        }
        Ok(self.version())
    }

    /// Removes an instance at once. Gives the version of that change.
    ///
    /// # Errors
    /// [`Unknown`] when there is no such live lease.
    pub fn deregister(
        &mut self,
        service: &str,
        id: &str,
        now: DateTime<Utc>,
    ) -> Result<u64, Unknown> {
        self.expire(now);
        let lease = self.leases.remove(&key(service, id)).ok_or(Unknown)?;
        let reason = DownReason::Left;
        self.history.record(ChangeKind::Down { reason }, lease.instance);
        Ok(self.version())
    }

    /// Removes the instances whose leases have ended, and gives them.
    pub fn expire(&mut self, now: DateTime<Utc>) -> Vec<Instance> {
        let pause = now - self.last_call;
        self.last_call = now;
        if pause.abs() > MAX_PAUSE {
            for lease in self.leases.values_mut() {
                lease.ends_at = now + lease.length;
            }
            return Vec::new();
        }
        let ended = self.leases.extract_if(.., |_, lease| lease.ends_at <= now);
        let gone: Vec<Instance> = ended.map(|(_, lease)| lease.instance).collect();
        for instance in &gone {
            let reason = DownReason::Expired;
            self.history.record(ChangeKind::Down { reason }, instance.clone());
        }
        gone
    }

    /// When the next lease ends.
    pub fn next_expiry(&self) -> Option<DateTime<Utc>> {
        self.leases.values().map(|lease| lease.ends_at).min()
    }

    /// The instances of all services or of one.
    pub fn snapshot(&self, service: Option<&str>) -> Snapshot {
        let instances = self
            .leases
            .values()
            .map(|lease| &lease.instance)
            .filter(|instance| service.is_none_or(|service| instance.service == service))
            .cloned()
            .collect();
        Snapshot { epoch: self.history.epoch(), version: self.version(), instances }
    }

    /// How a watcher that has `version` of `epoch` (0: unknown) catches up.
    pub fn since(&self, version: u64, epoch: u64) -> Since {
        self.history.since(version, epoch)
    }
}

fn key(service: &str, id: &str) -> (String, String) {
    (service.to_owned(), id.to_owned())
}

#[cfg(test)]
mod tests;
