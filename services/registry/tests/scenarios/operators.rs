//! What operators decide: drains, weights, protection, and the report on scaling.

use std::time::Duration;

use tourin_registry::{Registry, Settings};
use tourin_registry_api::wire::OverrideRequest;
use tourin_registry_api::{ClientError, Directory, DownReason, Status};
use tourin_testbed::eventually;

use crate::world::*;

const WAIT: Duration = Duration::from_millis(1_500);

fn service_state(is_out: bool) -> OverrideRequest {
    OverrideRequest { out_of_service: Some(is_out), ..OverrideRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_takes_an_instance_out_of_service_and_back_with_receipts() {
    let registry = Running::start().await;
    let operator = registry.client_as("operator", "o");
    let (one, two) = (registry.acknowledging("gateway-1"), registry.acknowledging("gateway-2"));
    let a = start(registry.client("a"), instance("a", 4001));
    let b = start(registry.client("b"), instance("b", 4002));
    assert!(a.registered(TIMEOUT).await && b.registered(TIMEOUT).await);
    one.sees(&["a", "b"]).await;
    two.sees(&["a", "b"]).await;

    let out = operator.set_override(("core", "a"), &service_state(true), WAIT).await.unwrap();
    assert!(out.acknowledged, "{out:?}");
    assert_eq!(out.watchers, 2);
    let slowest = out.slowest.expect("somebody was the last");
    assert!(["gateway-1", "gateway-2"].contains(&&*slowest.watcher), "{slowest:?}");
    // Acknowledged is what gateways do not send to any more, although the instance runs on.
    assert_eq!(
        (ids_up(&one.directory), ids_up(&two.directory)),
        (vec!["b".into()], vec!["b".into()])
    );
    a.drain().await;
    let is_draining = |directory: &Directory| {
        directory.all().iter().any(|i| i.id == "a" && i.status == Status::Draining)
    };
    one.until(is_draining, "its own draining is seen").await;

    let weight = OverrideRequest { weight: Some(7), ..OverrideRequest::default() };
    operator.set_override(("core", "b"), &weight, WAIT).await.unwrap();
    one.until(|d| d.pick("core").is_some_and(|b| b.weight() == 7), "the weight is known").await;
    operator.set_override(("core", "b"), &service_state(true), WAIT).await.unwrap();
    one.sees(&[]).await;
    let back = operator.set_override(("core", "b"), &service_state(false), WAIT).await.unwrap();
    assert!(back.acknowledged);
    assert_eq!(ids_up(&one.directory), ["b"]);
    let report = operator.leases(Some("core")).await.unwrap();
    assert_eq!(report.leases.len(), 2);
    assert!(report.leases.iter().all(|lease| lease.left_ms > 0), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_out_of_service_stays_so_when_it_registers_again() {
    let registry = Running::start().await;
    let operator = registry.client_as("operator", "o");
    let client = registry.client("a");
    client.register(&instance("a", 4001), LEASE).await.unwrap();
    operator.set_override(("core", "a"), &service_state(true), Duration::ZERO).await.unwrap();
    eventually("its lease ends", || async { registry.list().await.instances.is_empty() }).await;
    client.register(&instance("a", 4001), LEASE * 100).await.unwrap();
    assert_eq!(registry.list().await.instances[0].status, Status::OutOfService);

    let place = registry.place();
    registry.stop().await;
    let registry = Running::start_at(place, |_| {}).await;
    registry.client("a").register(&instance("a", 4001), LEASE * 100).await.unwrap();
    assert_eq!(registry.list().await.instances[0].status, Status::OutOfService, "after a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_on_scaling_has_what_leavers_said_and_who_said_nothing() {
    let registry = Running::start().await;
    let operator = registry.client_as("operator", "o");
    let gateway = registry.acknowledging("gateway-1");
    let leaving = start(registry.client("a"), instance("a", 4001));
    let dying = start(registry.client("b"), instance("b", 4002));
    gateway.sees(&["a", "b"]).await;
    let departing = leaving.depart().await;
    assert!(departing.is_acknowledged());
    assert_eq!(ids_up(&gateway.directory), ["b"]);
    assert_eq!(registry.list().await.instances.len(), 2, "it drains, and its lease goes on");
    assert!(departing.finish((120, 1)).await);
    drop(dying);
    gateway.until(|d| d.all().is_empty(), "both are gone").await;

    let report = operator.scale_report(Some("core")).await.unwrap().departures;
    assert_eq!(report.len(), 2);
    let said = report[0].said.as_ref().expect("it left");
    assert_eq!((report[0].reason, said.served, said.errors), (DownReason::Left, 120, 1));
    let receipt = said.receipt.as_ref().expect("the registry has answered");
    assert!(receipt.acknowledged);
    assert_eq!(receipt.slowest.as_ref().unwrap().watcher, "gateway-1");
    assert_eq!((report[1].reason, &report[1].said), (DownReason::Expired, &None));
    assert!(operator.scale_report(Some("gateway")).await.unwrap().departures.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_falls_silent_is_kept_until_it_renews_or_an_operator_says_so() {
    let registry = Running::start().await;
    let operator = registry.client_as("operator", "o");
    let gateway = registry.acknowledging("gateway-1");
    let link = Proxy::open_to(registry.addr).await;
    let registrations = ["a", "b", "c"].map(|id| {
        let port = 4001 + u16::from(id.as_bytes()[0] - b'a');
        start(registry.client_at(link.address, id), instance(id, port))
    });
    gateway.sees(&["a", "b", "c"]).await;
    let single = start(registry.client_as("recommendation", "single"), {
        let mut single = instance("single", 4009);
        single.service = "recommendation".to_owned();
        single
    });
    assert!(single.registered(TIMEOUT).await);

    // All of them are cut off. Another service loses its only instance, which is no sign of anything.
    link.close().await;
    drop(single);
    let kept = || async {
        let report = operator.leases(Some("core")).await.unwrap();
        let expired = report.leases.iter().filter(|l| l.instance.status == Status::Expired).count();
        (report.protected, expired)
    };
    eventually("all three leases have ended", || async {
        let seen = kept().await;
        if seen == (vec!["core".to_owned()], 3) { Ok(()) } else { Err(seen) }
    })
    .await;
    assert_eq!(ids_up(&gateway.directory), ["a", "b", "c"]);
    assert_eq!(registry.list().await.protected, ["core"]);
    eventually("the metric says so", || async {
        registry.counted("tourin_registry_protected{", "service=\"core\"").await == 3
    })
    .await;
    eventually("the single one is gone", || async {
        operator.leases(Some("recommendation")).await.unwrap().leases.is_empty()
    })
    .await;

    link.open().await;
    eventually("protection is over when they are back", || async {
        let seen = kept().await;
        if seen == (vec![], 0) { Ok(()) } else { Err(seen) }
    })
    .await;
    // One that renews after the others is not kept any more, and registers anew.
    gateway.sees(&["a", "b", "c"]).await;

    // They die together, and an operator knows.
    drop(registrations);
    eventually("they are kept", || async { kept().await.1 == 3 }).await;
    operator.end_protection("core").await.unwrap();
    gateway.sees(&[]).await;
    assert_eq!(operator.end_protection("core").await, Err(ClientError::Unknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_registry_runs_on_a_folder() {
    let registry = Running::start().await;
    let place = registry.place();
    let second = Registry::build(Settings::new(([127, 0, 0, 1], 0).into(), place.folder())).await;
    let refused = second.err().expect("it is refused").to_string();
    assert!(refused.contains("another registry runs on this folder"), "{refused}");
    registry.stop().await;
    Running::start_at(place, |_| {}).await;
}
