//! Leases that end, and those that are kept because many end together.

use tourin_registry_api::{DownReason, Status};

use super::*;
use crate::domain::LeaseError;

over_each_store!(
    a_lease_ends_unless_it_is_renewed,
    leases_that_end_together_stay_until_enough_are_back,
    an_operator_ends_protection,
    a_kept_instance_gives_its_id_to_another_address,
    instances_that_drain_are_not_kept,
);

const PROTECTING: CatalogueLimits =
    CatalogueLimits { protection: ProtectionRule { percent: 50, min_leases: 3 }, ..LIMITS };

/// The leases that end together: so long that they do also on a busy machine.
const TOGETHER: TimeDelta = TimeDelta::milliseconds(1_500);

async fn a_lease_ends_unless_it_is_renewed(open: impl AsyncFn(CatalogueLimits) -> Fixture) {
    let fixture = open(LIMITS).await;
    fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    fixture.store.register(&instance("b", 2), SHORT).await.unwrap();
    let report = fixture.store.leases(None).await.unwrap();
    let first = &report.leases[0];
    assert_eq!(first.instance, instance("a", 1));
    assert!((100_000..=120_000).contains(&first.left_ms), "{first:?}");
    eventually("the second one is gone", async || fixture.ids() == ["a"]).await;
    assert_eq!(refusal(fixture.store.renew("core", "b").await), LeaseError::Unknown);
    fixture.store.renew("core", "a").await.unwrap();
    let departures = fixture.store.departures(None).await.unwrap();
    assert_eq!(departures.len(), 1);
    assert_eq!((&*departures[0].instance.id, departures[0].reason), ("b", DownReason::Expired));
    eventually("a sweep has said so", async || fixture.swept().0 == ["b"]).await;
}

/// Three instances, of which two do not renew and are kept.
async fn after_a_loss(open: impl AsyncFn(CatalogueLimits) -> Fixture) -> Fixture {
    let fixture = open(PROTECTING).await;
    fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    // At once, so that their leases end together.
    let (b, c) = (instance("b", 2), instance("c", 3));
    let (b, c) =
        tokio::join!(fixture.store.register(&b, TOGETHER), fixture.store.register(&c, TOGETHER));
    b.unwrap();
    c.unwrap();
    eventually("both leases have ended", async || {
        let report = fixture.store.leases(None).await.unwrap();
        let statuses: Vec<_> = report.leases.iter().map(|lease| lease.instance.status).collect();
        let is_so = report.protected == ["core"]
            && statuses == [Status::Up, Status::Expired, Status::Expired];
        if is_so { Ok(()) } else { Err(report) }
    })
    .await;
    assert_eq!(fixture.ids(), ["a", "b", "c"]);
    assert_eq!(fixture.store.snapshot(None).protected, ["core"]);
    eventually("a sweep has said so", async || fixture.swept().1.contains(&"core".to_owned()))
        .await;
    assert!(fixture.swept().0.is_empty());
    fixture
}

async fn leases_that_end_together_stay_until_enough_are_back(
    open: impl AsyncFn(CatalogueLimits) -> Fixture,
) {
    let fixture = after_a_loss(open).await;
    // One that is kept may renew.
    fixture.store.renew("core", "b").await.unwrap();
    fixture.store.register(&instance("b", 2), LONG).await.unwrap();
    eventually("the third one is gone", async || fixture.ids() == ["a", "b"]).await;
    eventually("leases count again", async || {
        let ended = fixture.swept().2.contains(&"core".to_owned());
        ended && fixture.store.snapshot(None).protected.is_empty()
    })
    .await;
    eventually("a sweep has said so", async || fixture.swept().0 == ["c"]).await;
}

async fn an_operator_ends_protection(open: impl AsyncFn(CatalogueLimits) -> Fixture) {
    let fixture = after_a_loss(open).await;
    assert!(!fixture.store.end_protection("recommendation").await.unwrap());
    assert!(fixture.store.end_protection("core").await.unwrap());
    eventually("those without a lease are gone", async || fixture.ids() == ["a"]).await;
    eventually("there is no protection", async || {
        !fixture.store.end_protection("core").await.unwrap()
    })
    .await;
}

async fn a_kept_instance_gives_its_id_to_another_address(
    open: impl AsyncFn(CatalogueLimits) -> Fixture,
) {
    let fixture = after_a_loss(open).await;
    fixture.store.register(&instance("b", 7), LONG).await.unwrap();
    assert_eq!(fixture.seen("b").address.port(), 7);
}

async fn instances_that_drain_are_not_kept(open: impl AsyncFn(CatalogueLimits) -> Fixture) {
    let fixture = open(PROTECTING).await;
    fixture.store.register(&instance("a", 1), LONG).await.unwrap();
    for (id, port) in [("b", 2), ("c", 3)] {
        fixture.store.register(&instance(id, port), LONG).await.unwrap();
        let mut drains = instance(id, port);
        drains.status = Status::Draining;
        fixture.store.register(&drains, SHORT).await.unwrap();
    }
    eventually("they are gone", async || fixture.ids() == ["a"]).await;
    assert!(fixture.swept().1.is_empty());
}
