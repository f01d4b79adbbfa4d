//! Registrations that are verified: the registry connects to the instance first.

use tourin_registry_api::wire::codes;
use tourin_registry_api::{ADMIN_ADDRESS, ClientError, Instance};

use crate::certificates::service;
use crate::world::*;

async fn verifying() -> Running {
    Running::start_with(|settings| settings.verify_registrations = true).await
}

fn at(id: &str, address: std::net::SocketAddr) -> Instance {
    Instance::new("core", id, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_answers_by_its_name_is_registered() {
    let registry = verifying().await;
    let address = service(&registry.workload("core", "a")).await;
    let registration = start(registry.client("a"), at("a", address));
    assert!(registration.registered(TIMEOUT).await);
    assert_eq!(registry.list().await.instances, [at("a", address)]);

    // A gateway shows its certificate to operators alone.
    let admin = service(&registry.workload("gateway", "g")).await;
    let public = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Instance::new("gateway", "g", public.local_addr().unwrap());
    let gateway = gateway.with_metadata(ADMIN_ADDRESS, admin.to_string());
    registry.client_as("gateway", "g").register(&gateway, LEASE * 100).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_others_would_not_find_takes_no_traffic_until_they_would() {
    let registry = verifying().await;
    let other = service(&registry.workload("core", "other")).await;
    let stranger = service(&Running::start().await.workload("core", "a")).await;
    let namesake = service(&registry.workload("recommendation", "a")).await;
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = plain.local_addr().unwrap();
    let nobody = tourin_testbed::free_address();
    for (address, reason) in [
        (nobody, "no connection"),
        (other, "core/other answers there"),
        (stranger, ""),
        (namesake, ""),
        (silent, "no answer in time"),
    ] {
        let refused = registry.client("a").register(&at("a", address), LEASE * 100).await;
        let Err(ClientError::Refused { status: 422, code, message }) = refused else {
            panic!("{address}: {refused:?}");
        };
        assert_eq!(code, codes::UNVERIFIED);
        assert!(message.contains(reason) && message.contains(&address.to_string()), "{message}");
    }
    // A gateway alone may show its certificate elsewhere.
    let own = service(&registry.workload("core", "a")).await;
    let elsewhere = at("a", silent).with_metadata(ADMIN_ADDRESS, own.to_string());
    let refused = registry.client("a").register(&elsewhere, LEASE * 100).await;
    assert!(matches!(refused, Err(ClientError::Refused { status: 422, .. })), "{refused:?}");
    assert!(registry.list().await.instances.is_empty());

    // It keeps trying, and is registered once it is there.
    let workload = registry.workload("core", "late");
    let reserved = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = reserved.local_addr().unwrap();
    let late = start(registry.client("late"), at("late", address));
    assert!(!late.registered(HEARTBEAT * 5).await);
    crate::certificates::serve_on(reserved, &workload);
    assert!(late.registered(TIMEOUT).await);
}
