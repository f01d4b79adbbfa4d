//! Several relays on one outbox.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tourin_testbed::{SOON, eventually};
use uuid::Uuid;

use super::{OutboxFixture, at, views};
use crate::backoff::Backoff;
use crate::bus::contract::view;
use crate::bus::{PublishError, Publisher};
use crate::events::Outgoing;
use crate::outbox::{
    Filter, Relay, RelayMetrics, RelaySettings, Run, SHARDS, State, Wake, shard_of,
};
use crate::system_clock;

/// A lease that does not end on a busy machine, which would repeat events.
const LEASE: Duration = Duration::from_secs(10);
/// That of relays of which one dies: others wait for its end.
const SHORT_LEASE: Duration = Duration::from_secs(1);

/// A bus that records its events in order.
#[derive(Default)]
struct Recording {
    carried: Mutex<Vec<Outgoing>>,
    /// It cannot carry events of these keys.
    impossible: Mutex<BTreeSet<String>>,
}

/// One relay's connection to the bus. Once cut, it carries events without confirming them.
struct Wire {
    bus: Arc<Recording>,
    cut: CancellationToken,
}

#[async_trait]
impl Publisher for Wire {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        let mut results = Vec::new();
        for event in batch {
            let impossible = lock(&self.bus.impossible).contains(&event.ordering_key);
            results.push(match impossible {
                true => Err(PublishError::Invalid("too large".to_owned())),
                false => Ok(()),
            });
            if !impossible {
                lock(&self.bus.carried).push(event);
            }
        }
        sleep(Duration::from_millis(2)).await;
        if self.cut.is_cancelled() {
            std::future::pending::<()>().await;
        }
        results
    }

    fn batch_size(&self) -> usize {
        8
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Running {
    metrics: RelayMetrics,
    stop: CancellationToken,
    cut: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(fixture: &impl OutboxFixture, bus: &Arc<Recording>, wake: &Wake) -> Self {
        Self::with_lease(fixture, bus, wake, LEASE)
    }

    fn with_lease(
        fixture: &impl OutboxFixture,
        bus: &Arc<Recording>,
        wake: &Wake,
        lease: Duration,
    ) -> Self {
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let wire = Arc::new(Wire { bus: bus.clone(), cut: cut.clone() });
        let settings = RelaySettings {
            poll_interval: Duration::from_millis(20),
            rescan_interval: Duration::from_millis(200),
            lease,
            backoff: Backoff {
                base: Duration::from_millis(2),
                max: Duration::from_millis(20),
                jitter: 0.5,
            },
            // What is confirmed and not marked at its end comes again.
            drain_timeout: Duration::from_secs(30),
            ..RelaySettings::default()
        };
        let relay = Relay::new(fixture.shared(), wire, wake.clone(), system_clock());
        let relay = relay.with_settings(settings);
        let metrics = relay.metrics();
        Self { metrics, task: tokio::spawn(relay.run(stop.clone())), stop, cut }
    }

    fn shards(&self) -> i64 {
        self.metrics.shards.get()
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(SOON, self.task).await.expect("it ends soon").expect("it does not panic");
    }
}

async fn all_marked(fixture: &impl OutboxFixture) {
    eventually("all events are marked", async || {
        match fixture.store().depth().await.expect("depth").pending {
            0 => Ok(()),
            pending => Err(pending),
        }
    })
    .await;
}

/// The numbers of each key in the order of their first delivery, and the count of repeats.
fn effect(bus: &Recording) -> (BTreeMap<String, Vec<u32>>, usize) {
    let mut seen = BTreeSet::<Uuid>::new();
    let mut effect = BTreeMap::<String, Vec<u32>>::new();
    let carried = lock(&bus.carried);
    for event in carried.iter().filter(|event| seen.insert(event.envelope.id)) {
        let number = event.envelope.data["tourspot_id"].as_str().and_then(|n| n.parse().ok());
        effect.entry(event.ordering_key.clone()).or_default().push(number.expect("a number"));
    }
    (effect, carried.len() - seen.len())
}

/// Appends `rounds` events of each of forty keys, one transaction a round.
async fn write(fixture: &impl OutboxFixture, wake: &Wake, rounds: std::ops::Range<u32>) {
    for round in rounds {
        let events: Vec<_> = (0..40).map(|key| view(&format!("key{key}"), round)).collect();
        fixture.append(&events, Utc::now()).await;
        wake.notify();
        sleep(Duration::from_millis(5)).await;
    }
}

fn expected(rounds: u32) -> BTreeMap<String, Vec<u32>> {
    (0..40).map(|key| (format!("key{key}"), (0..rounds).collect())).collect()
}

/// No event is published twice without a failure, even while relays come, go and exchange shards.
pub async fn healthy_relays_publish_each_event_once(fixture: &impl OutboxFixture) {
    let (bus, wake) = (Arc::new(Recording::default()), Wake::new());
    let first = Running::start(fixture, &bus, &wake);
    write(fixture, &wake, 0..20).await;
    let others = [0, 1].map(|_| Running::start(fixture, &bus, &wake));
    let mut rounds = 20;
    eventually("each relay holds its share of the shards", async || {
        write(fixture, &wake, rounds..rounds + 5).await;
        rounds += 5;
        let shards = [first.shards(), others[0].shards(), others[1].shards()];
        let fair = shards.iter().all(|shards| (4..=6).contains(shards));
        if fair && shards.iter().sum::<i64>() == i64::from(SHARDS) { Ok(()) } else { Err(shards) }
    })
    .await;
    write(fixture, &wake, rounds..rounds + 20).await;
    first.stop().await;
    write(fixture, &wake, rounds + 20..rounds + 40).await;
    all_marked(fixture).await;
    for other in others {
        assert!(other.metrics.published.get() > 0, "each had its share");
        other.stop().await;
    }
    assert_eq!(effect(&bus), (expected(rounds + 40), 0));
}

/// A dead relay's shards move, each key continues in order, and its unconfirmed events come again.
pub async fn a_relay_that_dies_is_replaced(fixture: &impl OutboxFixture) {
    let (bus, wake) = (Arc::new(Recording::default()), Wake::new());
    let relays = [0, 1, 2].map(|_| Running::with_lease(fixture, &bus, &wake, SHORT_LEASE));
    let mut rounds = 0;
    eventually("each relay holds four shards or more", async || {
        write(fixture, &wake, rounds..rounds + 5).await;
        rounds += 5;
        let shards = relays.each_ref().map(Running::shards);
        if shards.iter().all(|shards| *shards >= 4) { Ok(()) } else { Err(shards) }
    })
    .await;
    // Its confirmations are lost from now on. Then it stops without releasing its shards.
    relays[0].cut.cancel();
    write(fixture, &wake, rounds..rounds + 10).await;
    relays[0].task.abort();
    write(fixture, &wake, rounds + 10..rounds + 20).await;
    all_marked(fixture).await;
    let [_, second, third] = relays;
    second.stop().await;
    third.stop().await;
    assert_eq!(effect(&bus).0, expected(rounds + 20));
}

/// Id, time, payload, key and trace context are unchanged from the append to the bus.
pub async fn an_event_arrives_as_it_was_recorded(fixture: &impl OutboxFixture) {
    let (bus, wake) = (Arc::new(Recording::default()), Wake::new());
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut sent = views(0..3);
    sent[0] = sent[0].clone().with_header("traceparent", parent).with_header("tracestate", "a=1");
    sent[1].envelope.timestamp = at(-86_400);
    sent[1].envelope.data = serde_json::json!({
        "tourspot_id": "7", "text": "경복궁 \u{1f3ef} \"quoted\\ \u{0}", "list": [1, -2, 1.5, null, true],
        "large": u64::MAX, "small": i64::MIN, "nested": {"empty": {}, "": ""}
    });
    fixture.append(&sent, Utc::now()).await;
    let relay = Running::start(fixture, &bus, &wake);
    all_marked(fixture).await;
    relay.stop().await;
    let carried: Vec<Outgoing> = lock(&bus.carried).clone();
    assert_eq!(super::without_versions(&carried), sent);
}

/// It is dead-lettered after a few attempts, its key continues, and an operator can replay it.
pub async fn an_unroutable_event_is_set_aside(fixture: &impl OutboxFixture) {
    let (bus, wake) = (Arc::new(Recording::default()), Wake::new());
    lock(&bus.impossible).insert("impossible".to_owned());
    fixture.append(&[view("impossible", 1), view("possible", 1)], Utc::now()).await;
    let relay = Running::start(fixture, &bus, &wake);
    all_marked(fixture).await;
    let store = fixture.store();
    let filter = Filter { state: State::Rejected, after: 0, limit: 10 };
    let rejected = store.list(&filter).await.expect("list");
    assert_eq!(rejected.len(), 1);
    let row = &rejected[0];
    assert_eq!((row.attempts, row.last_error.as_deref()), (3, Some("too large")));
    assert_eq!((row.ordering_key.as_str(), row.shard), ("impossible", shard_of("impossible")));
    assert_eq!(relay.metrics.dead_lettered.get(), 1);

    lock(&bus.impossible).clear();
    fixture.append(&[view("impossible", 2)], Utc::now()).await;
    wake.notify();
    all_marked(fixture).await;
    assert_eq!(effect(&bus).0["impossible"], [2], "its key went on");
    store.replay(&[row.seq], Run::Real).await.expect("replay");
    all_marked(fixture).await;
    assert_eq!(effect(&bus).0["impossible"], [2, 1]);
    // A replay publishes a confirmed row again, as the same event.
    store.replay(&[row.seq], Run::Real).await.expect("replay");
    all_marked(fixture).await;
    relay.stop().await;
    let (effect, again) = effect(&bus);
    assert_eq!((effect["impossible"].as_slice(), again), ([2, 1].as_slice(), 1));
}
