//! What the broker refuses, returns, loses and dead-letters.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::{BasicPublishOptions, QueueDeleteOptions};
use tokio_util::sync::CancellationToken;
use tourin_shared_events::backoff::Backoff;
use tourin_shared_events::bus::contract::{key_and_number, users, view};
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitDeadLetters, RabbitSettings};
use tourin_shared_events::bus::{
    Binding, PublishError, Publisher as _, Settlement, SubscribeError, Subscriber as _,
    Subscription,
};
use tourin_shared_events::consumer::{
    Consumer, ConsumerSettings, Handler, HandlerError, Outcome, Received, RetryPolicy,
};
use tourin_shared_events::dead_letters::{DeadLetterStore as _, Settled};
use tourin_shared_events::events::{DeleteUser, Event as _, Outgoing, USER_EXCHANGE};
use tourin_shared_events::system_clock;
use tourin_testbed::eventually;

use crate::bed::{Bed, broker_proxy, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_batch_exactly_the_unroutable_come_back() {
    let bed = Bed::new();
    let bus = bed.bus();
    let bindings = vec![Binding::new(USER_EXCHANGE, "user.viewTourspot")];
    let deliveries = bus.subscribe(Subscription::new("q", bindings)).await.unwrap();
    let event = |n: u32| match n % 3 {
        0 => Outgoing::new(&DeleteUser { user_id: format!("user{n}") }, chrono::Utc::now()),
        _ => view(&format!("user{n}"), n),
    };
    // Many callers at once, so that their events share groups and channels.
    let calls = (0..20).map(|call| bus.publish((0..30).map(|n| event(call * 31 + n)).collect()));
    for (call, results) in soon(futures::future::join_all(calls)).await.into_iter().enumerate() {
        for (n, result) in results.into_iter().enumerate() {
            let unroutable = (call * 31 + n).is_multiple_of(3);
            let expected = if unroutable { Err(PublishError::Unroutable) } else { Ok(()) };
            assert_eq!(result, expected, "event {n} of call {call}");
        }
    }
    drop(deliveries);
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}

struct FailsFor(&'static str);

#[async_trait]
impl Handler for FailsFor {
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError> {
        if event.ordering_key.as_deref() == Some(self.0) {
            return Err(HandlerError::Transient(anyhow::anyhow!("it does not agree with me")));
        }
        Ok(Outcome::Applied)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_event_among_good_ones_ends_with_the_dead_letters() {
    let bed = Bed::new();
    let bus = bed.bus();
    let deliveries = bus.subscribe(users("q")).await.unwrap();
    let backoff =
        Backoff { base: Duration::from_millis(10), max: Duration::from_millis(40), jitter: 0.5 };
    let retry = RetryPolicy { max_attempts: 3, backoff };
    let consumer = Consumer::new("test", deliveries, Arc::new(FailsFor("poison")), system_clock())
        .with_settings(ConsumerSettings { retry, ..ConsumerSettings::default() });
    let metrics = consumer.metrics();
    let stop = CancellationToken::new();
    let consuming = tokio::spawn(consumer.run(stop.clone()));
    let poison = view("poison", 1).with_header("traceparent", "00-1-2-01");
    let mut events: Vec<Outgoing> = (0..50).map(|n| view(&format!("user{n}"), n)).collect();
    events.insert(25, poison.clone());
    assert_eq!(soon(bus.publish(events)).await, vec![Ok(()); 51]);
    eventually("all but the poison are applied", async || {
        match (metrics.applied.get(), metrics.dead_lettered.get()) {
            (50, 1) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let dead_letters = RabbitDeadLetters::new(bus.clone(), vec!["q".to_owned()]);
    // More often than the twenty returns after which RabbitMQ 4 drops a message by default.
    for _ in 0..25 {
        let letters = soon(dead_letters.list(10, None)).await.unwrap();
        let [letter] = letters.as_slice() else { panic!("one dead letter, not {letters:?}") };
        assert_eq!(letter.event_id, Some(poison.envelope.id));
        assert_eq!(letter.attempts, 3);
        assert_eq!(letter.reason, "it does not agree with me");
        assert_eq!(letter.headers, poison.headers);
        assert_eq!(letter.routing_key, poison.routing_key);
        assert_eq!(letter.body, poison.envelope.encode());
    }
    assert_eq!(dead_letters.count().await.unwrap(), 1);
    stop.cancel();
    soon(consuming).await.unwrap();
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_kills_its_consumers_is_dead_lettered_by_the_broker() {
    let bed = Bed::new();
    let settings = RabbitSettings { delivery_limit: 2, ..bed.settings() };
    let bus = RabbitBus::start(settings.clone());
    bus.subscribe(users("q")).await.unwrap().close().await;
    let deadly = view("a", 1);
    assert_eq!(soon(bus.publish(vec![deadly.clone()])).await, [Ok(())]);
    for life in 0..3 {
        let proxy = broker_proxy().await;
        let url = bed.settings_through(&proxy).url;
        let victim = RabbitBus::start(RabbitSettings { url, ..settings.clone() });
        let mut deliveries = victim.subscribe(users("q")).await.unwrap();
        let delivery = soon(deliveries.next()).await.unwrap();
        assert_eq!(delivery.attempt, if life == 0 { 1 } else { 2 });
        proxy.close().await;
        assert!(soon(victim.wait_until_connected(false)).await);
    }
    let dead_letters = RabbitDeadLetters::new(bus.clone(), vec!["q".to_owned()]);
    eventually("the deadly event is dead-lettered", async || match dead_letters.count().await {
        Ok(1) => Ok(()),
        other => Err(other),
    })
    .await;
    let letters = dead_letters.list(10, None).await.unwrap();
    assert_eq!(letters[0].id, deadly.envelope.id);
    assert!(letters[0].reason.contains("were lost"), "{letters:?}");
    assert_eq!(letters[0].routing_key, deadly.routing_key);
    assert_eq!(letters[0].exchange, USER_EXCHANGE);
    // The replayed event reaches a consumer that survives it, unchanged.
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    assert_eq!(dead_letters.replay(&[letters[0].id]).await.unwrap(), [Settled::Done]);
    let again = soon(deliveries.next()).await.unwrap();
    assert_eq!(again.body, deadly.envelope.encode());
    assert_eq!((again.exchange.as_str(), &again.routing_key), (USER_EXCHANGE, &deadly.routing_key));
    assert_eq!((again.ordering_key.as_deref(), again.attempt), (Some("a"), 1));
    again.settle(Settlement::Ack).await.unwrap();
    // Its key continues.
    assert_eq!(soon(bus.publish(vec![view("a", 2)])).await, [Ok(())]);
    let next = soon(deliveries.next()).await.unwrap();
    assert_eq!(key_and_number(&next), ("a".to_owned(), "2".to_owned()));
    next.settle(Settlement::Ack).await.unwrap();
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}

/// A reader may be dropped at any point.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_listing_releases_the_lock_and_the_letters() {
    let bed = Bed::new();
    let (bus, other) = (bed.bus(), bed.bus());
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    assert_eq!(soon(bus.publish(vec![view("a", 1)])).await, [Ok(())]);
    let delivery = soon(deliveries.next()).await.unwrap();
    delivery.settle(Settlement::DeadLetter { reason: "bad".to_owned() }).await.unwrap();
    let looking = RabbitDeadLetters::new(bus.clone(), vec!["q".to_owned()]);
    let others = RabbitDeadLetters::new(other.clone(), vec!["q".to_owned()]);
    for steps in 1.. {
        let mut look = looking.list(10, None);
        let mut left = steps;
        let looked = poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(None);
            }
            left -= 1;
            look.as_mut().poll(context).map(Some)
        });
        let looked = soon(looked).await;
        drop(look);
        eventually("the dead letter is still there", async || match others.list(10, None).await {
            Ok(letters) if letters.len() == 1 => Ok(()),
            Ok(letters) => Err(letters.len()),
            Err(error) => panic!("given up after {steps} steps: {error:#}"),
        })
        .await;
        if let Some(letters) = looked {
            assert_eq!(letters.unwrap().len(), 1);
            println!("{} ways to give up", steps - 1);
            break;
        }
    }
    assert_eq!(bus.metrics().reconnects.get(), 0, "the connection bears it");
    soon(bus.close(Duration::from_secs(5))).await;
    soon(other.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_that_vanish_are_made_again() {
    let bed = Bed::new();
    let bus = bed.bus();
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    let broker = Bed::broker().await;
    let channel = broker.create_channel().await.unwrap();
    for shard in 0..8 {
        let name = format!("{}q.shard.{shard}", bed.prefix);
        channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
    }
    eventually("the deleted queue is declared again", async || {
        bus.publish(vec![view("a", 1)]).await.remove(0)
    })
    .await;
    let delivery = soon(deliveries.next()).await.unwrap();
    assert_eq!(key_and_number(&delivery).0, "a");
    delivery.settle(Settlement::Ack).await.unwrap();
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_number_of_shards_is_refused() {
    let bed = Bed::new();
    let bus = bed.bus();
    let _deliveries = bus.subscribe(users("q")).await.unwrap();
    for shards in [1, 4, 9] {
        let other = Subscription { shards, ..users("q") };
        let refused = soon(bus.subscribe(other)).await;
        assert!(matches!(refused, Err(SubscribeError::Invalid(_))), "{shards}: {refused:?}");
    }
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_message_is_delivered_to_the_consumer() {
    let bed = Bed::new();
    let bus = bed.bus();
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    let broker = Bed::broker().await;
    let channel = broker.create_channel().await.unwrap();
    let exchange = format!("{}{USER_EXCHANGE}", bed.prefix);
    let options = BasicPublishOptions::default();
    let properties = lapin::BasicProperties::default();
    let sending =
        channel.basic_publish(exchange.into(), DeleteUser::TYPE.into(), options, b"{", properties);
    sending.await.unwrap();
    let delivery = soon(deliveries.next()).await.unwrap();
    assert_eq!((&delivery.body[..], delivery.ordering_key.clone()), (&b"{"[..], None));
    delivery.settle(Settlement::DeadLetter { reason: "not JSON".to_owned() }).await.unwrap();
    let dead_letters = RabbitDeadLetters::new(bus.clone(), vec!["q".to_owned()]);
    let letters = dead_letters.list(10, None).await.unwrap();
    assert_eq!((letters[0].event_id, letters[0].reason.as_str()), (None, "not JSON"));
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}
