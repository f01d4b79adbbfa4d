use std::collections::BTreeMap;

use tourin_chassis::metrics::Metrics;
use tourin_registry_api::WEIGHT;

use super::*;
use crate::balance::BalanceSettings;
use crate::balance::tests::pool_settings;
use crate::outliers::Reason;
use crate::outliers::{OutlierMetrics, OutlierSettings};

fn instance(id: &str, metadata: &[(&str, &str)]) -> Instance {
    let port = 1 + u16::try_from(id.bytes().map(usize::from).sum::<usize>()).unwrap();
    let instance = Instance::new("core", id, ([127, 0, 0, 1], port).into());
    metadata.iter().fold(instance, |instance, (name, value)| instance.with_metadata(*name, *value))
}

fn pool_with(settings: &PoolSettings, instances: Vec<Instance>) -> ServicePool {
    let metrics = OutlierMetrics::new(&Metrics::new("test")).of("core");
    let group = Group::new("core", Arc::clone(&settings.outliers), metrics, Arc::default());
    let pool = ServicePool::new("core", settings, group);
    pool.update(&instances.into());
    pool
}

fn pool(instances: Vec<Instance>) -> ServicePool {
    pool_with(&pool_settings(), instances)
}

fn plain(ids: &[&str]) -> Vec<Instance> {
    ids.iter().map(|id| instance(id, &[])).collect()
}

fn counts(pool: &ServicePool, policy: &Policy, calls: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..calls {
        let picked = pool.pick(policy, &Candidates::ANY).unwrap();
        *counts.entry(picked.instance.id.clone()).or_default() += 1;
    }
    counts
}

fn eject(pool: &ServicePool, id: &str) -> bool {
    let members = pool.members();
    let member = members.iter().find(|member| member.instance.id == id).unwrap();
    let is_ejected = member.health.eject(Reason::Failures, Instant::now());
    pool.recount();
    is_ejected
}

#[test]
fn round_robin_follows_weights() {
    let pool = pool(vec![
        instance("a", &[(WEIGHT, "300")]),
        instance("b", &[]),
        instance("c", &[(WEIGHT, "none")]),
        instance("d", &[(WEIGHT, "0")]),
    ]);
    let counts = counts(&pool, &Policy::RoundRobin, 500);
    assert_eq!((counts["a"], counts["b"], counts["c"], counts.get("d")), (300, 100, 100, None));
}

#[test]
fn an_ejected_instance_leaves_its_share_to_all_others() {
    let pool = pool(plain(&["a", "b", "c", "d"]));
    assert!(eject(&pool, "b"));
    for policy in [Policy::RoundRobin, Policy::LeastRequests] {
        let counts = counts(&pool, &policy, 3_000);
        assert!(!counts.contains_key("b"));
        assert!(counts.values().all(|count| (800..1_200).contains(count)), "{policy:?} {counts:?}");
    }
    assert!(eject(&pool, "c"));
    assert!(!eject(&pool, "d"), "at most half of them");
    assert_eq!(counts(&pool, &Policy::RoundRobin, 100).len(), 2);
}

#[test]
fn in_a_panic_ejected_instances_are_used_and_unreachable_ones_are_not() {
    let settings = pool_settings();
    let outliers = OutlierSettings { eject_max_percent: 100, ..(*settings.outliers).clone() };
    let settings = PoolSettings { outliers: outliers.into(), ..settings };
    let pool = pool_with(&settings, plain(&["a", "b", "c", "d", "e"]));
    assert!(["a", "b", "c"].iter().all(|id| eject(&pool, id)));
    assert_eq!(counts(&pool, &Policy::RoundRobin, 100).len(), 2, "two of five are no panic");
    assert!(eject(&pool, "d"));
    assert!(pool.report().panic);
    assert_eq!(counts(&pool, &Policy::RoundRobin, 200).len(), 5);
    let checks = crate::outliers::tests::check_settings();
    let now = Instant::now();
    for member in &pool.members()[..2] {
        member.health.checked(false, &checks, now, now);
    }
    pool.recount();
    assert_eq!(counts(&pool, &Policy::RoundRobin, 200).len(), 3);
    let states: Vec<_> = pool.report().instances.iter().map(|one| one.health.state).collect();
    assert_eq!(states, ["unreachable", "unreachable", "ejected", "ejected", "up"]);
}

#[test]
fn a_retry_is_not_wasted_on_an_instance_that_is_down() {
    let pool = pool(plain(&["a", "b"]));
    assert!(eject(&pool, "a"));
    let b = pool.pick(&Policy::RoundRobin, &Candidates::ANY).unwrap();
    assert_eq!(b.instance.id, "b");
    let excluded = [Arc::clone(&b)];
    let others = Candidates { excluded: &excluded, ..Candidates::ANY };
    assert!(pool.pick(&Policy::RoundRobin, &others).is_none());
    assert!(!pool.has_another(&b));
    // A first attempt has no choice if its subset has no other instance.
    let is_a = |instance: &Instance| instance.id == "a";
    let only_a = Candidates { accepts: &is_a, ..Candidates::ANY };
    assert_eq!(pool.pick(&Policy::RoundRobin, &only_a).unwrap().instance.id, "a");
}

#[test]
fn of_two_instances_the_one_with_fewer_requests_is_chosen() {
    let pool = pool(vec![instance("a", &[]), instance("b", &[(WEIGHT, "200")])]);
    let members = pool.members();
    let begin = |member: &Arc<Member>, count: usize| {
        (0..count).map(|_| member.health.begin(Instant::now())).collect::<Vec<_>>()
    };
    let _busy = begin(&members[0], 10);
    assert!(counts(&pool, &Policy::LeastRequests, 300)["b"] > 280);
    let _busier = begin(&members[1], 30);
    assert!(counts(&pool, &Policy::LeastRequests, 300)["a"] > 250, "30 for 2 are more than 10");
}

#[test]
fn a_key_stays_with_its_instance() {
    let ids = ["a", "b", "c", "d"];
    let pool = pool(plain(&ids));
    let policy = Policy::Hash(crate::balance::HashKey::Member);
    let pick = |key: &str| {
        let candidates = Candidates { key: Some(key.as_bytes()), ..Candidates::ANY };
        pool.pick(&policy, &candidates).unwrap().instance.id.clone()
    };
    let keys: Vec<_> = (0..200).map(|key| format!("member{key}")).collect();
    let before: Vec<_> = keys.iter().map(|key| pick(key)).collect();
    assert!(ids.iter().all(|id| before.contains(&(*id).to_owned())));
    assert_eq!(keys.iter().map(|key| pick(key)).collect::<Vec<_>>(), before);
    assert!(eject(&pool, "b"));
    for (key, before) in keys.iter().zip(&before) {
        let now = pick(key);
        assert_ne!(now, "b");
        assert!(now == *before || before == "b", "{key} moved although its instance is up");
    }
    // Without a key: round robin.
    assert_eq!(counts(&pool, &policy, 30).len(), 3);
}

#[test]
fn the_own_zone_is_preferred_and_spills_over() {
    let settings = pool_settings();
    let settings = PoolSettings { zone: Some("one".to_owned()), ..settings };
    let near = ["a", "b", "c", "d"].map(|id| instance(id, &[(ZONE, "one")]));
    let far = ["e", "f", "g", "h"].map(|id| instance(id, &[(ZONE, "two")]));
    let pool = pool_with(&settings, near.into_iter().chain(far).collect());
    let share = || {
        let counts = counts(&pool, &Policy::RoundRobin, 10_000);
        counts.range(.."e".to_owned()).map(|(_, count)| count).sum::<usize>() / 100
    };
    assert_eq!(share(), 100);
    assert!(eject(&pool, "a"));
    // All draws instead of its turn may hit the ejected one; then any other instance is chosen.
    assert!(share() >= 99, "three of four can bear 1.4 times their load");
    assert!(eject(&pool, "b"));
    assert!((65..75).contains(&share()), "{}", share());
    assert_eq!(pool.report().own_zone_percent, Some(70));
    assert!(eject(&pool, "c") && eject(&pool, "d"));
    assert_eq!(share(), 0);
    // Without instances in the own zone all are alike.
    pool.update(&plain(&["x", "y"]).into());
    assert_eq!(counts(&pool, &Policy::RoundRobin, 10)["x"], 5);
}

#[test]
fn a_new_instance_gets_a_growing_share() {
    let settings = pool_settings();
    let balance = BalanceSettings { slow_start_ms: 3_600_000 };
    let pool = pool_with(&PoolSettings { balance, ..settings }, plain(&["a", "b"]));
    assert_eq!(counts(&pool, &Policy::RoundRobin, 100)["a"], 50, "nobody was there before");
    pool.update(&plain(&["a", "b", "c"]).into());
    for policy in [Policy::RoundRobin, Policy::LeastRequests] {
        let counts = counts(&pool, &policy, 6_000);
        // A tenth of a third, and of the turns of others that are drawn again.
        assert!((100..500).contains(&counts["c"]), "{policy:?} {counts:?}");
    }
    pool.members()[2].health.warmed_up();
    assert_eq!(counts(&pool, &Policy::RoundRobin, 300)["c"], 100);
}

#[test]
fn what_is_known_of_an_instance_survives_a_change() {
    let pool = pool(plain(&["a", "b", "c"]));
    assert!(eject(&pool, "a"));
    // Its metadata changes, and another one comes.
    let changed = vec![instance("a", &[(WEIGHT, "5")]), instance("b", &[]), instance("d", &[])];
    pool.update(&changed.into());
    assert!(!counts(&pool, &Policy::RoundRobin, 100).contains_key("a"));
    // It comes back at another address: a new process.
    let moved = Instance::new("core", "a", "127.0.0.2:1".parse().unwrap());
    pool.update(&vec![moved, instance("b", &[])].into());
    assert!(counts(&pool, &Policy::RoundRobin, 100).contains_key("a"));
    assert_eq!(pool.group().down(), (0, 0));
}

#[test]
fn a_subset_is_chosen_from_a_thousand() {
    let instances = (0..1_000).map(|number| {
        let version = if number == 517 { "2" } else { "1" };
        let address = ([127, 0, 1, 1], 1_000 + number).into();
        Instance::new("core", format!("core-{number}"), address).with_metadata(VERSION, version)
    });
    let pool = pool(instances.collect());
    let is_new = |instance: &Instance| instance.metadata[VERSION] == "2";
    let candidates = Candidates { accepts: &is_new, ..Candidates::ANY };
    for policy in [Policy::RoundRobin, Policy::LeastRequests] {
        let picked = pool.pick(&policy, &candidates).unwrap();
        assert_eq!(picked.instance.id, "core-517");
    }
}
