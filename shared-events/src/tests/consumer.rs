//! The pipeline, over the in-process bus.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{eventually, soon};
use crate::backoff::Backoff;
use crate::bus::contract::{users, view};
use crate::bus::in_process::InProcessBus;
use crate::bus::{
    Deliveries, Delivery, DeliverySource, Publisher as _, Settle, SettleError, Settlement, Settler,
    Subscriber as _, TopicPattern,
};
use crate::consumer::*;
use crate::dead_letters::{DeadLetterStore as _, MemoryDeadLetters};
use crate::events::{DeleteUser, Event as _, Outgoing, ViewTourspot};
use crate::system_clock;

/// Keeps ids and effects, and acts by the user's name.
#[derive(Default)]
struct RecordingHandler {
    seen: Mutex<BTreeSet<Uuid>>,
    effects: Mutex<Vec<(String, String)>>,
    times: Mutex<Vec<DateTime<Utc>>>,
    batches: Mutex<Vec<usize>>,
    outage: Mutex<u32>,
}

impl RecordingHandler {
    fn effects_of(&self, user: &str) -> Vec<String> {
        let effects = self.effects.lock().unwrap();
        effects.iter().filter(|(who, _)| who == user).map(|(_, what)| what.clone()).collect()
    }
}

#[async_trait]
impl Handler for RecordingHandler {
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError> {
        if event.envelope.r#type != ViewTourspot::TYPE {
            return Ok(Outcome::Ignored);
        }
        let view: ViewTourspot = event.data()?;
        match view.user_id.as_str() {
            "poison" => return Err(anyhow::anyhow!("it never works").into()),
            "hopeless" => return Err(HandlerError::Permanent("it cannot work".to_owned())),
            "panic" => panic!("on purpose"),
            "slow" => std::future::pending().await,
            "later" if event.attempt < 3 => return Err(anyhow::anyhow!("not yet").into()),
            "outage" => {
                let mut left = self.outage.lock().unwrap();
                if *left > 0 {
                    *left -= 1;
                    return Err(HandlerError::Unavailable(anyhow::anyhow!("the store is down")));
                }
            }
            _ => {}
        }
        if !self.seen.lock().unwrap().insert(event.envelope.id) {
            return Ok(Outcome::Duplicate);
        }
        self.times.lock().unwrap().push(event.envelope.timestamp);
        self.effects.lock().unwrap().push((view.user_id, view.tourspot_id));
        Ok(Outcome::Applied)
    }

    async fn handle_batch(&self, events: &[Received]) -> Vec<Result<Outcome, HandlerError>> {
        self.batches.lock().unwrap().push(events.len());
        futures::future::join_all(events.iter().map(|event| self.handle(event))).await
    }
}

fn quick() -> ConsumerSettings {
    ConsumerSettings {
        retry: RetryPolicy {
            max_attempts: 4,
            backoff: Backoff {
                base: Duration::from_millis(2),
                max: Duration::from_millis(20),
                jitter: 0.5,
            },
        },
        handle_timeout: Duration::from_millis(100),
        drain_timeout: Duration::from_millis(300),
        ..ConsumerSettings::default()
    }
}

struct Scene {
    bus: InProcessBus,
    dead_letters: Arc<MemoryDeadLetters>,
    diary: Arc<RecordingHandler>,
    metrics: QueueMetrics,
    shutdown: CancellationToken,
    consumer: JoinHandle<()>,
}

impl Scene {
    async fn new(settings: ConsumerSettings) -> Self {
        let dead_letters = Arc::new(MemoryDeadLetters::default());
        let bus = InProcessBus::new(dead_letters.clone());
        let deliveries = bus.subscribe(users("q")).await.unwrap();
        let diary = Arc::new(RecordingHandler::default());
        let consumer = Consumer::new("diary", deliveries, diary.clone(), system_clock())
            .with_settings(settings);
        let metrics = consumer.metrics();
        let shutdown = CancellationToken::new();
        let consumer = tokio::spawn(consumer.run(shutdown.clone()));
        Self { bus, dead_letters, diary, metrics, shutdown, consumer }
    }

    /// Publishes and waits until everything is settled.
    async fn publish(&self, events: Vec<Outgoing>) {
        let results = soon(self.bus.publish(events)).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    /// Reasons and attempts of the dead letters, the oldest first.
    async fn dead_lettered(&self) -> Vec<(String, u32)> {
        let mut letters = self.dead_letters.list(100, None).await.unwrap();
        letters.reverse();
        letters.into_iter().map(|letter| (letter.reason, letter.attempts)).collect()
    }
}

#[tokio::test]
async fn events_take_effect_once_however_often_they_come() {
    let scene = Scene::new(quick()).await;
    let event = view("someone", 1);
    let gone = Outgoing::new(&DeleteUser { user_id: "someone".to_owned() }, Utc::now());
    scene.publish(vec![event.clone(), event.clone(), view("someone", 2), gone]).await;
    scene.publish(vec![event]).await;
    assert_eq!(scene.diary.effects_of("someone"), ["1", "2"]);
    let metrics = &scene.metrics;
    assert_eq!(
        (
            metrics.received.get(),
            metrics.applied.get(),
            metrics.duplicate.get(),
            metrics.ignored.get()
        ),
        (5, 2, 2, 1)
    );
    assert_eq!(metrics.dead_lettered.get(), 0);
}

#[tokio::test]
async fn failures_are_retried_and_then_dead_lettered() {
    let scene = Scene::new(quick()).await;
    scene.publish(vec![view("later", 1), view("poison", 2), view("hopeless", 3)]).await;
    assert_eq!(scene.diary.effects_of("later"), ["1"]);
    let mut dead_lettered = scene.dead_lettered().await;
    dead_lettered.sort();
    let expected = [("it cannot work", 1), ("it never works", 4)];
    assert_eq!(dead_lettered, expected.map(|(reason, attempts)| (reason.to_owned(), attempts)));
    let metrics = &scene.metrics;
    assert_eq!((metrics.retried.get(), metrics.dead_lettered.get()), (2 + 3, 2));
}

#[tokio::test]
async fn even_a_long_outage_makes_no_dead_letters() {
    let scene = Scene::new(quick()).await;
    *scene.diary.outage.lock().unwrap() = 25;
    scene.publish(vec![view("outage", 1), view("outage", 2)]).await;
    assert_eq!(scene.diary.effects_of("outage"), ["1", "2"]);
    assert_eq!(scene.metrics.retried.get(), 25);
    assert!(scene.dead_lettered().await.is_empty());
}

#[tokio::test]
async fn a_handler_that_panics_or_hangs_affects_no_other_event() {
    let scene = Scene::new(quick()).await;
    let mut events = vec![view("panic", 1), view("slow", 2)];
    events.extend((0..30).map(|n| view(&format!("good{n}"), n)));
    scene.publish(events).await;
    for n in 0..30 {
        assert_eq!(scene.diary.effects_of(&format!("good{n}")), [n.to_string()]);
    }
    let mut dead_lettered = scene.dead_lettered().await;
    dead_lettered.sort();
    assert_eq!(dead_lettered.len(), 2, "{dead_lettered:?}");
    assert!(
        dead_lettered[0].0.contains("panicked") && dead_lettered[1].0.contains("longer"),
        "{dead_lettered:?}"
    );
    // One failed batch, then three more attempts each, alone.
    assert_eq!(scene.metrics.broken.get(), 7);
}

#[tokio::test]
async fn a_poison_event_holds_back_its_own_key_only() {
    let settings = ConsumerSettings {
        retry: RetryPolicy {
            max_attempts: 3,
            // Between its attempts the good ones have their time.
            backoff: Backoff {
                base: Duration::from_secs(3),
                max: Duration::from_secs(3),
                jitter: 0.0,
            },
        },
        ..quick()
    };
    let scene = Scene::new(settings).await;
    let poison = scene.bus.publish(vec![view("poison", 1)]);
    let good = async {
        eventually("the first failure", async || match scene.metrics.retried.get() {
            0 => Err("not yet failed"),
            _ => Ok(()),
        })
        .await;
        scene.publish((0..50).map(|n| view("good", n)).collect()).await;
        scene.metrics.dead_lettered.get()
    };
    let (_, dead_letters_by_then) = soon(async { tokio::join!(poison, good) }).await;
    assert_eq!(dead_letters_by_then, 0, "the good ones did not wait for the poison's end");
    assert_eq!(scene.diary.effects_of("good").len(), 50);
    assert_eq!(scene.dead_lettered().await.len(), 1);
}

#[tokio::test]
async fn waiting_items_are_handled_together_and_retried_alone() {
    let scene = Scene::new(ConsumerSettings { max_batch: 16, ..quick() }).await;
    let mut events: Vec<Outgoing> = (0..60).map(|n| view(&format!("user{n}"), n)).collect();
    events.insert(3, view("poison", 1));
    scene.publish(events).await;
    let batches = scene.diary.batches.lock().unwrap().clone();
    assert!(batches.iter().all(|n| *n <= 16), "{batches:?}");
    assert!(batches.contains(&16), "{batches:?}");
    assert_eq!(batches.iter().sum::<usize>(), 61, "each once; retries do not come in batches");
}

#[tokio::test]
async fn old_events_of_an_expiring_kind_are_dropped_and_others_not() {
    let expiry =
        Expiry { types: TopicPattern::new(ViewTourspot::TYPE), max_age: Duration::from_secs(60) };
    let scene = Scene::new(ConsumerSettings { expiry: vec![expiry], ..quick() }).await;
    let aged = |mut event: Outgoing, seconds| {
        event.envelope.timestamp -= TimeDelta::seconds(seconds);
        event
    };
    let gone = Outgoing::new(&DeleteUser { user_id: "someone".to_owned() }, Utc::now());
    scene
        .publish(vec![
            aged(view("someone", 1), 120),
            aged(view("someone", 2), 30),
            // A publisher whose clock is ahead does not make an event old.
            aged(view("someone", 3), -120),
            aged(gone, 1_000_000),
        ])
        .await;
    assert_eq!(scene.diary.effects_of("someone"), ["2", "3"]);
    let metrics = &scene.metrics;
    assert_eq!(
        (metrics.expired.get(), metrics.ignored.get(), metrics.dead_lettered.get()),
        (1, 1, 0)
    );
    assert_eq!(metrics.ahead.get(), 0, "two minutes are no reason");
}

#[tokio::test]
async fn an_event_from_far_in_the_future_counts_as_happening_now() {
    let max_ahead = Duration::from_secs(60);
    let scene = Scene::new(ConsumerSettings { max_ahead, ..quick() }).await;
    let dated = |number, seconds| {
        let mut event = view("someone", number);
        event.envelope.timestamp += TimeDelta::seconds(seconds);
        event
    };
    let before = Utc::now();
    scene.publish(vec![dated(1, 86_400)]).await;
    scene.publish(vec![dated(2, 30)]).await;
    let times = scene.diary.times.lock().unwrap().clone();
    assert!(times[0] >= before && times[0] <= Utc::now(), "{times:?}");
    assert!(times[1] > Utc::now(), "within the bound it keeps its time: {times:?}");
    assert_eq!((scene.metrics.ahead.get(), scene.metrics.applied.get()), (1, 2));
}

#[tokio::test]
async fn while_the_clock_is_not_to_be_trusted_nothing_is_too_old() {
    let expiry =
        Expiry { types: TopicPattern::new(ViewTourspot::TYPE), max_age: Duration::from_secs(60) };
    let may_expire = MayExpire::when(|_| false);
    let settings = ConsumerSettings { expiry: vec![expiry], may_expire, ..quick() };
    let scene = Scene::new(settings).await;
    let mut old = view("someone", 1);
    old.envelope.timestamp -= TimeDelta::days(40);
    scene.publish(vec![old]).await;
    assert_eq!(scene.diary.effects_of("someone"), ["1"]);
    assert_eq!(scene.metrics.expired.get(), 0);
}

/// A bus whose deliveries come from the test, including some that the in-process bus would never carry.
struct Raw(mpsc::Receiver<Delivery>);

#[async_trait]
impl DeliverySource for Raw {
    async fn next(&mut self) -> Option<Delivery> {
        self.0.recv().await
    }
}

struct Note(mpsc::UnboundedSender<Settlement>, bool);

#[async_trait]
impl Settle for Note {
    async fn settle(self: Box<Self>, settlement: Settlement) -> Result<(), SettleError> {
        self.0.send(settlement).unwrap();
        if self.1 { Ok(()) } else { Err(SettleError(anyhow::anyhow!("the connection is gone"))) }
    }
}

#[tokio::test]
async fn a_message_that_is_no_event_is_dead_lettered() {
    let (sender, receiver) = mpsc::channel(8);
    let (settled, mut settlements) = mpsc::unbounded_channel();
    let deliver = async |body: Bytes, works: bool| {
        let delivery = Delivery {
            body,
            exchange: String::new(),
            routing_key: "user.viewTourspot".to_owned(),
            ordering_key: None,
            headers: Default::default(),
            attempt: 1,
            waits: 0,
            settler: Settler::new(Note(settled.clone(), works)),
        };
        sender.send(delivery).await.unwrap();
    };
    let diary = Arc::new(RecordingHandler::default());
    let deliveries = Deliveries::new(Raw(receiver));
    let consumer = Consumer::new("diary", deliveries, diary.clone(), system_clock());
    let metrics = consumer.metrics();
    let consumer = tokio::spawn(consumer.run(CancellationToken::new()));

    let mut reasons = Vec::new();
    let oversized = Bytes::from(vec![b' '; 256 * 1024 + 1]);
    for body in [oversized, Bytes::from_static(b"\xff{"), Bytes::from_static(b"{\"secret\":1}")] {
        deliver(body, true).await;
        let Some(Settlement::DeadLetter { reason }) = soon(settlements.recv()).await else {
            panic!("not dead-lettered");
        };
        assert!(!reason.contains("secret"), "{reason}");
        reasons.push(reason);
    }
    assert!(reasons[0].contains("262145 bytes"), "{reasons:?}");
    // An outcome that the bus cannot record does not stop the consumer.
    deliver(view("someone", 1).envelope.encode(), false).await;
    assert_eq!(soon(settlements.recv()).await, Some(Settlement::Ack));
    deliver(view("someone", 2).envelope.encode(), true).await;
    assert_eq!(soon(settlements.recv()).await, Some(Settlement::Ack));
    drop(sender);
    soon(consumer).await.unwrap();
    assert_eq!(
        (metrics.oversized.get(), metrics.malformed.get(), metrics.dead_lettered.get()),
        (1, 2, 3)
    );
    assert_eq!((metrics.applied.get(), metrics.unsettled.get()), (2, 1));
}

#[tokio::test]
async fn stopping_finishes_what_was_begun_and_hands_the_rest_back() {
    let settings = ConsumerSettings { handle_timeout: Duration::from_secs(60), ..quick() };
    let scene = Scene::new(settings).await;
    let slow = tokio::spawn({
        let bus = scene.bus.clone();
        async move { bus.publish(vec![view("slow", 1)]).await }
    });
    eventually("the delivery is in flight", async || match scene.metrics.received.get() {
        0 => Err("not yet received"),
        _ => Ok(()),
    })
    .await;
    scene.shutdown.cancel();
    soon(scene.consumer).await.unwrap();
    assert!(!slow.is_finished());
    let mut successor = scene.bus.subscribe(users("q")).await.unwrap();
    let delivery = soon(successor.next()).await.unwrap();
    assert_eq!(delivery.attempt, 2);
    delivery.settle(Settlement::Ack).await.unwrap();
    assert_eq!(soon(slow).await.unwrap(), [Ok(())]);
}

/// Remembers ids exactly as long as the rule says.
struct ExpiringIds {
    expiry: Expiry,
    clock: crate::Clock,
    seen: Mutex<std::collections::BTreeMap<Uuid, DateTime<Utc>>>,
}

#[async_trait]
impl Handler for ExpiringIds {
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError> {
        let now = (self.clock)();
        let mut seen = self.seen.lock().unwrap();
        seen.retain(|_, until| *until > now);
        let envelope = &event.envelope;
        if seen.contains_key(&envelope.id) {
            return Ok(Outcome::Duplicate);
        }
        seen.insert(envelope.id, self.expiry.remember_until(event.dated_at, now));
        Ok(Outcome::Applied)
    }
}

#[tokio::test]
async fn an_event_that_comes_again_at_any_time_has_no_second_effect_though_its_key_expires() {
    let start = Utc::now();
    let now = Arc::new(Mutex::new(start));
    let clock: crate::Clock = {
        let now = now.clone();
        Arc::new(move || *now.lock().unwrap())
    };
    let max_age = Duration::from_secs(24 * 3_600);
    let expiry = Expiry { types: TopicPattern::new("user.viewTourspot"), max_age };
    let bus = InProcessBus::new(Arc::new(MemoryDeadLetters::default()));
    let deliveries = bus.subscribe(users("q")).await.unwrap();
    let handler = Arc::new(ExpiringIds {
        expiry: expiry.clone(),
        clock: clock.clone(),
        seen: Mutex::default(),
    });
    let settings = ConsumerSettings { expiry: vec![expiry], ..quick() };
    let consumer =
        Consumer::new("forgetful", deliveries, handler.clone(), clock).with_settings(settings);
    let (mut registry, all) = (Registry::default(), ConsumerMetrics::default());
    all.register(&mut registry);
    let metrics = all.of("q");
    let consumer = consumer.with_metrics(metrics.clone());
    let shutdown = CancellationToken::new();
    let consumer = tokio::spawn(consumer.run(shutdown.clone()));
    let at = |hours: i64| {
        let mut event = view("someone", 1);
        event.envelope.timestamp = start + TimeDelta::hours(hours);
        event
    };
    // Events of a fast clock, of now, and one that waited in an outbox for most of its life.
    let events = vec![at(5), at(0), at(-23)];
    // From the queue, from the outbox by a replay, from the dead letters weeks later.
    for half_hours in 0..100 {
        *now.lock().unwrap() = start + TimeDelta::minutes(30 * half_hours);
        let results = soon(bus.publish(events.clone())).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert_eq!(metrics.applied.get(), 3, "after {half_hours} half hours");
    }
    let counted = [&metrics.applied, &metrics.duplicate, &metrics.expired].map(Counter::get);
    assert!(handler.seen.lock().unwrap().len() < 3, "keys are forgotten, too");
    assert_eq!(counted.iter().sum::<u64>(), 300);
    assert!(counted[1] > 50 && counted[2] > 50, "{counted:?}");
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for line in ["count{queue=\"q\"} 3", "sum{queue=\"q\"} 82800.0"] {
        assert!(text.contains(&format!("tourin_event_age_at_effect_seconds_{line}")), "{text}");
    }
    shutdown.cancel();
    soon(consumer).await.unwrap();
}

proptest::proptest! {
    /// Holds for any difference between two consumers' clocks, and any time between the check of the age and the
    /// effect.
    #[test]
    fn a_key_outlives_every_chance_of_its_event(
        max_age in 0_u64..10_000_000,
        // In seconds: the first effect after the event, its repetition, the clocks' error, the handling.
        first in -3_000_i64..10_000_000, again in 0_i64..20_000_000,
        error in -1_500_i64..1_500, handling in 0_i64..60,
    ) {
        let expiry = Expiry {
            types: TopicPattern::new("#"),
            max_age: Duration::from_secs(max_age),
        };
        let occurred = Utc::now();
        let first = occurred + TimeDelta::seconds(first);
        let again = first + TimeDelta::seconds(again);
        let checked = again + TimeDelta::seconds(error);
        if !expiry.is_over(occurred, first) && !expiry.is_over(occurred, checked) {
            let effect = again + TimeDelta::seconds(handling);
            proptest::prop_assert!(effect < expiry.remember_until(occurred, first));
        }
    }
}
