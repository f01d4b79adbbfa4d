//! Full queues at the broker, and the operator's remedies.

use std::time::Duration;

use lapin::options::QueueDeleteOptions;
use tokio::time::Instant;
use tourin_shared_events::bus::contract::{key_and_number, users, view};
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitDeadLetters, RabbitSettings};
use tourin_shared_events::bus::{
    Binding, Deliveries, Delivery, PublishError, Publisher as _, Settlement, SubscribeError,
    Subscriber as _, Subscription,
};
use tourin_shared_events::dead_letters::{DeadLetterStore as _, Settled};
use tourin_shared_events::events::USER_EXCHANGE;
use tourin_testbed::eventually;

use crate::bed::{Bed, soon};

async fn next(deliveries: &mut Deliveries) -> Delivery {
    soon(deliveries.next()).await.expect("an open bus")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_shard_refuses_and_takes_again_when_there_is_room() {
    let bed = Bed::new();
    let bus = RabbitBus::start(RabbitSettings { shard_max_bytes: 20_000, ..bed.settings() });
    let subscription = Subscription { shards: 1, ..users("q") };
    bus.subscribe(subscription.clone()).await.unwrap().close().await;
    let mut confirmed = 0;
    let refused = loop {
        match bus.publish(vec![view("a", confirmed)]).await.remove(0) {
            Ok(()) => confirmed += 1,
            Err(error) => break error,
        }
        assert!(confirmed < 10_000, "it is bounded");
    };
    assert!(matches!(refused, PublishError::Rejected(_)), "{refused}");
    println!("{confirmed} events in 20,000 bytes");
    let mut deliveries = bus.subscribe(subscription).await.unwrap();
    // A refused event may be in the queue all the same: the bound is soft. No confirmed event is missing.
    for number in 0..confirmed {
        let delivery = next(&mut deliveries).await;
        assert_eq!(key_and_number(&delivery).1, number.to_string());
        delivery.settle(Settlement::Ack).await.unwrap();
    }
    eventually("the full queue has room again", async || {
        bus.publish(vec![view("a", confirmed)]).await.remove(0)
    })
    .await;
    assert!(bus.metrics().refused.get() > 0);
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_room_for_dead_letters_events_stay_queued() {
    let bed = Bed::new();
    let bus = RabbitBus::start(RabbitSettings { dead_max_letters: 2, ..bed.settings() });
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    let events: Vec<_> = (0..8).map(|n| view("a", n)).collect();
    assert_eq!(soon(bus.publish(events.clone())).await, vec![Ok(()); 8]);
    let mut stored = 0;
    let waiting = loop {
        let delivery = next(&mut deliveries).await;
        let number = key_and_number(&delivery).1;
        let reason = "broken".to_owned();
        match delivery.settle(Settlement::DeadLetter { reason }).await {
            Ok(()) => stored += 1,
            Err(_full) => break number,
        }
    };
    // It comes again, and its key has waited for it.
    assert_eq!(waiting, stored.to_string());
    let again = next(&mut deliveries).await;
    assert_eq!(key_and_number(&again).1, waiting);
    let dead_letters = RabbitDeadLetters::new(bus.clone(), vec!["q".to_owned()]);
    let letters = dead_letters.list(10, None).await.unwrap();
    let ids: Vec<_> = letters.iter().map(|letter| letter.id).collect();
    let discarded = dead_letters.discard(&ids).await.unwrap();
    assert_eq!(discarded, vec![Settled::Done; ids.len()]);
    assert_eq!(dead_letters.count().await.unwrap(), 0);
    let reason = "broken".to_owned();
    again.settle(Settlement::DeadLetter { reason }).await.unwrap();
    assert_eq!(dead_letters.count().await.unwrap(), 1);
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_who_look_at_the_same_time_all_see_everything() {
    let bed = Bed::new();
    let bus = bed.bus();
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    let events: Vec<_> = (0..20).map(|n| view(&format!("user{n}"), n)).collect();
    assert_eq!(soon(bus.publish(events)).await, vec![Ok(()); 20]);
    for _ in 0..20 {
        let reason = "broken".to_owned();
        next(&mut deliveries).await.settle(Settlement::DeadLetter { reason }).await.unwrap();
    }
    // Separate connections, as in separate processes.
    let others = [bed.bus(), bed.bus(), bed.bus()];
    let looks = others.iter().cycle().take(9).map(|bus| {
        let dead_letters = RabbitDeadLetters::new(bus.clone(), vec!["q".to_owned()]);
        async move { dead_letters.list(100, None).await.map(|letters| letters.len()) }
    });
    for seen in soon(futures::future::join_all(looks)).await {
        assert_eq!(seen.unwrap(), 20);
    }
    let dead_letters = RabbitDeadLetters::new(bus.clone(), vec!["q".to_owned()]);
    assert_eq!(dead_letters.depth().await.unwrap(), 20);
    let metrics = bus.metrics();
    let published = (metrics.confirmed.get(), metrics.unconfirmed.get());
    assert_eq!(published, (40, 0), "{metrics:?}");
    let subscription = &bus.subscriptions()[0];
    assert_eq!((subscription.held, subscription.unsettled), (0, 0), "{subscription:?}");
    assert!(subscription.active_shards > 0, "{subscription:?}");
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_shard_that_vanishes_is_made_again_and_its_keys_go_on() {
    let bed = Bed::new();
    let bus = bed.bus();
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    let broker = Bed::broker().await;
    let channel = broker.create_channel().await.unwrap();
    let name = format!("{}q.shard.3", bed.prefix);
    channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
    for round in 0..3 {
        let events: Vec<_> = (0..40).map(|key| view(&format!("user{key}"), round)).collect();
        for event in events {
            eventually("an event of the key is confirmed", async || {
                bus.publish(vec![event.clone()]).await.remove(0)
            })
            .await;
        }
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 40 {
            let delivery = next(&mut deliveries).await;
            let (user, number) = key_and_number(&delivery);
            assert_eq!(number, round.to_string());
            seen.insert(user);
            delivery.settle(Settlement::Ack).await.unwrap();
        }
    }
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pattern_that_would_take_slots_for_types_is_refused() {
    let bed = Bed::new();
    let bus = bed.bus();
    for pattern in ["*", "slot-3"] {
        let subscription = Subscription::new("q", vec![Binding::new(USER_EXCHANGE, pattern)]);
        let refused = soon(bus.subscribe(subscription)).await;
        assert!(matches!(refused, Err(SubscribeError::Invalid(_))), "{pattern}: {refused:?}");
    }
    // The pattern `#` is valid, and delivers each event once.
    let subscription = Subscription::new("q", vec![Binding::new(USER_EXCHANGE, "#")]);
    let started = Instant::now();
    let mut deliveries = bus.subscribe(subscription.clone()).await.unwrap();
    let first = started.elapsed();
    let again = bed.bus();
    assert!(soon(again.wait_until_connected(true)).await);
    let started = Instant::now();
    again.subscribe(subscription).await.unwrap().close().await;
    println!("declared in {first:?}, again in {:?}", started.elapsed());
    let events: Vec<_> = (0..50).map(|n| view(&format!("user{n}"), n)).collect();
    assert_eq!(soon(bus.publish(events)).await, vec![Ok(()); 50]);
    for _ in 0..50 {
        next(&mut deliveries).await.settle(Settlement::Ack).await.unwrap();
    }
    let more = tokio::time::timeout(Duration::from_millis(200), deliveries.next()).await;
    assert!(more.is_err(), "{more:?} came twice");
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}
