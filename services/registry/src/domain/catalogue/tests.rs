use std::collections::BTreeMap;

use proptest::prelude::*;
use tourin_chassis::clock::{Clock, ManualClock};
use tourin_registry_api::Change;

use super::*;
use crate::domain::Since;

const LIMITS: CatalogueLimits =
    CatalogueLimits { instances: 4, per_service: 4, history: 8, protection: ProtectionRule::OFF };
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

    fn renew(&mut self, id: &str) -> Result<(), LeaseError> {
        self.catalogue.renew("core", id, self.clock.now())
    }

    fn pass(&mut self, time: TimeDelta) -> Vec<String> {
        let mut gone = Vec::new();
        let mut left = time;
        while left > TimeDelta::zero() {
            let step = left.min(TICK);
            self.clock.advance(step);
            gone.extend(self.sweep().gone.into_iter().map(|i| i.id));
            left -= step;
        }
        gone
    }

    fn sweep(&mut self) -> Swept {
        self.catalogue.sweep(self.clock.now())
    }

    fn ids(&self) -> Vec<String> {
        self.catalogue.view().snapshot(None).instances.into_iter().map(|i| i.id).collect()
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
    assert_eq!(world.renew("a"), Err(LeaseError::Unknown));
    let last = world.catalogue.view().since(world.catalogue.version() - 1, 0);
    let Since::Changes(changes) = last else { panic!("{last:?}") };
    assert_eq!(changes[0].kind, ChangeKind::Down { reason: DownReason::Expired });
}

#[test]
fn an_ended_lease_counts_as_gone_before_the_sweeper_comes() {
    let mut world = World::new(LIMITS);
    world.register("a", 1).unwrap();
    world.pass(LEASE - TimeDelta::milliseconds(50));
    world.clock.advance(TimeDelta::milliseconds(60));
    assert_eq!(world.renew("a"), Err(LeaseError::Unknown));
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

const PROTECTING: CatalogueLimits =
    CatalogueLimits { protection: ProtectionRule { percent: 50, min_leases: 3 }, ..LIMITS };

/// Three instances, of which the last `silent` ones do not renew, just before their leases end.
fn after_a_loss(silent: usize) -> World {
    let mut world = World::new(PROTECTING);
    for (id, port) in [("a", 1), ("b", 2), ("c", 3)] {
        world.register(id, port).unwrap();
    }
    for _ in 0..29 {
        assert!(world.pass(TICK).is_empty());
        for id in ["a", "b", "c"].iter().take(3 - silent) {
            world.renew(id).unwrap();
        }
    }
    world
}

#[test]
fn one_of_three_that_stops_is_gone() {
    let mut world = after_a_loss(1);
    assert_eq!(world.pass(TICK), ["c"]);
    assert_eq!(world.ids(), ["a", "b"]);
    assert!(world.catalogue.view().protected().is_empty());
}

#[test]
fn two_of_three_that_stop_stay_until_one_is_back() {
    let mut world = after_a_loss(2);
    world.clock.advance(TICK);
    world.catalogue.update(world.clock.now());
    // Found by another call than the sweeper's, and said all the same.
    assert_eq!(world.sweep().protected, ["core"]);
    assert_eq!(world.pass(LEASE), [""; 0]);
    // The first one did not renew meanwhile either.
    assert_eq!(world.ids(), ["a", "b", "c"]);
    assert_eq!(world.catalogue.view().snapshot(None).protected, ["core"]);
    let report = world.catalogue.report(None, world.clock.now());
    assert!(report.leases.iter().all(|lease| lease.instance.status == Status::Expired));

    world.renew("a").unwrap();
    assert_eq!(world.pass(TICK), [""; 0], "two of three are still lost");
    world.renew("b").unwrap();
    let swept = world.sweep();
    assert_eq!((swept.unprotected.len(), swept.gone.len()), (1, 1), "{swept:?}");
    assert_eq!(world.ids(), ["a", "b"]);
    assert!(world.catalogue.view().snapshot(None).protected.is_empty());
}

#[test]
fn an_operator_ends_protection() {
    let mut world = after_a_loss(2);
    assert_eq!(world.pass(TICK), [""; 0]);
    assert!(!world.catalogue.end_protection("recommendation", world.clock.now()));
    assert!(world.catalogue.end_protection("core", world.clock.now()));
    assert_eq!(world.pass(TICK), ["b", "c"]);
    assert_eq!(world.ids(), ["a"]);
}

#[test]
fn replacements_end_protection() {
    let mut world = after_a_loss(2);
    world.pass(TICK);
    world.renew("a").unwrap();
    world.register("d", 4).unwrap();
    assert_eq!(world.pass(TICK), ["b", "c"], "half of four is not more than half");
}

#[test]
fn a_kept_instance_gives_its_id_to_another_address() {
    let mut world = after_a_loss(2);
    world.pass(TICK);
    world.register("b", 7).unwrap();
    assert_eq!(world.catalogue.view().snapshot(None).instances[1].address.port(), 7);
}

#[test]
fn instances_that_leave_or_drain_are_not_lost() {
    let mut world = World::new(PROTECTING);
    for (id, port) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        world.register(id, port).unwrap();
    }
    let now = world.clock.now();
    world.catalogue.drain("core", "b", now).unwrap();
    world.catalogue.deregister("core", "c", None, now).unwrap();
    for _ in 0..70 {
        world.pass(TICK);
        world.renew("a").unwrap();
        if world.ids().len() == 3 {
            world.renew("d").unwrap();
        }
    }
    assert_eq!(world.ids(), ["a"], "a scale-down from four to one");
    assert!(world.catalogue.view().protected().is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Register { id: u8, port: u16, zone: u8 },
    Renew(u8),
    Drain(u8),
    Override { id: u8, out_of_service: bool, weight: Option<u32> },
    Deregister(u8),
    Pass(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..6u8, 1..3u16, 0..3u8).prop_map(|(id, port, zone)| Step::Register { id, port, zone }),
        2 => (0..6u8).prop_map(Step::Renew),
        1 => (0..6u8).prop_map(Step::Drain),
        1 => (0..6u8, any::<bool>(), proptest::option::of(0..3u32)).prop_map(
            |(id, out_of_service, weight)| Step::Override { id, out_of_service, weight }
        ),
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
        let mut world = World::new(CatalogueLimits { history, ..LIMITS });
        let mut snapshots = vec![world.catalogue.view().snapshot(None)];
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
                Step::Override { id, out_of_service, weight } => {
                    let out_of_service = Some(out_of_service);
                    let request = OverrideRequest { out_of_service, weight, own_weight: true };
                    let _ = world.catalogue.set_override(("core", &id.to_string()), &request, now);
                }
                Step::Deregister(id) => {
                    let _ = world.catalogue.deregister("core", &id.to_string(), None, now);
                }
                Step::Pass(ms) => { world.pass(TimeDelta::milliseconds(ms.into())); }
            }
            snapshots.push(world.catalogue.view().snapshot(None));
        }
        let current = snapshots.last().unwrap().clone();
        for old in &snapshots {
            match world.catalogue.view().since(old.version, old.epoch) {
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
