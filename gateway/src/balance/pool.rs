//! The instances of one service, and the choice among them.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::Serialize;
use tourin_registry_api::{Instance, MAX_WEIGHT, VERSION, ZONE};

use super::schedule::{Ring, Schedule};
use super::{Policy, PoolSettings};
use crate::outliers::{Group, Health, HealthReport};
use crate::retries::RetryBudget;

/// Random choices before the members are gone through one by one.
const DRAWS: usize = 8;
/// Points of the ring that are looked at for an instance that may be chosen.
const RING_STEPS: usize = 4_096;
/// By how much the instances left in the own zone may be overloaded before requests spill over: Envoy's
/// overprovisioning factor (per cent).
const OVERPROVISIONING: u64 = 140;
/// The least share of a new instance (per cent), as Envoy's `min_weight_percent`.
const SLOW_START_FROM: u64 = 10;

/// An instance in a pool.
#[derive(Debug)]
pub struct Member {
    /// The instance.
    pub instance: Instance,
    /// Keeps its connections apart from those of another instance at the same address.
    pub connection_group: u64,
    /// Its health, which outlives changes of its metadata.
    pub health: Arc<Health>,
    weight: u32,
    is_near: bool,
}

impl Member {
    fn new(instance: Instance, health: Arc<Health>, zone: Option<&str>) -> Self {
        let its_zone = instance.metadata.get(ZONE).map(String::as_str);
        let is_near = zone.is_some() && its_zone == zone;
        let mut id = DefaultHasher::new();
        instance.id.hash(&mut id);
        Self {
            connection_group: id.finish(),
            weight: instance.weight().min(MAX_WEIGHT),
            is_near,
            health,
            instance,
        }
    }

    /// Whether its share of requests is not yet, or not now, its full one: chance decides.
    fn is_held_back(&self, slow_start: Duration) -> bool {
        let Some(warm_for) = self.health.warm_for() else { return false };
        let whole = u64::try_from(slow_start.as_millis()).unwrap_or(u64::MAX);
        let so_far = u64::try_from(warm_for.as_millis()).unwrap_or(u64::MAX);
        if so_far >= whole {
            self.health.warmed_up();
            return false;
        }
        let share = (so_far * 100 / whole).max(SLOW_START_FROM);
        rand::random_range(0..100) >= share
    }
}

/// The members of a pool at one version of the registry.
struct Members {
    /// What it was made of, by which a change is noticed.
    source: Arc<[Instance]>,
    list: Box<[Arc<Member>]>,
    schedules: [Schedule; 3],
    /// Made when a route hashes.
    ring: OnceLock<Ring>,
}

/// Index of a schedule.
const ALL: usize = 0;
const NEAR: usize = 1;
const FAR: usize = 2;

impl Members {
    fn new(source: Arc<[Instance]>, list: Vec<Arc<Member>>) -> Self {
        let schedule = |is_in: &dyn Fn(&Member) -> bool| {
            let members = (0_u32..).zip(&list).filter(|(_, member)| is_in(member));
            Schedule::new(members.map(|(index, member)| (index, member.weight)))
        };
        let has_both =
            list.iter().any(|member| member.is_near) && list.iter().any(|member| !member.is_near);
        let schedules = [
            schedule(&|_| true),
            schedule(&|member| has_both && member.is_near),
            schedule(&|member| has_both && !member.is_near),
        ];
        Self { source, list: list.into(), schedules, ring: OnceLock::new() }
    }

    fn ring(&self) -> &Ring {
        self.ring.get_or_init(|| {
            Ring::new(self.list.iter().map(|member| (member.instance.address, member.weight)))
        })
    }
}

/// Which members may be chosen for an attempt.
pub struct Candidates<'a> {
    /// What is hashed, if the policy hashes.
    pub key: Option<&'a [u8]>,
    /// Those that have failed this request.
    pub excluded: &'a [Arc<Member>],
    /// Whether an instance fits, such as by its version.
    pub accepts: &'a (dyn Fn(&Instance) -> bool + Sync),
}

impl Candidates<'_> {
    /// All members.
    pub const ANY: Candidates<'static> =
        Candidates { key: None, excluded: &[], accepts: &|_| true };

    fn include(&self, member: &Member) -> bool {
        let same = |one: &Arc<Member>| one.instance.id == member.instance.id;
        !self.excluded.iter().any(same) && (self.accepts)(&member.instance)
    }
}

/// The instances of one service with what is remembered of them.
pub struct ServicePool {
    name: Arc<str>,
    zone: Option<String>,
    slow_start: Duration,
    members: ArcSwap<Members>,
    /// Round robin by schedule.
    turns: [AtomicUsize; 3],
    /// The share of requests that stay in the own zone (per mille).
    near_share: AtomicU32,
    group: Arc<Group>,
    /// The service's retries.
    pub budget: RetryBudget,
}

impl fmt::Debug for ServicePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.members.load();
        let ids: Vec<_> = members.list.iter().map(|member| &member.instance.id).collect();
        f.debug_struct("ServicePool").field("name", &self.name).field("members", &ids).finish()
    }
}

impl ServicePool {
    /// An empty pool.
    pub fn new(name: &str, settings: &PoolSettings, group: Group) -> Self {
        Self {
            name: name.into(),
            zone: settings.zone.clone(),
            slow_start: settings.balance.slow_start(),
            members: ArcSwap::from_pointee(Members::new(Arc::default(), Vec::new())),
            turns: Default::default(),
            near_share: AtomicU32::new(1_000),
            group: Arc::new(group),
            budget: RetryBudget::new(&settings.retries),
        }
    }

    /// The service's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its members have in common: how many are ejected, and its counters.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// How many members it has.
    pub fn len(&self) -> usize {
        self.members.load().list.len()
    }

    /// Whether it has no member.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes over the service's instances. What is remembered of an instance is kept for its id and
    /// address.
    pub fn update(&self, source: &Arc<[Instance]>) {
        let before = self.members.load();
        if Arc::ptr_eq(&before.source, source) {
            return;
        }
        let is_first = before.list.is_empty();
        let mut known: std::collections::HashMap<&str, &Arc<Member>> =
            before.list.iter().map(|member| (member.instance.id.as_str(), member)).collect();
        let list = source.iter().map(|instance| match known.remove(instance.id.as_str()) {
            Some(member) if member.instance == *instance => Arc::clone(member),
            Some(member) if member.instance.address == instance.address => {
                let health = Arc::clone(&member.health);
                Arc::new(Member::new(instance.clone(), health, self.zone.as_deref()))
            }
            _ => {
                let health = Arc::new(Health::new(&instance.id, Arc::clone(&self.group)));
                // Nobody warms up when nobody could take the load meanwhile.
                if !is_first && !self.slow_start.is_zero() {
                    health.warm_up();
                }
                Arc::new(Member::new(instance.clone(), health, self.zone.as_deref()))
            }
        });
        let members = Members::new(Arc::clone(source), list.collect());
        if before.ring.get().is_some() {
            members.ring();
        }
        self.members.store(Arc::new(members));
        self.recount();
    }

    /// Counts the members that are not up, and decides what share of requests stays in the own zone.
    pub fn recount(&self) {
        let members = self.members.load();
        self.group.recount(members.list.iter().map(|member| &*member.health));
        if members.schedules[NEAR].is_empty() {
            return;
        }
        let near = || members.list.iter().filter(|member| member.is_near);
        let weight = |member: &Arc<Member>| u64::from(member.weight);
        let (whole, up): (u64, u64) =
            (near().map(weight).sum(), near().filter(|one| one.health.is_up()).map(weight).sum());
        let share = (up * OVERPROVISIONING * 10).checked_div(whole).unwrap_or(0).min(1_000);
        self.near_share.store(u32::try_from(share).unwrap_or(1_000), Ordering::Relaxed);
    }

    /// The instance for an attempt. Ejected ones are passed over. In a panic, when too few are left, those
    /// are used again that a health check has not found to be unreachable. A first attempt gets an
    /// instance as long as there is any.
    pub fn pick(&self, policy: &Policy, candidates: &Candidates<'_>) -> Option<Arc<Member>> {
        let members = self.members.load();
        if members.list.is_empty() {
            return None;
        }
        let is_panic = self.group.is_panic();
        let may = |member: &Member| {
            let health = &member.health;
            (health.is_up() || is_panic && !health.is_unreachable()) && candidates.include(member)
        };
        let found = match (policy, candidates.key) {
            (Policy::Hash(_), Some(key)) => {
                let mut found = members.ring().at_key(key).take(RING_STEPS);
                found.find(|index| may(&members.list[*index]))
            }
            (Policy::LeastRequests, _) => self.least_requests(&members, &may),
            _ => self.round_robin(&members, &may),
        };
        let found = found.or_else(|| one_of(&members, may)).or_else(|| {
            // A retry at an instance that is down would be wasted.
            let is_first = candidates.excluded.is_empty();
            let any = || {
                one_of(&members, |one| !one.health.is_unreachable() && candidates.include(one))
                    .or_else(|| one_of(&members, |one| candidates.include(one)))
            };
            is_first.then(any).flatten()
        })?;
        Some(Arc::clone(&members.list[found]))
    }

    /// Whether there is another instance than `member` that is up.
    pub fn has_another(&self, member: &Member) -> bool {
        let members = self.members.load();
        let is_other = |one: &Arc<Member>| one.instance.id != member.instance.id;
        members.list.iter().any(|one| one.health.is_up() && is_other(one))
    }

    fn round_robin(&self, members: &Members, may: &dyn Fn(&Member) -> bool) -> Option<usize> {
        let which = self.schedule(members);
        let schedule = &members.schedules[which];
        if schedule.is_empty() {
            return None;
        }
        let fits = |index: &usize| {
            let member = &members.list[*index];
            may(member) && !member.is_held_back(self.slow_start)
        };
        let turn = schedule.at(self.turns[which].fetch_add(1, Ordering::Relaxed));
        let draw = || (0..DRAWS).map(|_| schedule.at(rand::random::<u32>() as usize)).find(&fits);
        Some(turn).filter(fits).or_else(draw)
    }

    fn least_requests(&self, members: &Members, may: &dyn Fn(&Member) -> bool) -> Option<usize> {
        let schedule = &members.schedules[self.schedule(members)];
        if schedule.is_empty() {
            return None;
        }
        let fits = |index: &usize| {
            let member = &members.list[*index];
            may(member) && !member.is_held_back(self.slow_start)
        };
        let draw = || schedule.at(rand::random::<u32>() as usize);
        let one = (0..DRAWS).map(|_| draw()).find(&fits)?;
        let other = (0..DRAWS).map(|_| draw()).find(|index| *index != one && fits(index));
        let load = |index: usize| {
            let member = &members.list[index];
            (member.health.in_flight() as u64 + 1, u64::from(member.weight.max(1)))
        };
        Some(match other {
            Some(other) => {
                let ((mine, weight), (others, its_weight)) = (load(one), load(other));
                if mine * its_weight <= others * weight { one } else { other }
            }
            None => one,
        })
    }

    /// The schedule for a request: of the own zone, of the others, or of all if there is one zone.
    fn schedule(&self, members: &Members) -> usize {
        if members.schedules[NEAR].is_empty() {
            return ALL;
        }
        let share = self.near_share.load(Ordering::Relaxed);
        if share >= 1_000 || rand::random_range(0..1_000) < share { NEAR } else { FAR }
    }

    /// Its members.
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.members.load().list.to_vec()
    }

    /// Its state, for operators.
    pub fn report(&self) -> ServiceReport {
        let now = Instant::now();
        let members = self.members.load();
        let member = |member: &Arc<Member>| MemberReport {
            id: member.instance.id.clone(),
            address: member.instance.address.to_string(),
            weight: member.weight,
            zone: member.instance.metadata.get(ZONE).cloned(),
            version: member.instance.metadata.get(VERSION).cloned(),
            health: member.health.report(now),
        };
        let has_zones = !members.schedules[NEAR].is_empty();
        ServiceReport {
            service: self.name.to_string(),
            panic: self.group.is_panic(),
            own_zone_percent: has_zones.then(|| self.near_share.load(Ordering::Relaxed) / 10),
            instances: members.list.iter().map(member).collect(),
        }
    }
}

/// A member that may be chosen; each has the same chance to be the first that is looked at.
fn one_of(members: &Members, may: impl Fn(&Member) -> bool) -> Option<usize> {
    let count = members.list.len();
    let start = rand::random_range(0..count);
    (0..count).map(|step| (start + step) % count).find(|index| may(&members.list[*index]))
}

/// The state of a service's instances.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceReport {
    /// The service's name.
    pub service: String,
    /// Whether so few instances are up that ejected ones get requests too.
    pub panic: bool,
    /// The share of requests that stay in the own zone, if there are others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_zone_percent: Option<u32>,
    /// Its instances.
    pub instances: Vec<MemberReport>,
}

/// The state of an instance.
#[derive(Debug, Clone, Serialize)]
pub struct MemberReport {
    /// Its id.
    pub id: String,
    /// Its address.
    pub address: String,
    /// Its weight.
    pub weight: u32,
    /// Its zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its health.
    #[serde(flatten)]
    pub health: HealthReport,
}

#[cfg(test)]
mod tests;
