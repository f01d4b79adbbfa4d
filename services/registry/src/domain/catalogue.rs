//! Instances, their leases, and the numbered changes.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use tourin_registry_api::wire::{
    DepartureRecord, LeaseInfo, LeaseReport, LeaveRequest, OverrideRequest,
};
use tourin_registry_api::{ChangeKind, DownReason, Instance, Status};

use super::departures::Departures;
use super::overrides::Override;
use super::protection::{LeaseState, ProtectionRule, Verdict};
use super::refusals::{LeaseError, RegisterError};
use super::view::{Key, View};

/// Leases start anew when the registry was paused for longer than this, or the clock was set back by
/// more (see [`Catalogue`]).
pub const MAX_PAUSE: TimeDelta = TimeDelta::seconds(1);

/// Bounds of a [`Catalogue`].
#[derive(Clone, Copy, Debug)]
pub struct CatalogueLimits {
    /// Maximum number of instances.
    pub instances: usize,
    /// Maximum number of instances of one service, so that one cannot use up all.
    pub per_service: usize,
    /// Maximum number of changes kept for watchers that resume.
    pub history: usize,
    /// When ended leases are kept.
    pub protection: ProtectionRule,
}

/// What a sweep has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Instances that are gone because their leases have ended.
    pub gone: Vec<Instance>,
    /// Services whose ended leases are kept from now on.
    pub protected: Vec<String>,
    /// Services of which that is not so any more.
    pub unprotected: Vec<String>,
}

/// The registered instances, their leases, and the changes.
///
/// - An instance is registered until its lease ends or it leaves. A lease ends exactly its length after
///   the last registration or renewal. The instances of a protected service stay for longer: see
///   [`ProtectionRule`].
/// - A service and id belong to one address at a time. That address may register again, also with other
///   metadata; another one only after the lease has ended.
/// - An operator's [`Override`] changes how everybody sees an instance.
/// - A change is one of what an instance registers, of whether it drains, or of what an operator decides;
///   also one that the operator's decision hides. A renewal, or the same again, is no change. See [`View`].
/// - A lease counts only time in which the registry ran. If no call came for more than a second (the
///   machine slept, the process was stopped), or the clock was set back by more than that, every lease
///   starts anew, because instances could not renew. The sweeper calls ten times a second.
#[derive(Debug)]
pub struct Catalogue {
    leases: BTreeMap<Key, Lease>,
    overrides: BTreeMap<Key, Override>,
    departures: Departures,
    view: View,
    limits: CatalogueLimits,
    last_call: DateTime<Utc>,
    swept: Swept,
    /// Services that an operator has ended the protection of, and until when there is none.
    unprotected_until: BTreeMap<String, DateTime<Utc>>,
}

#[derive(Debug)]
struct Lease {
    /// As it registered.
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
            overrides: BTreeMap::new(),
            departures: Departures::default(),
            view: View::new(epoch, limits.history),
            limits,
            last_call: now,
            swept: Swept::default(),
            unprotected_until: BTreeMap::new(),
        }
    }

    /// The same with overrides from before.
    #[must_use]
    pub fn with_overrides(self, overrides: BTreeMap<Key, Override>) -> Self {
        Self { overrides, ..self }
    }

    /// The instances as everybody sees them.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The version of the last change; the epoch before the first.
    pub fn version(&self) -> u64 {
        self.view.version()
    }

    /// Whether the id has a live lease at this address.
    pub fn has(&self, instance: &Instance) -> bool {
        let lease = self.leases.get(&key(&instance.service, &instance.id));
        lease.is_some_and(|lease| lease.instance.address == instance.address)
    }

    /// Registers an instance, or renews its lease if nothing about it has changed. Gives a version that
    /// includes it.
    ///
    /// # Errors
    /// [`RegisterError`] when another address holds the id, or a limit is reached.
    pub fn register(
        &mut self,
        instance: Instance,
        length: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<u64, RegisterError> {
        self.update(now);
        let key = key(&instance.service, &instance.id);
        let CatalogueLimits { instances, per_service, .. } = self.limits;
        match self.leases.get(&key) {
            // One that is kept without a lease holds nothing.
            Some(lease) if lease.ends_at <= now => {}
            Some(lease) if lease.instance.address != instance.address => {
                return Err(RegisterError::Held { held_by: lease.instance.address });
            }
            Some(_) => {}
            None if self.leases.len() >= instances => {
                return Err(RegisterError::Full { limit: instances });
            }
            None if self.of_service(&instance.service).count() >= per_service => {
                return Err(RegisterError::ServiceFull { limit: per_service });
            }
            None => {}
        }
        let is_known = self.leases.get(&key).is_some_and(|lease| lease.instance == instance);
        self.leases.insert(key.clone(), Lease { instance, length, ends_at: now + length });
        if !is_known {
            self.show(key);
        }
        Ok(self.version())
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// [`LeaseError::Unknown`].
    pub fn renew(&mut self, service: &str, id: &str, now: DateTime<Utc>) -> Result<(), LeaseError> {
        self.update(now);
        let lease = self.leases.get_mut(&key(service, id)).ok_or(LeaseError::Unknown)?;
        lease.ends_at = now + lease.length;
        Ok(())
    }

    /// Marks an instance as draining; its lease continues. Gives a version that includes the change.
    ///
    /// # Errors
    /// [`LeaseError::Unknown`].
    pub fn drain(
        &mut self,
        service: &str,
        id: &str,
        now: DateTime<Utc>,
    ) -> Result<u64, LeaseError> {
        self.update(now);
        let key = key(service, id);
        let lease = self.leases.get_mut(&key).ok_or(LeaseError::Unknown)?;
        if lease.instance.status != Status::Draining {
            lease.instance.status = Status::Draining;
            self.show(key);
        }
        Ok(self.version())
    }

    /// Removes an instance at once, with what it `said`. Gives the version of that change.
    ///
    /// # Errors
    /// [`LeaseError::Unknown`].
    pub fn deregister(
        &mut self,
        service: &str,
        id: &str,
        said: Option<LeaveRequest>,
        now: DateTime<Utc>,
    ) -> Result<u64, LeaseError> {
        self.update(now);
        let key = key(service, id);
        self.leases.remove(&key).ok_or(LeaseError::Unknown)?;
        self.overrides.remove(&key);
        self.depart(&key, DownReason::Left, said, now);
        Ok(self.version())
    }

    /// Changes what an operator decides about an instance. Gives a version that includes the change.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn set_override(
        &mut self,
        (service, id): (&str, &str),
        request: &OverrideRequest,
        now: DateTime<Utc>,
    ) -> Result<u64, LeaseError> {
        self.update(now);
        let key = key(service, id);
        if !self.leases.contains_key(&key) {
            return Err(LeaseError::Unknown);
        }
        let known = self.overrides.get(&key).copied();
        let wanted = known.unwrap_or_default().changed(request);
        if wanted == known.unwrap_or_default() {
            return Ok(self.version());
        }
        if wanted.is_empty() {
            self.overrides.remove(&key);
        } else {
            if known.is_none() && self.overrides.len() >= self.limits.instances {
                // There are not so many leases: some are of instances that have not come back.
                let leases = &self.leases;
                self.overrides.retain(|key, _| leases.contains_key(key));
            }
            self.overrides.insert(key.clone(), wanted);
        }
        self.show(key);
        Ok(self.version())
    }

    /// What operators have decided.
    pub fn overrides(&self) -> &BTreeMap<Key, Override> {
        &self.overrides
    }

    /// Ends the protection of a service, for as long as its longest lease. False if there is none.
    pub fn end_protection(&mut self, service: &str, now: DateTime<Utc>) -> bool {
        self.update(now);
        if !self.view.protected().contains(service) {
            return false;
        }
        let longest = self.of_service(service).map(|lease| lease.length).max();
        self.unprotected_until.insert(service.to_owned(), now + longest.unwrap_or_default());
        true
    }

    /// Removes the instances whose leases have ended, but those of protected services. Gives what has
    /// happened since the last sweep.
    pub fn sweep(&mut self, now: DateTime<Utc>) -> Swept {
        self.update(now);
        std::mem::take(&mut self.swept)
    }

    fn update(&mut self, now: DateTime<Utc>) {
        let pause = now - self.last_call;
        self.last_call = now;
        if pause.abs() > MAX_PAUSE {
            for lease in self.leases.values_mut() {
                lease.ends_at = now + lease.length;
            }
            return;
        }
        self.unprotected_until.retain(|_, until| *until > now);
        // Nearly always: each renewal comes by here, and the verdict's list of all leases costs much more.
        let none_ended = self.leases.values().all(|lease| lease.ends_at > now);
        if none_ended && self.view.protected().is_empty() {
            return;
        }
        let leases = self.leases.iter().map(|(key, lease)| LeaseState {
            key: key.clone(),
            left: lease.ends_at - now,
            length: lease.length,
            drains: lease.instance.status == Status::Draining,
        });
        let leases: Vec<LeaseState> = leases.collect();
        let is_lifted = |service: &str| self.unprotected_until.contains_key(service);
        let Verdict { gone, protected } = self.limits.protection.verdict(&leases, is_lifted);
        let before = self.view.protected();
        self.swept.protected.extend(protected.difference(before).cloned());
        self.swept.unprotected.extend(before.difference(&protected).cloned());
        for key in gone {
            self.leases.remove(&key);
            let gone = self.depart(&key, DownReason::Expired, None, now);
            self.swept.gone.extend(gone);
        }
        self.view.protect(protected);
    }

    /// When the next lease ends, of those that had not ended at the last call.
    pub fn next_expiry(&self) -> Option<DateTime<Utc>> {
        let ends = self.leases.values().map(|lease| lease.ends_at);
        ends.filter(|end| *end > self.last_call).min()
    }

    /// The leases of all services or of one.
    pub fn report(&self, service: Option<&str>, now: DateTime<Utc>) -> LeaseReport {
        let is_wanted = |key: &Key| service.is_none_or(|service| key.0 == service);
        let leases = self.leases.iter().filter(|(key, _)| is_wanted(key));
        LeaseReport {
            version: self.version(),
            protected: self.view.snapshot(service).protected,
            leases: leases.map(|(key, lease)| self.lease_info(key, lease, now)).collect(),
        }
    }

    fn lease_info(&self, key: &Key, lease: &Lease, now: DateTime<Utc>) -> LeaseInfo {
        let mut instance = self.seen(key, lease);
        let left_ms = u64::try_from((lease.ends_at - now).num_milliseconds()).unwrap_or(0);
        if left_ms == 0 {
            instance.status = Status::Expired;
        }
        LeaseInfo { instance, left_ms }
    }

    /// The latest departures of all services or of one.
    pub fn departures(&self, service: Option<&str>) -> Vec<DepartureRecord> {
        self.departures.list(service)
    }

    fn of_service(&self, service: &str) -> impl Iterator<Item = &Lease> {
        let first = key(service, "");
        let of_it = self.leases.range(first..).take_while(move |(key, _)| key.0 == service);
        of_it.map(|(_, lease)| lease)
    }

    fn seen(&self, key: &Key, lease: &Lease) -> Instance {
        let decided = self.overrides.get(key).copied().unwrap_or_default();
        decided.applied(lease.instance.clone())
    }

    /// Makes an instance visible as it is now.
    fn show(&mut self, key: Key) {
        if let Some(lease) = self.leases.get(&key) {
            let seen = self.seen(&key, lease);
            self.view.show(key, seen);
        }
    }

    fn depart(
        &mut self,
        key: &Key,
        reason: DownReason,
        said: Option<LeaveRequest>,
        now: DateTime<Utc>,
    ) -> Option<Instance> {
        let instance = self.view.remove(key, ChangeKind::Down { reason })?;
        let at_ms = now.timestamp_millis();
        self.departures.add(DepartureRecord { at_ms, instance: instance.clone(), reason, said });
        Some(instance)
    }
}

fn key(service: &str, id: &str) -> Key {
    (service.to_owned(), id.to_owned())
}

#[cfg(test)]
mod tests;
