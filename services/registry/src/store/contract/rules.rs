//! Who may register, and what changes what.

use tourin_registry_api::wire::{LeaveRequest, OverrideRequest};
use tourin_registry_api::{ChangeKind, DownReason, Status};

use super::*;
use crate::domain::{LeaseError, RegisterError, Since};

over_each_store!(
    an_id_belongs_to_one_address_at_a_time,
    registering_again_may_change_metadata,
    draining_is_a_state_that_renewals_keep_and_a_registration_ends,
    leaving_is_at_once_and_once,
    instances_are_bounded_in_number,
    a_service_may_not_use_up_the_registry,
    an_operators_decision_outlives_the_lease_and_not_the_instance,
    a_decision_that_nobody_sees_is_a_change_all_the_same,
    decisions_about_instances_that_do_not_come_back_make_room,
    a_version_outside_the_history_needs_a_snapshot,
    a_token_has_its_uses_and_a_request_is_one_however_often_it_comes,
);

async fn an_id_belongs_to_one_address_at_a_time(open: impl AsyncFn(CatalogueLimits) -> Fixture) {
    let fixture = open(LIMITS).await;
    let first = fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    let held_by = ([127, 0, 0, 1], 1).into();
    let usurper = fixture.store.register(&instance("a", 2), LONG).await;
    assert_eq!(refusal(usurper), RegisterError::Held { held_by });
    assert!(fixture.store.has(&instance("a", 1)).await.unwrap());
    assert!(!fixture.store.has(&instance("a", 2)).await.unwrap());
    let again = fixture.store.register(&instance("a", 1), SHORT).await.unwrap();
    assert_eq!(again, first, "the same again changes nothing");
    eventually("its lease has ended", async || fixture.ids().is_empty()).await;
    let free = fixture.store.register(&instance("a", 2), LONG).await.unwrap();
    assert_eq!(free, first + 2);
    assert!(!fixture.store.has(&instance("a", 1)).await.unwrap());
}

async fn registering_again_may_change_metadata(open: impl AsyncFn(CatalogueLimits) -> Fixture) {
    let fixture = open(LIMITS).await;
    let first = fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    let changed = instance("a", 1).with_metadata("zone", "서울");
    assert_eq!(fixture.store.register(&changed, LONG).await.unwrap(), first + 1);
    assert_eq!(fixture.store.snapshot(None).instances, [changed]);
}

async fn draining_is_a_state_that_renewals_keep_and_a_registration_ends(
    open: impl AsyncFn(CatalogueLimits) -> Fixture,
) {
    let fixture = open(LIMITS).await;
    let first = fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    assert_eq!(fixture.store.drain("core", "a").await.unwrap(), first + 1);
    assert_eq!(fixture.store.drain("core", "a").await.unwrap(), first + 1);
    fixture.store.renew("core", "a").await.unwrap();
    assert_eq!(fixture.seen("a").status, Status::Draining);
    assert_eq!(fixture.store.register(&instance("a", 1), LONG).await.unwrap(), first + 2);
    assert_eq!(fixture.seen("a").status, Status::Up);
    assert_eq!(refusal(fixture.store.drain("core", "b").await), LeaseError::Unknown);
    let mut drains = instance("b", 2);
    drains.status = Status::Draining;
    fixture.store.register(&drains, LONG).await.unwrap();
    assert_eq!(fixture.seen("b"), drains);
}

async fn leaving_is_at_once_and_once(open: impl AsyncFn(CatalogueLimits) -> Fixture) {
    let fixture = open(LIMITS).await;
    let first = fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    let left = fixture.store.deregister("core", "a", None).await.unwrap();
    assert_eq!(left, first + 1);
    assert!(fixture.ids().is_empty());
    let Since::Changes(changes) = fixture.store.since(first, 0) else { panic!("they are known") };
    assert_eq!(changes[0].kind, ChangeKind::Down { reason: DownReason::Left });
    let again = fixture.store.deregister("core", "a", None).await;
    assert_eq!(refusal(again), LeaseError::Unknown);
    assert_eq!(refusal(fixture.store.renew("core", "a").await), LeaseError::Unknown);
}

async fn instances_are_bounded_in_number(open: impl AsyncFn(CatalogueLimits) -> Fixture) {
    let fixture = open(LIMITS).await;
    for (id, port) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        fixture.store.register(&instance(id, port), LONG).await.unwrap();
    }
    let full = fixture.store.register(&instance("e", 5), LONG).await;
    assert_eq!(refusal(full), RegisterError::Full { limit: 4 });
    // A known one may come again.
    fixture.store.register(&instance("d", 4), SHORT).await.unwrap();
    eventually("there is room", async || {
        fixture.store.register(&instance("e", 5), LONG).await.map_err(|error| error.to_string())
    })
    .await;
}

async fn a_service_may_not_use_up_the_registry(open: impl AsyncFn(CatalogueLimits) -> Fixture) {
    let fixture = open(CatalogueLimits { per_service: 2, ..LIMITS }).await;
    fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    fixture.store.register(&instance("b", 2), LONG).await.unwrap();
    let full = fixture.store.register(&instance("c", 3), LONG).await;
    assert_eq!(refusal(full), RegisterError::ServiceFull { limit: 2 });
    let other = Instance::new("other", "a", ([127, 0, 0, 1], 4).into());
    fixture.store.register(&other, LONG).await.unwrap();
    fixture.store.deregister("core", "a", None).await.unwrap();
    fixture.store.register(&instance("c", 3), LONG).await.unwrap();
}

async fn an_operators_decision_outlives_the_lease_and_not_the_instance(
    open: impl AsyncFn(CatalogueLimits) -> Fixture,
) {
    let fixture = open(LIMITS).await;
    let set =
        async |request: &OverrideRequest| fixture.store.set_override(("core", "a"), request).await;
    let out = OverrideRequest {
        out_of_service: Some(true),
        weight: Some(7),
        ..OverrideRequest::default()
    };
    assert_eq!(refusal(set(&out).await), LeaseError::Unknown);
    fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    let version = set(&out).await.unwrap();
    let seen = || (fixture.seen("a").status, fixture.seen("a").weight());
    assert_eq!(seen(), (Status::OutOfService, 7));
    assert_eq!(set(&out).await.unwrap(), version, "the same again is no change");
    fixture.store.register(&instance("a", 1), SHORT).await.unwrap();
    eventually("its lease has ended", async || fixture.ids().is_empty()).await;
    fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    assert_eq!(seen(), (Status::OutOfService, 7));

    let enable = OverrideRequest { out_of_service: Some(false), ..OverrideRequest::default() };
    set(&enable).await.unwrap();
    assert_eq!(seen(), (Status::Up, 7));
    set(&OverrideRequest { own_weight: true, ..OverrideRequest::default() }).await.unwrap();
    assert_eq!(fixture.seen("a"), instance("a", 1));

    set(&out).await.unwrap();
    let said = LeaveRequest { served: 12, errors: 1, drain_ms: 30, receipt: None };
    fixture.store.deregister("core", "a", Some(said.clone())).await.unwrap();
    assert_eq!(refusal(set(&out).await), LeaseError::Unknown);
    fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    assert_eq!(fixture.seen("a").status, Status::Up);
    let departures = fixture.store.departures(Some("core")).await.unwrap();
    assert_eq!(departures[0].reason, DownReason::Expired);
    assert_eq!((departures[1].reason, &departures[1].said), (DownReason::Left, &Some(said)));
    assert!(fixture.store.departures(Some("gateway")).await.unwrap().is_empty());
}

async fn a_decision_that_nobody_sees_is_a_change_all_the_same(
    open: impl AsyncFn(CatalogueLimits) -> Fixture,
) {
    let fixture = open(LIMITS).await;
    let own = instance("a", 1).with_metadata("weight", "7");
    let first = fixture.store.register(&own, LONG).await.unwrap();
    let same = OverrideRequest { weight: Some(7), ..OverrideRequest::default() };
    assert_eq!(fixture.store.set_override(("core", "a"), &same).await.unwrap(), first + 1);
    let hidden = instance("a", 1).with_metadata("weight", "9");
    assert_eq!(fixture.store.register(&hidden, LONG).await.unwrap(), first + 2);
    assert_eq!(fixture.seen("a"), own);
}

async fn decisions_about_instances_that_do_not_come_back_make_room(
    open: impl AsyncFn(CatalogueLimits) -> Fixture,
) {
    let fixture = open(CatalogueLimits { instances: 1, ..LIMITS }).await;
    let heavy = OverrideRequest { weight: Some(7), ..OverrideRequest::default() };
    fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    fixture.store.set_override(("core", "a"), &heavy).await.unwrap();
    fixture.store.register(&instance("a", 1), SHORT).await.unwrap();
    eventually("its lease has ended", async || fixture.ids().is_empty()).await;
    fixture.store.register(&instance("b", 2), LONG).await.unwrap();
    fixture.store.set_override(("core", "b"), &heavy).await.unwrap();
    assert_eq!(fixture.seen("b").weight(), 7);
    fixture.store.deregister("core", "b", None).await.unwrap();
    fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    assert_eq!(fixture.seen("a"), instance("a", 1), "that decision is forgotten");
}

async fn a_version_outside_the_history_needs_a_snapshot(
    open: impl AsyncFn(CatalogueLimits) -> Fixture,
) {
    let fixture = open(LIMITS).await;
    let epoch = fixture.store.snapshot(None).epoch;
    for _ in 0..5 {
        fixture.store.register(&instance("a", 1), LONG).await.unwrap();
        fixture.store.deregister("core", "a", None).await.unwrap();
    }
    let version = fixture.store.snapshot(None).version;
    assert_eq!((version, *fixture.store.version().borrow()), (epoch + 10, version));
    let since = |from, epoch| fixture.store.since(from, epoch);
    assert_eq!(since(version, 0), Since::Changes(vec![]));
    assert!(matches!(since(version - 8, epoch), Since::Changes(c) if c.len() == 8));
    assert_eq!(since(version - 9, 0), Since::NeedsSnapshot, "too old");
    assert_eq!(since(version + 1, 0), Since::NeedsSnapshot, "from the future");
    assert_eq!(since(0, 0), Since::NeedsSnapshot);
    assert_eq!(since(version, epoch + 1), Since::NeedsSnapshot, "another epoch");
}

async fn a_token_has_its_uses_and_a_request_is_one_however_often_it_comes(
    open: impl AsyncFn(CatalogueLimits) -> Fixture,
) {
    let fixture = open(LIMITS).await;
    let (token, other) = (claims("one"), claims("other"));
    let count = async |token: &JoinClaims, request: &str| {
        fixture.uses.count(token, 2, request).await.unwrap()
    };
    for _lost in 0..3 {
        assert!(count(&token, "a").await);
    }
    assert!(count(&token, "b").await);
    assert!(!count(&token, "c").await, "it is used up");
    assert!(count(&token, "a").await && count(&token, "b").await);
    assert!(!count(&token, "c").await);
    // Each token has its own.
    assert!(count(&other, "c").await && count(&other, "a").await);
    assert!(!count(&other, "b").await);
}
