//! Replicas of one subscriber.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tourin_shared_events::bus::contract::{key_and_number, users, view};
use tourin_shared_events::bus::rabbitmq::RabbitBus;
use tourin_shared_events::bus::{Deliveries, Publisher as _, Settlement, Subscriber as _};
use tourin_testbed::eventually;

use crate::bed::{Bed, broker_proxy, soon};

const KEYS: u32 = 40;

/// The replica and event of each delivery, in order over all replicas.
type Log = Arc<Mutex<Vec<(&'static str, String, u32)>>>;

fn entries(log: &Log) -> MutexGuard<'_, Vec<(&'static str, String, u32)>> {
    log.lock().expect("the lock is not poisoned")
}

async fn replica(name: &'static str, mut deliveries: Deliveries, log: Log) {
    while let Some(delivery) = deliveries.next().await {
        let (user, number) = key_and_number(&delivery);
        let number = number.parse().expect("a number");
        entries(&log).push((name, user, number));
        drop(delivery.settle(Settlement::Ack).await);
    }
}

/// Publishes one event for each key, with growing numbers, until it is stopped.
async fn publish_rounds(bus: RabbitBus, stop: CancellationToken) -> u32 {
    let mut round = 0;
    while !stop.is_cancelled() {
        let events = (0..KEYS).map(|key| view(&format!("user{key}"), round)).collect();
        for result in bus.publish(events).await {
            result.expect("a confirm");
        }
        round += 1;
    }
    round
}

fn keys_of(log: &Log, name: &str, from: usize) -> BTreeSet<String> {
    entries(log)[from..]
        .iter()
        .filter(|(who, ..)| *who == name)
        .map(|(_, user, _)| user.clone())
        .collect()
}

/// Per key, the numbers in the order of their first delivery, to any replica.
fn numbers(log: &Log) -> BTreeMap<String, Vec<u32>> {
    let mut seen: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for (_, user, number) in entries(log).iter() {
        let numbers = seen.entry(user.clone()).or_default();
        if !numbers.contains(number) {
            numbers.push(*number);
        }
    }
    seen
}

async fn wait_for_rounds(log: &Log, rounds: u32) {
    eventually("all rounds have arrived", async || {
        let seen = numbers(log);
        match seen.values().map(Vec::len).min() {
            Some(least) if seen.len() == KEYS as usize && least == rounds as usize => Ok(()),
            least => Err((least, rounds)),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_the_shards_and_take_over_from_one_that_dies() {
    let bed = Bed::new();
    let proxy = broker_proxy().await;
    let log = Log::default();
    let one = bed.bus();
    let first = tokio::spawn(replica("one", one.subscribe(users("q")).await.unwrap(), log.clone()));
    let stop = CancellationToken::new();
    let publishing = tokio::spawn(publish_rounds(bed.bus(), stop.clone()));
    eventually("the first replica has all keys", async || match keys_of(&log, "one", 0).len() {
        40 => Ok(()),
        other => Err(other),
    })
    .await;

    // A second replica gets a share of the shards while the first is running.
    let two = RabbitBus::start(bed.settings_through(&proxy));
    let joined = Instant::now();
    let second = two.subscribe(users("q")).await.unwrap();
    let second = tokio::spawn(replica("two", second, log.clone()));
    eventually("the second replica has a share", async || match keys_of(&log, "two", 0).len() {
        8.. => Ok(()),
        keys => Err(keys),
    })
    .await;
    println!("sharing {:?} after joining", joined.elapsed());

    // It dies: its connection is lost without a close.
    let theirs = keys_of(&log, "two", 0);
    proxy.close().await;
    second.abort();
    let (died, from) = (Instant::now(), entries(&log).len());
    eventually("the first replica has taken over", async || {
        let left: Vec<_> = theirs.difference(&keys_of(&log, "one", from)).cloned().collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    println!("{} keys taken over {:?} after the death", theirs.len(), died.elapsed());
    assert!(died.elapsed() < Duration::from_secs(20));

    stop.cancel();
    let rounds = soon(publishing).await.unwrap();
    wait_for_rounds(&log, rounds).await;
    for (user, numbers) in numbers(&log) {
        assert_eq!(numbers, (0..rounds).collect::<Vec<_>>(), "{user}");
    }
    soon(one.close(Duration::from_secs(5))).await;
    soon(first).await.unwrap();
    bed.clear(&["q"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_come_and_go_in_good_order_without_a_duplicate() {
    let bed = Bed::new();
    let log = Log::default();
    let publisher = bed.bus();
    let stop = CancellationToken::new();
    let buses = [("one", bed.bus()), ("two", bed.bus()), ("three", bed.bus())];
    let mut replicas = Vec::new();
    let mut publishing = None;
    for (name, bus) in &buses {
        let deliveries = bus.subscribe(users("q")).await.unwrap();
        replicas.push(tokio::spawn(replica(name, deliveries, log.clone())));
        let publish = || tokio::spawn(publish_rounds(publisher.clone(), stop.clone()));
        publishing.get_or_insert_with(publish);
    }
    eventually("each replica has a share", async || {
        match buses.each_ref().map(|(name, _)| keys_of(&log, name, 0).len()) {
            shares if shares.iter().all(|share| *share > 0) => Ok(()),
            shares => Err(shares),
        }
    })
    .await;
    // The first two leave, one after the other.
    for (_, bus) in &buses[..2] {
        soon(bus.close(Duration::from_secs(10))).await;
    }
    let from = entries(&log).len();
    eventually("the last replica has all keys", async || {
        match keys_of(&log, "three", from).len() {
            40 => Ok(()),
            keys => Err(keys),
        }
    })
    .await;
    stop.cancel();
    let rounds = soon(publishing.unwrap()).await.unwrap();
    wait_for_rounds(&log, rounds).await;
    for (user, numbers) in numbers(&log) {
        assert_eq!(numbers, (0..rounds).collect::<Vec<_>>(), "{user}");
    }
    // A shard moves only when it has no unsettled delivery.
    assert_eq!(entries(&log).len(), (rounds * KEYS) as usize);
    soon(buses[2].1.close(Duration::from_secs(5))).await;
    for replica in replicas {
        soon(replica).await.unwrap();
    }
    bed.clear(&["q"]).await;
}
