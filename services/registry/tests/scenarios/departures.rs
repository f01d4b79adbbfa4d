//! Departures: an instance ends only after the watchers have acknowledged that.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tourin_registry_api::Registration;

use crate::world::*;

const LONG: Duration = Duration::from_secs(60);

async fn registered(registry: &Running, id: &str, port: u16) -> Registration {
    let (client, stop) = (registry.client(id), CancellationToken::new());
    let registration = Registration::start(client, instance(id, port), HEARTBEAT, LONG, stop);
    assert!(registration.registered(TIMEOUT).await);
    registration
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_instance_is_gone_at_once_whatever_its_lease() {
    let registry = Running::start().await;
    let following = registry.follow();
    let registration = registered(&registry, "a", 4001).await;
    following.sees(&["a"]).await;
    let stopped = Instant::now();
    assert!(registration.leave().await);
    following.sees(&[]).await;
    assert!(stopped.elapsed() < LONG / 2, "{:?}", stopped.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaving_instance_waits_until_every_watcher_has_acknowledged() {
    let registry = Running::start().await;
    let (first, second) = (registry.watch("gateway-1"), registry.watch("gateway-2"));
    let registration = registered(&registry, "a", 4001).await;
    first.sees(&["a"]).await;
    second.sees(&["a"]).await;

    let mut leaving = tokio::spawn(registration.leave());
    first.sees(&[]).await;
    second.sees(&[]).await;
    first.directory.acknowledge(first.directory.version());
    let early = tokio::time::timeout(Duration::from_millis(200), &mut leaving).await;
    assert!(early.is_err(), "the second watcher still sends to it");
    second.directory.acknowledge(second.directory.version());
    assert!(leaving.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_hangs_delays_one_departure_by_two_seconds_and_no_other() {
    let registry = Running::start().await;
    let hanging = registry.watch("gateway-1");
    let one = registered(&registry, "a", 4001).await;
    let other = registered(&registry, "b", 4002).await;
    hanging.sees(&["a", "b"]).await;
    let start = Instant::now();
    assert!(!one.leave().await);
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1_500) && took < LONG / 3, "{took:?}");
    assert!(other.leave().await, "nobody is waited for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_dies_is_not_waited_for() {
    let registry = Running::start().await;
    let watching = registry.watch("gateway-1");
    let registration = registered(&registry, "a", 4001).await;
    watching.sees(&["a"]).await;
    let leaving = tokio::spawn(registration.leave());
    watching.sees(&[]).await;
    drop(watching);
    assert!(leaving.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_are_repeated_after_a_reconnect() {
    let registry = Running::start().await;
    let link = Proxy::open_to(registry.addr).await;
    let client = client_of(&registry.workload("gateway", "gateway-1"), link.address);
    let watching = Following::start(client, Some("gateway-1"), Default::default());
    let registration = registered(&registry, "a", 4001).await;
    watching.sees(&["a"]).await;
    let leaving = tokio::spawn(registration.leave());
    watching.sees(&[]).await;
    // It acknowledges while the link is cut; the acknowledgement arrives when the link is back.
    link.close().await;
    watching.directory.connected().wait_for(|connected| !connected).await.unwrap();
    watching.directory.acknowledge(watching.directory.version());
    link.open().await;
    assert!(leaving.await.unwrap());
    let second = registered(&registry, "b", 4002).await;
    watching.sees(&["b"]).await;
    watching.directory.acknowledge(watching.directory.version());
    let leaving = tokio::spawn(second.leave());
    watching.sees(&[]).await;
    watching.directory.acknowledge(watching.directory.version());
    assert!(leaving.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_without_a_registry_does_not_take_long() {
    let registry = Running::start().await;
    let registration = registered(&registry, "a", 4001).await;
    registry.stop().await;
    let start = Instant::now();
    assert!(!registration.leave().await);
    assert!(start.elapsed() < LONG / 3, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_stops_in_time_with_watches_and_waits_open() {
    let registry = Running::start().await;
    let watching = registry.watch("gateway-1");
    let registration = registered(&registry, "a", 4001).await;
    watching.sees(&["a"]).await;
    let leaving = tokio::spawn(registration.leave());
    watching.sees(&[]).await;
    let took = registry.stop().await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    leaving.await.unwrap();
}
