use std::collections::BTreeMap;

use proptest::prelude::*;
use tourin_chassis::clock::{Clock, ManualClock};
use tourin_registry_api::Change;

use super::*;

const LIMITS: CatalogueLimits = CatalogueLimits { instances: 4, history: 8 };
const LEASE: TimeDelta = TimeDelta::seconds(3);
const TICK: TimeDelta = TimeDelta::milliseconds(100);

/// A catalogue with a clock, swept as the sweeper does it.
struct World {
    clock: ManualClock,
    catalogue: Catalogue,
}

impl World {
    fn new(limits: CatalogueLimits) -> Self {
        let clock = ManualClock::new(DateTime::from_timestamp(1_700_000_000, 0).unwrap());
        let catalogue = Catalogue::new(limits, clock.now());
        Self { clock, catalogue }
    }

    fn register(&mut self, id: &str, port: u16) -> Result<u64, RegisterError> {
        self.catalogue.register(instance(id, port), LEASE, self.clock.now())
    }

    fn renew(&mut self, id: &str) -> Result<(), Unknown> {
        self.catalogue.renew("core", id, self.clock.now())
    }

    fn pass(&mut self, time: TimeDelta) -> Vec<String> {
        let mut gone = Vec::new();
        let mut left = time;
        while left > TimeDelta::zero() {
            let step = left.min(TICK);
            self.clock.advance(step);
            gone.extend(self.catalogue.expire(self.clock.now()).into_iter().map(|i| i.id));
            left -= step;
        }
        gone
    }

    fn ids(&self) -> Vec<String> {
        self.catalogue.snapshot(None).instances.into_iter().map(|i| i.id).collect()
    }
}

fn instance(id: &str, port: u16) -> Instance {
    Instance::new("core", id, ([127, 0, 0, 1], port).into())
}

#[test]
fn a_lease_ends_exactly_its_length_after_the_last_renewal() {
    let mut world = World::new(LIMITS);
    world.register("a", 1).unwrap();
    assert!(world.pass(TimeDelta::milliseconds(2_900)).is_empty());
    world.renew("a").unwrap();
    assert!(world.pass(TimeDelta::milliseconds(2_999)).is_empty());
    assert_eq!(world.pass(TimeDelta::milliseconds(1)), ["a"]);
    assert_eq!(world.renew("a"), Err(Unknown));
    let last = world.catalogue.since(world.catalogue.version() - 1, 0);
    let Since::Changes(changes) = last else { panic!("{last:?}") };
    assert_eq!(changes[0].kind, ChangeKind::Down { reason: DownReason::Expired });
}

#[test]
fn an_ended_lease_counts_as_gone_before_the_sweeper_comes() {
    let mut world = World::new(LIMITS);
    world.register("a", 1).unwrap();
    world.pass(LEASE - TimeDelta::milliseconds(50));
    world.clock.advance(TimeDelta::milliseconds(60));
    assert_eq!(world.renew("a"), Err(Unknown));
}

#[test]
fn an_id_belongs_to_one_address_at_a_time() {
    let mut world = World::new(LIMITS);
    let first = world.register("a", 1).unwrap();
    let held_by = ([127, 0, 0, 1], 1).into();
    assert_eq!(world.register("a", 2), Err(RegisterError::Held { held_by }));
    assert_eq!(world.register("a", 1), Ok(first), "the same again changes nothing");
    world.pass(LEASE);
    assert_eq!(world.register("a", 2), Ok(first + 2), "after the lease it is free");
}

#[test]
fn registering_again_renews_and_may_change_metadata() {
    let mut world = World::new(LIMITS);
    let first = world.register("a", 1).unwrap();
    world.pass(TimeDelta::seconds(2));
    let changed = instance("a", 1).with_metadata("zone", "b");
    let now = world.clock.now();
    assert_eq!(world.catalogue.register(changed.clone(), LEASE, now), Ok(first + 1));
    assert!(world.pass(TimeDelta::milliseconds(2_900)).is_empty());
    assert_eq!(world.catalogue.snapshot(None).instances, [changed]);
}

#[test]
fn draining_is_a_state_that_renewals_keep_and_a_registration_ends() {
    let mut world = World::new(LIMITS);
    let first = world.register("a", 1).unwrap();
    let now = world.clock.now();
    assert_eq!(world.catalogue.drain("core", "a", now), Ok(first + 1));
    assert_eq!(world.catalogue.drain("core", "a", now), Ok(first + 1));
    world.renew("a").unwrap();
    assert_eq!(world.catalogue.snapshot(None).instances[0].status, Status::Draining);
    assert_eq!(world.register("a", 1), Ok(first + 2));
    assert_eq!(world.catalogue.snapshot(None).instances[0].status, Status::Up);
    assert_eq!(world.catalogue.drain("core", "b", now), Err(Unknown));
}

#[test]
fn leaving_is_at_once_and_once() {
    let mut world = World::new(LIMITS);
    world.register("a", 1).unwrap();
    let now = world.clock.now();
    world.catalogue.deregister("core", "a", now).unwrap();
    assert!(world.ids().is_empty());
    assert_eq!(world.catalogue.deregister("core", "a", now), Err(Unknown));
}

#[test]
fn instances_are_bounded_in_number() {
    let mut world = World::new(LIMITS);
    for (id, port) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        world.register(id, port).unwrap();
    }
    assert_eq!(world.register("e", 5), Err(RegisterError::Full { limit: 4 }));
    assert!(world.register("d", 4).is_ok(), "a known one may come again");
    world.pass(LEASE);
    assert!(world.register("e", 5).is_ok());
}

#[test]
fn a_pause_of_the_registry_itself_costs_no_instance_its_lease() {
    let mut world = World::new(LIMITS);
    world.register("a", 1).unwrap();
    world.pass(TimeDelta::seconds(2));
    world.clock.advance(TimeDelta::hours(8));
    assert!(world.pass(TimeDelta::milliseconds(2_900)).is_empty());
    world.clock.advance(-TimeDelta::minutes(5));
    assert!(world.pass(TimeDelta::milliseconds(2_900)).is_empty());
    assert_eq!(world.pass(TimeDelta::milliseconds(200)), ["a"]);
}

#[test]
fn a_version_outside_the_history_needs_a_snapshot() {
    let mut world = World::new(LIMITS);
    let epoch = world.catalogue.version();
    for _ in 0..5 {
        world.register("a", 1).unwrap();
        let now = world.clock.now();
        world.catalogue.deregister("core", "a", now).unwrap();
    }
    let version = world.catalogue.version();
    assert_eq!(version, epoch + 10);
    let since = |from, epoch| world.catalogue.since(from, epoch);
    assert_eq!(since(version, 0), Since::Changes(vec![]));
    assert!(matches!(since(version - 8, epoch), Since::Changes(c) if c.len() == 8));
    assert_eq!(since(version - 9, 0), Since::NeedsSnapshot, "too old");
    assert_eq!(since(version + 1, 0), Since::NeedsSnapshot, "from the future");
    assert_eq!(since(0, 0), Since::NeedsSnapshot);
    assert_eq!(since(version, epoch + 1), Since::NeedsSnapshot, "another epoch");
}

#[derive(Clone, Debug)]
enum Step {
    Register { id: u8, port: u16, zone: u8 },
    Renew(u8),
    Drain(u8),
    Deregister(u8),
    Pass(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..6u8, 1..3u16, 0..3u8).prop_map(|(id, port, zone)| Step::Register { id, port, zone }),
        2 => (0..6u8).prop_map(Step::Renew),
        1 => (0..6u8).prop_map(Step::Drain),
        2 => (0..6u8).prop_map(Step::Deregister),
        2 => (0..3_500u16).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 0..60)
}

fn apply(known: &mut BTreeMap<String, Instance>, change: &Change) {
    match change.kind {
        ChangeKind::Down { .. } => {
            known.remove(&change.instance.id);
        }
        _ => {
            known.insert(change.instance.id.clone(), change.instance.clone());
        }
    }
}

proptest! {
    #[test]
    fn the_changes_after_any_version_make_the_snapshot(steps in steps(), history in 1usize..40) {
        let mut world = World::new(CatalogueLimits { instances: 4, history });
        let mut snapshots = vec![world.catalogue.snapshot(None)];
        for step in steps {
            let now = world.clock.now();
            // A refused registration must change nothing.
            match step {
                Step::Register { id, port, zone } => {
                    let wanted = instance(&id.to_string(), port)
                        .with_metadata("zone", zone.to_string());
                    let _ = world.catalogue.register(wanted, LEASE, now);
                }
                Step::Renew(id) => { let _ = world.renew(&id.to_string()); }
                Step::Drain(id) => { let _ = world.catalogue.drain("core", &id.to_string(), now); }
                Step::Deregister(id) => {
                    let _ = world.catalogue.deregister("core", &id.to_string(), now);
                }
                Step::Pass(ms) => { world.pass(TimeDelta::milliseconds(ms.into())); }
            }
            snapshots.push(world.catalogue.snapshot(None));
        }
        let current = snapshots.last().unwrap().clone();
        for old in &snapshots {
            match world.catalogue.since(old.version, old.epoch) {
                Since::NeedsSnapshot => {
                    prop_assert!(current.version - old.version > history as u64);
                }
                Since::Changes(changes) => {
                    let mut known: BTreeMap<_, _> =
                        old.instances.iter().map(|i| (i.id.clone(), i.clone())).collect();
                    let mut version = old.version;
                    for change in &changes {
                        version += 1;
                        prop_assert_eq!(change.version, version);
                        apply(&mut known, change);
                    }
                    prop_assert_eq!(version, current.version);
                    let known: Vec<_> = known.into_values().collect();
                    prop_assert_eq!(&known, &current.instances);
                }
            }
        }
        prop_assert!(current.instances.len() <= 4);
    }
}
