//! A broker that stops and restarts while events wait in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tourin_shared_events::bus::contract::{key_and_number, users, view};
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitSettings};
use tourin_shared_events::bus::{
    Deliveries, PublishError, Publisher as _, Settlement, Subscriber as _,
};
use tourin_testbed::{Bed, Server, StopSignal, equal, eventually, eventually_within};

const KEYS: u32 = 48;
/// How long the bus may take to recover once the broker answers.
const RECOVERY: Duration = Duration::from_secs(30);
/// The time within which expected events must happen.
const SOON: Duration = Duration::from_secs(120);

/// The confirmed events of each key, which are numbered from 0.
type Confirmed = Arc<Mutex<BTreeMap<String, u32>>>;
/// The settled events, in order.
type Handled = Arc<Mutex<Vec<(String, u32)>>>;
type Pause = Arc<tokio::sync::Mutex<()>>;

fn lock<T>(shared: &Arc<Mutex<T>>) -> MutexGuard<'_, T> {
    shared.lock().expect("the lock is not poisoned")
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("it should not take so long")
}

/// Publishes as an outbox does: the events of one key in order, each until it is confirmed.
async fn publish(bus: RabbitBus, user: String, count: u32, confirmed: Confirmed) -> u32 {
    let from = lock(&confirmed).get(&user).copied().unwrap_or(0);
    let mut failures = 0;
    for number in from..from + count {
        let event = view(&user, number);
        loop {
            match bus.publish(vec![event.clone()]).await.remove(0) {
                Ok(()) => break,
                Err(PublishError::Unavailable(_)) => failures += 1,
                Err(error @ PublishError::Invalid(_)) => panic!("{error}"),
                // A starting broker may have its exchanges before its queues.
                Err(PublishError::Rejected(_) | PublishError::Unroutable) => {
                    failures += 1;
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        lock(&confirmed).insert(user.clone(), number + 1);
    }
    failures
}

fn publish_all(bus: &RabbitBus, count: u32, confirmed: &Confirmed) -> JoinSet<u32> {
    let mut publishing = JoinSet::new();
    for key in 0..KEYS {
        publishing.spawn(publish(bus.clone(), format!("user{key}"), count, confirmed.clone()));
    }
    publishing
}

/// Handles events one at a time, and none while `pause` is taken.
async fn handle(mut deliveries: Deliveries, pause: Pause, handled: Handled) {
    while let Some(delivery) = deliveries.next().await {
        let (user, number) = key_and_number(&delivery);
        sleep(Duration::from_millis(1)).await;
        drop(pause.lock().await);
        lock(&handled).push((user, number.parse().expect("a number")));
        // It fails when the connection is lost, and then the event comes again.
        drop(delivery.settle(Settlement::Ack).await);
    }
}

/// Per key, the numbers in the order of their first delivery.
fn first_comings(handled: &Handled) -> BTreeMap<String, Vec<u32>> {
    let mut seen: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for (user, number) in lock(handled).iter() {
        let numbers = seen.entry(user.clone()).or_default();
        if !numbers.contains(number) {
            numbers.push(*number);
        }
    }
    seen
}

/// Waits until every confirmed event was handled, and checks the order of each key.
async fn all_is_there_in_order(confirmed: &Confirmed, handled: &Handled) {
    let expected = lock(confirmed).clone();
    eventually_within(SOON, &format!("{expected:?} are handled"), async || {
        let counts: BTreeMap<String, u32> = first_comings(handled)
            .into_iter()
            .map(|(user, numbers)| (user, u32::try_from(numbers.len()).expect("few")))
            .collect();
        equal(counts, expected.clone())
    })
    .await;
    for (user, numbers) in first_comings(handled) {
        assert_eq!(numbers, (0..expected[&user]).collect::<Vec<_>>(), "the order of {user}");
    }
}

/// Waits until another event was handled.
async fn works_again(handled: &Handled) {
    let before = lock(handled).len();
    eventually_within(SOON, "another event is handled", async || lock(handled).len() > before)
        .await;
}

/// With a backlog in the queues and running publishers, once for each way to stop the broker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_under_load_lose_nothing_and_keep_the_order_of_each_key() {
    let bed = Bed::with(&[Server::Amqp]).await;
    let settings = RabbitSettings::new(bed.url(Server::Amqp).parse().unwrap());
    let (publisher, consumer) = (RabbitBus::start(settings.clone()), RabbitBus::start(settings));
    let (confirmed, handled) = (Confirmed::default(), Handled::default());
    let subscription = users("q");
    let shards = (0..subscription.shards).map(|shard| format!("q.shard.{shard}"));
    let queues: Vec<_> = shards.chain(["q.dead".to_owned()]).collect();
    let deliveries = consumer.subscribe(subscription).await.unwrap();
    bed.quorum_queues_are_kept(&queues).await;
    let pause = Pause::default();
    let consuming = tokio::spawn(handle(deliveries, pause.clone(), handled.clone()));
    for signal in [StopSignal::Kill, StopSignal::Term, StopSignal::Kill] {
        // So that every shard has a backlog when the broker stops.
        let paused = pause.lock().await;
        let mut publishing = publish_all(&publisher, 40, &confirmed);
        let sent = || lock(&confirmed).values().sum::<u32>() as usize;
        let before = sent();
        // Halfway: some events are sent, most are not.
        eventually("half of the events are sent", async || sent() >= before + KEYS as usize * 5)
            .await;
        let backlog = sent() - first_comings(&handled).values().map(Vec::len).sum::<usize>();
        bed.stop(Server::Amqp, signal).await;
        drop(paused);
        assert!(soon(publisher.wait_until_connected(false)).await);
        bed.start(Server::Amqp).await;
        let back = Instant::now();
        soon(works_again(&handled)).await;
        let recovered = back.elapsed();
        let mut failures = 0;
        while let Some(failed) = soon(publishing.join_next()).await {
            failures += failed.unwrap();
        }
        println!(
            "{signal:?}, backlog {backlog}, {failures} failed publishes, back after {recovered:?}"
        );
        assert!(recovered < RECOVERY, "it took {recovered:?} after the broker's return");
        assert!(backlog > 0 && failures > 0, "the restart must have met something");
    }
    all_is_there_in_order(&confirmed, &handled).await;
    let metrics = consumer.metrics();
    assert!(consumer.is_connected() && metrics.reconnects.get() >= 3, "{metrics:?}");
    soon(consumer.close(Duration::from_secs(5))).await;
    soon(consuming).await.unwrap();
    soon(publisher.close(Duration::from_secs(5))).await;
    bed.remove().await;
}
