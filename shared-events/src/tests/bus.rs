//! The in-process bus.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use proptest::prelude::*;
use tokio::task::JoinSet;

use super::{eventually, soon};
use crate::bus::contract::{self, BusFixture, key_and_number, users, view};
use crate::bus::in_process::InProcessBus;
use crate::bus::{
    Binding, PublishError, Publisher as _, Settlement, SubscribeError, Subscriber, Subscription,
};
use crate::dead_letters::{DeadLetter, DeadLetterStore, MemoryDeadLetters, Settled};
use crate::events::{Outgoing, USER_EXCHANGE};
use crate::system_clock;

struct Fixture {
    bus: InProcessBus,
    dead_letters: Arc<MemoryDeadLetters>,
    publishing: Mutex<JoinSet<()>>,
}

impl Fixture {
    fn new() -> Self {
        let dead_letters = Arc::new(MemoryDeadLetters::default());
        Self {
            bus: InProcessBus::new(dead_letters.clone()),
            dead_letters,
            publishing: Mutex::default(),
        }
    }
}

#[async_trait]
impl BusFixture for Fixture {
    async fn send(&self, events: Vec<Outgoing>) {
        let bus = self.bus.clone();
        let mut publishing = async move { drop(bus.publish(events).await) }.boxed();
        // After the first poll the events are in their queues.
        if futures::poll!(&mut publishing).is_pending() {
            self.publishing.lock().unwrap().spawn(publishing);
        }
    }

    async fn declare(&self, subscription: Subscription) {
        self.bus.declare(subscription).unwrap();
    }

    fn subscriber(&self) -> &dyn Subscriber {
        &self.bus
    }

    fn dead_letters(&self) -> &dyn DeadLetterStore {
        &*self.dead_letters
    }
}

#[tokio::test]
async fn the_bus_in_process_keeps_the_contract() {
    contract::all(async || Fixture::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_in_process_bus_carries_replies() {
    crate::messaging_patterns::contract::all(async || Arc::new(Fixture::new().bus)).await;
}

#[tokio::test]
async fn an_event_is_confirmed_only_when_every_queue_has_settled_it() {
    let bus = Fixture::new().bus;
    let mut one = bus.subscribe(users("one")).await.unwrap();
    let mut two = bus.subscribe(users("two")).await.unwrap();
    let mut publishing = bus.publish(vec![view("a", 1)]);
    assert!(futures::poll!(&mut publishing).is_pending());
    soon(one.next()).await.unwrap().settle(Settlement::Ack).await.unwrap();
    assert!(futures::poll!(&mut publishing).is_pending());
    let reason = "poison".to_owned();
    soon(two.next()).await.unwrap().settle(Settlement::DeadLetter { reason }).await.unwrap();
    assert_eq!(soon(publishing).await, [Ok(())]);
}

#[tokio::test]
async fn events_without_a_queue_are_confirmed_once_any_queue_is_declared() {
    let bus = Fixture::new().bus;
    assert_eq!(soon(bus.publish(vec![view("a", 1)])).await, [Err(PublishError::Unroutable)]);
    let bindings = vec![Binding::new(USER_EXCHANGE, "user.delete")];
    bus.declare(Subscription::new("deletions", bindings)).unwrap();
    assert_eq!(soon(bus.publish(vec![view("a", 1)])).await, [Ok(())]);
    assert_eq!(bus.depths()[0].waiting, 0);
}

#[tokio::test]
async fn a_declared_queue_confirms_only_what_its_subscriber_settled() {
    let bus = Fixture::new().bus;
    bus.declare(users("q")).unwrap();
    let mut publishing = bus.publish(vec![view("a", 1)]);
    assert!(futures::poll!(&mut publishing).is_pending());
    assert_eq!((bus.depths()[0].waiting, bus.depths()[0].subscribers), (1, 0));
    bus.declare(users("q")).unwrap();
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    soon(deliveries.next()).await.unwrap().settle(Settlement::Ack).await.unwrap();
    assert_eq!(soon(publishing).await, [Ok(())]);
    let different = Subscription { shards: 3, ..users("q") };
    assert!(matches!(bus.declare(different), Err(SubscribeError::Invalid(_))));
    bus.close();
    assert!(matches!(bus.declare(users("late")), Err(SubscribeError::Unavailable(_))));
}

#[tokio::test]
async fn a_full_queue_makes_publishers_wait() {
    let dead_letters = Arc::new(MemoryDeadLetters::default());
    let bus = InProcessBus::with_capacity(dead_letters, 2, system_clock());
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    let mut publishing = bus.publish((0..5).map(|n| view("a", n)).collect());
    for n in 0..5 {
        assert!(futures::poll!(&mut publishing).is_pending());
        let depth = &bus.depths()[0];
        assert!(depth.waiting + depth.unsettled <= 2, "{depth:?}");
        let delivery = soon(deliveries.next()).await.unwrap();
        assert_eq!(key_and_number(&delivery).1, n.to_string());
        delivery.settle(Settlement::Ack).await.unwrap();
    }
    assert_eq!(soon(publishing).await, vec![Ok(()); 5]);
}

#[tokio::test]
async fn an_event_abandoned_by_its_publisher_is_not_delivered() {
    let bus = Fixture::new().bus;
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    let mut abandoned = bus.publish(vec![view("a", 1)]);
    assert!(futures::poll!(&mut abandoned).is_pending());
    drop(abandoned);
    let mut publishing = bus.publish(vec![view("a", 2)]);
    assert!(futures::poll!(&mut publishing).is_pending());
    let delivery = soon(deliveries.next()).await.unwrap();
    assert_eq!(key_and_number(&delivery).1, "2");
    delivery.settle(Settlement::Ack).await.unwrap();
    assert_eq!(soon(publishing).await, [Ok(())]);
}

struct BrokenStore;

#[async_trait]
impl DeadLetterStore for BrokenStore {
    async fn put(&self, _: DeadLetter) -> anyhow::Result<()> {
        anyhow::bail!("the disk is full")
    }
    async fn list(&self, _: u32, _: Option<uuid::Uuid>) -> anyhow::Result<Vec<DeadLetter>> {
        anyhow::bail!("the disk is full")
    }
    async fn count(&self) -> anyhow::Result<u64> {
        anyhow::bail!("the disk is full")
    }
    async fn get(&self, _: uuid::Uuid) -> anyhow::Result<Option<DeadLetter>> {
        anyhow::bail!("the disk is full")
    }
    async fn replay(&self, _: &[uuid::Uuid]) -> anyhow::Result<Vec<Settled>> {
        anyhow::bail!("the disk is full")
    }
    async fn discard(&self, _: &[uuid::Uuid]) -> anyhow::Result<Vec<Settled>> {
        anyhow::bail!("the disk is full")
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_cannot_be_kept_is_delivered_again() {
    let bus = InProcessBus::new(Arc::new(BrokenStore));
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    let mut publishing = bus.publish(vec![view("a", 1)]);
    assert!(futures::poll!(&mut publishing).is_pending());
    let delivery = soon(deliveries.next()).await.unwrap();
    let reason = "poison".to_owned();
    delivery.settle(Settlement::DeadLetter { reason }).await.unwrap_err();
    assert!(futures::poll!(&mut publishing).is_pending());
    let again = soon(deliveries.next()).await.unwrap();
    assert_eq!(again.attempt, 2);
}

#[tokio::test]
async fn closing_ends_both_sides_and_confirms_nothing() {
    let bus = Fixture::new().bus;
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    let mut publishing = bus.publish(vec![view("a", 1), view("a", 2)]);
    assert!(futures::poll!(&mut publishing).is_pending());
    let out = soon(deliveries.next()).await.unwrap();
    bus.close();
    assert!(soon(deliveries.next()).await.is_none());
    drop(out);
    let results = soon(publishing).await;
    assert!(results.iter().all(|r| matches!(r, Err(PublishError::Unavailable(_)))), "{results:?}");
    let results = soon(bus.publish(vec![view("a", 3)])).await;
    assert!(matches!(results[..], [Err(PublishError::Unavailable(_))]), "{results:?}");
    let refused = bus.subscribe(users("q")).await;
    assert!(matches!(refused, Err(SubscribeError::Unavailable(_))));
}

#[tokio::test]
async fn subscribers_of_one_queue_share_its_shards() {
    let bus = Fixture::new().bus;
    let mut one = bus.subscribe(users("q")).await.unwrap();
    let mut two = bus.subscribe(users("q")).await.unwrap();
    let mut publishing = bus.publish((0..64).map(|n| view(&format!("user{n}"), n)).collect());
    assert!(futures::poll!(&mut publishing).is_pending());
    let mut had = [0, 0];
    while futures::poll!(&mut publishing).is_pending() {
        let (who, delivery) = tokio::select! {
            delivery = one.next() => (0, delivery),
            delivery = two.next() => (1, delivery),
        };
        had[who] += 1;
        delivery.unwrap().settle(Settlement::Ack).await.unwrap();
    }
    assert_eq!(had[0] + had[1], 64);
    assert!(had[0] > 0 && had[1] > 0, "{had:?}");
    let different = Subscription { shards: 3, ..users("q") };
    assert!(matches!(bus.subscribe(different).await, Err(SubscribeError::Invalid(_))));
}

/// What a subscriber of the property below does with its next delivery.
#[derive(Clone, Copy, Debug)]
enum Act {
    Ack,
    Retry,
    Drop,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![6 => Just(Act::Ack), 1 => Just(Act::Retry), 1 => Just(Act::Drop)]
}

type Acknowledged = Arc<Mutex<BTreeMap<String, Vec<u32>>>>;

/// Subscribes, acts on some deliveries while holding a few at once, and leaves.
async fn visit(bus: InProcessBus, subscription: Subscription, acts: Vec<Act>, log: Acknowledged) {
    let mut deliveries = bus.subscribe(subscription).await.unwrap();
    let mut held = std::collections::VecDeque::new();
    for act in acts {
        // There may be no delivery: everything is done, or waits for the deliveries held here.
        let next = tokio::time::timeout(Duration::from_millis(2), deliveries.next()).await;
        let nothing = next.is_err();
        if let Ok(Some(delivery)) = next {
            held.push_back((act, delivery));
        }
        if (nothing || held.len() > 2)
            && let Some((act, delivery)) = held.pop_front()
        {
            finish(act, delivery, &log).await;
        }
    }
    // Leaves while holding some.
    drop(deliveries);
    for (act, delivery) in held {
        finish(act, delivery, &log).await;
    }
}

async fn finish(act: Act, delivery: crate::bus::Delivery, log: &Acknowledged) {
    let (user, number) = key_and_number(&delivery);
    match act {
        Act::Ack => {
            log.lock().unwrap().entry(user).or_default().push(number.parse().unwrap());
            delivery.settle(Settlement::Ack).await.unwrap();
        }
        Act::Retry => {
            let after = Duration::from_micros(500);
            delivery.settle(Settlement::Retry { after }).await.unwrap();
        }
        Act::Drop => drop(delivery),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn each_key_is_acknowledged_in_order_while_subscribers_come_and_go(
        keys in proptest::collection::vec(0_u8..5, 1..80),
        visits in proptest::collection::vec(proptest::collection::vec(act(), 1..20), 1..8),
        shards in 1_usize..5,
        prefetch in 1_usize..6,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut expected: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        let mut events = Vec::new();
        for key in keys {
            let key = format!("user{key}");
            let numbers = expected.entry(key.clone()).or_default();
            let number = u32::try_from(numbers.len()).unwrap();
            numbers.push(number);
            events.push(view(&key, number));
        }
        let log = Acknowledged::default();
        let count = events.len();
        let results = runtime.block_on(async {
            let bus = Fixture::new().bus;
            let subscription = Subscription { prefetch, shards, ..users("q") };
            // The queue must exist before the first event; its declaring subscriber may leave.
            drop(bus.subscribe(subscription.clone()).await.unwrap());
            let publishing = tokio::spawn({
                let bus = bus.clone();
                async move { bus.publish(events).await }
            });
            let mut visitors = JoinSet::new();
            for acts in visits {
                visitors.spawn(visit(bus.clone(), subscription.clone(), acts, log.clone()));
            }
            soon(visitors.join_all()).await;
            // The last subscriber gets the rest, and stays until everything is confirmed.
            let patient = visit(bus.clone(), subscription, vec![Act::Ack; 10_000], log.clone());
            let patient = tokio::spawn(patient);
            let results = soon(publishing).await.unwrap();
            patient.abort();
            eventually("the queue is empty", async || match &bus.depths()[0] {
                depth if depth.waiting == 0 && depth.unsettled == 0 => Ok(()),
                depth => Err(depth.clone()),
            })
            .await;
            results
        });
        prop_assert_eq!(results, vec![Ok(()); count]);
        prop_assert_eq!(&*log.lock().unwrap(), &expected);
    }
}
