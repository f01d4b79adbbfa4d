//! Connections that break at the worst moment.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tourin_shared_events::bus::contract::{key_and_number, users, view};
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitSettings};
use tourin_shared_events::bus::{
    Deliveries, PublishError, Publisher as _, Settlement, SubscribeError, Subscriber as _,
};
use tourin_testbed::eventually;

use crate::bed::{Bed, broker_proxy, soon};

const KEYS: u32 = 24;
const EVENTS_PER_KEY: u32 = 40;
const CUTS: u32 = 8;
/// Events that are confirmed between two cuts: about half of all.
const BETWEEN_CUTS: u64 = (KEYS * EVENTS_PER_KEY / CUTS / 2) as u64;

/// Publishes the events of one key, each until it is confirmed; returns the number of failures.
async fn publish_all(bus: RabbitBus, user: String) -> u32 {
    let mut failures = 0;
    for n in 0..EVENTS_PER_KEY {
        let event = view(&user, n);
        while let Err(error) = bus.publish(vec![event.clone()]).await.remove(0) {
            assert!(matches!(error, PublishError::Unavailable(_)), "{error}");
            failures += 1;
        }
    }
    failures
}

/// Receives and settles until all events arrived; per key, the numbers in the order of their first delivery.
async fn receive_all(mut deliveries: Deliveries) -> (BTreeMap<String, Vec<u32>>, u32) {
    let mut seen: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let (mut new, mut again) = (0, 0);
    while new < KEYS * EVENTS_PER_KEY {
        let delivery = deliveries.next().await.expect("an open bus");
        let (user, number) = key_and_number(&delivery);
        let number = number.parse().expect("a number");
        let numbers = seen.entry(user).or_default();
        if numbers.contains(&number) {
            again += 1;
        } else {
            numbers.push(number);
            new += 1;
        }
        // It fails when the connection is lost, and then the event comes again.
        drop(delivery.settle(Settlement::Ack).await);
    }
    (seen, again)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_while_publishing_and_consuming_lose_nothing_and_keep_the_order() {
    let bed = Bed::new();
    let proxy = broker_proxy().await;
    let bus = RabbitBus::start(bed.settings_through(&proxy));
    let deliveries = bus.subscribe(users("q")).await.unwrap();
    let receiving = tokio::spawn(receive_all(deliveries));
    let mut publishing = JoinSet::new();
    for key in 0..KEYS {
        publishing.spawn(publish_all(bus.clone(), format!("user{key}")));
    }
    let mut cuts = 0;
    let all = u64::from(KEYS * EVENTS_PER_KEY);
    while bus.metrics().confirmed.get() < all && cuts < CUTS {
        let enough = all.min(bus.metrics().confirmed.get() + BETWEEN_CUTS);
        eventually("the next events are confirmed", async || match bus.metrics().confirmed.get() {
            confirmed if confirmed >= enough => Ok(()),
            confirmed => Err(confirmed),
        })
        .await;
        // Later confirms and deliveries are lost and must come again: on both connections, unless the last event
        // arrived just before.
        proxy.drop_responses();
        eventually("something is on its way", async || match proxy.affected_connections() {
            2.. => Ok(()),
            _ if bus.metrics().confirmed.get() == all => Ok(()),
            affected => Err(affected),
        })
        .await;
        proxy.cut().await;
        cuts += 1;
        soon(bus.wait_until_connected(true)).await;
    }
    let failures: u32 = soon(publishing.join_all()).await.into_iter().sum();
    let (seen, again) = soon(receiving).await.unwrap();
    println!("{cuts} cuts, {failures} failed publishes, {again} redeliveries");
    assert!(cuts > 0 && failures > 0 && again > 0, "the cuts must have met something");
    for (user, numbers) in seen {
        assert_eq!(numbers, (0..EVENTS_PER_KEY).collect::<Vec<_>>(), "{user}");
    }
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_broker_is_reported_and_reconnected() {
    let bed = Bed::new();
    let proxy = broker_proxy().await;
    proxy.close().await;
    let limit = Duration::from_millis(300);
    let settings = RabbitSettings {
        publish_wait: limit,
        subscribe_timeout: limit,
        ..bed.settings_through(&proxy)
    };
    let bus = RabbitBus::start(settings);
    let following = tokio::spawn({
        let bus = bus.clone();
        async move {
            let mut words = Vec::new();
            bus.follow(|connected| words.push(connected)).await;
            words
        }
    });
    let refused = soon(bus.subscribe(users("q"))).await;
    assert!(matches!(refused, Err(SubscribeError::Unavailable(_))), "{refused:?}");
    let results = soon(bus.publish(vec![view("a", 1)])).await;
    assert!(matches!(results[..], [Err(PublishError::Unavailable(_))]), "{results:?}");
    assert!(!bus.is_connected());

    proxy.open().await;
    assert!(soon(bus.wait_until_connected(true)).await);
    let settings = RabbitSettings { subscribe_timeout: Duration::from_secs(10), ..bed.settings() };
    let other = RabbitBus::start(settings);
    let mut deliveries = other.subscribe(users("q")).await.unwrap();
    assert_eq!(soon(bus.publish(vec![view("a", 1)])).await, [Ok(())]);
    let delivery = soon(deliveries.next()).await.unwrap();

    // A longer outage, while the other bus holds a delivery.
    proxy.close().await;
    assert!(soon(bus.wait_until_connected(false)).await);
    let results = soon(bus.publish(vec![view("a", 2)])).await;
    assert!(matches!(results[..], [Err(PublishError::Unavailable(_))]), "{results:?}");
    proxy.open().await;
    let back = Instant::now();
    eventually("the broker takes events again", async || {
        bus.publish(vec![view("a", 2)]).await.remove(0)
    })
    .await;
    println!("publishing again {:?} after the broker's return", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(20));
    // Publishing has a separate connection, which may recover first.
    assert!(soon(bus.wait_until_connected(true)).await);
    delivery.settle(Settlement::Ack).await.unwrap();
    let delivery = soon(deliveries.next()).await.unwrap();
    assert_eq!(key_and_number(&delivery).1, "2");
    delivery.settle(Settlement::Ack).await.unwrap();
    soon(bus.close(Duration::from_secs(5))).await;
    assert_eq!(soon(following).await.unwrap(), [true, false, true, false]);
    assert!(!bus.wait_until_connected(true).await);
    let results = soon(bus.publish(vec![view("a", 3)])).await;
    assert!(matches!(results[..], [Err(PublishError::Unavailable(_))]), "{results:?}");
    soon(other.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}
