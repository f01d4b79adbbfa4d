//! Registering, renewing, expiring.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tourin_registry_api::{ClientError, Registration, RegistrationState, Status};

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_registers_is_found_by_everybody() {
    let registry = Running::start().await;
    let following = registry.follow();
    assert_eq!(following.directory.pick("core"), None);
    let registered = instance("a", 4001).with_metadata("zone", "서울");
    let registration = start(registry.client("a"), registered.clone());
    assert!(registration.registered(TIMEOUT).await);

    assert_eq!(following.directory.wait_for("core", TIMEOUT).await, Some(registered.clone()));
    assert_eq!(registry.list().await.instances, [registered]);
    let other = registry.client("b").list(Some("recommendation")).await.unwrap();
    assert!(other.instances.is_empty());
    let impatient = Duration::from_millis(20);
    assert_eq!(following.directory.wait_for("recommendation", impatient).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_a_service_are_used_round_robin() {
    let registry = Running::start().await;
    let following = registry.follow();
    for (id, port) in [("a", 4001), ("b", 4002), ("c", 4003)] {
        registry.client(id).register(&instance(id, port), LEASE * 100).await.unwrap();
    }
    following.sees(&["a", "b", "c"]).await;
    let mut turns: Vec<String> =
        (0..30).map(|_| following.directory.pick("core").unwrap().id).collect();
    assert_ne!(turns[0], turns[1]);
    turns.sort();
    for id in ["a", "b", "c"] {
        assert_eq!(turns.iter().filter(|turn| *turn == id).count(), 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_keep_an_instance_and_a_killed_one_disappears_within_its_lease() {
    let registry = Running::start().await;
    let following = registry.follow();
    let registration = start(registry.client("a"), instance("a", 4001));
    following.sees(&["a"]).await;
    let version = following.directory.version();
    // It outlives several leases, without a change in between.
    let mut changed = following.directory.changed();
    changed.mark_unchanged();
    assert!(tokio::time::timeout(LEASE * 3, changed.changed()).await.is_err());

    let killed = Instant::now();
    drop(registration);
    following.sees(&[]).await;
    let took = killed.elapsed();
    // The allowance is for a busy machine; the sweep itself is due on the millisecond.
    assert!(took <= LEASE * 5, "{took:?}");
    assert_eq!(following.directory.version(), version + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_one_instances_until_its_lease_ends() {
    let registry = Running::start().await;
    let following = registry.follow();
    let first = start(registry.client("a"), instance("a", 4001));
    assert!(first.registered(TIMEOUT).await);
    let usurper = instance("a", 4002);
    let refused = registry.client("a").register(&usurper, LEASE).await.unwrap_err();
    assert!(matches!(refused, ClientError::Conflict(_)), "{refused}");

    // A successor under the same name keeps trying, and gets it when the first one is dead.
    let successor = start(registry.client("a"), usurper.clone());
    let mut state = successor.state();
    let conflicts = |state: &RegistrationState| {
        matches!(state, RegistrationState::Registering(Some(ClientError::Conflict(_))))
    };
    state.wait_for(conflicts).await.unwrap();
    following.sees(&["a"]).await;
    assert_eq!(following.directory.pick("core").unwrap().address.port(), 4001);
    drop(first);
    assert!(successor.registered(TIMEOUT).await);
    following.until(|d| d.pick("core") == Some(usurper.clone()), "the successor is known").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_process_takes_its_name_and_address_back_at_once() {
    let registry = Running::start().await;
    let long = Duration::from_secs(60);
    let stop = CancellationToken::new;
    let first =
        Registration::start(registry.client("a"), instance("a", 4001), HEARTBEAT, long, stop());
    assert!(first.registered(TIMEOUT).await);
    drop(first);
    let second =
        Registration::start(registry.client("a"), instance("a", 4001), HEARTBEAT, long, stop());
    assert!(second.registered(TIMEOUT).await);
    assert_eq!(registry.list().await.instances, [instance("a", 4001)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_instance_is_known_but_gets_nothing_new() {
    let registry = Running::start().await;
    let following = registry.follow();
    let registration = start(registry.client("a"), instance("a", 4001));
    following.sees(&["a"]).await;
    assert!(registration.drain().await, "no watcher to wait for");
    following.sees(&[]).await;
    let draining = |d: &tourin_registry_api::Directory| {
        d.all().iter().any(|i| i.id == "a" && i.status == Status::Draining)
    };
    assert!(draining(&following.directory));
    // Heartbeats continue and do not bring it back.
    let mut changed = following.directory.changed();
    changed.mark_unchanged();
    assert!(tokio::time::timeout(LEASE * 2, changed.changed()).await.is_err());
    assert!(draining(&following.directory));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_instances_that_come_and_go_at_once_are_seen_alike_by_all() {
    let registry = Running::start().await;
    let followings: Vec<_> = (0..5).map(|_| registry.follow()).collect();
    let registrations: Vec<_> = (0..50)
        .map(|n| {
            let id = format!("i{n:02}");
            start_among_many(registry.client(&id), instance(&id, 5000 + n))
        })
        .collect();
    for following in &followings {
        following.until(|d| d.instances("core").len() == 50, "all fifty are up").await;
    }
    let mut leaving = tokio::task::JoinSet::new();
    let mut staying = Vec::new();
    for (n, registration) in registrations.into_iter().enumerate() {
        if n % 2 == 0 {
            leaving.spawn(registration.leave());
        } else {
            staying.push(registration);
        }
    }
    assert!(leaving.join_all().await.into_iter().all(|acknowledged| acknowledged));
    let expected = registry.list().await;
    assert_eq!(expected.instances.len(), 25);
    for following in &followings {
        following.until(|d| d.version() >= expected.version, "it has caught up").await;
        assert_eq!(*following.directory.all(), expected.instances);
    }
}
