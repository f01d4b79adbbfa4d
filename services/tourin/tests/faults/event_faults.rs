//! Invalid, repeated and late events, published to the broker beside the valid ones.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use serde_json::json;
use tourin::audit::ledger::SpotId;
use tourin::audit::observation::History;
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitDeadLetters, RabbitSettings};
use tourin_shared_events::dead_letters::{DeadLetter, DeadLetterStore};
use tourin_shared_events::envelope::Envelope;
use tourin_testbed::eventually;
use uuid::Uuid;

use crate::audited::{Probe, Scene, audited};

const EXCHANGE: &str = "event.user.ex";
const BOOKMARK: &str = "user.bookmarkTourspot";
const UNBOOKMARK: &str = "user.unbookmarkTourspot";
const QUEUES: [&str; 2] = ["recommendation.trend", "recommendation.history"];
/// Events of the audit that are published again.
const EVENTS: usize = 60;
/// The header of this test's copies, so that they are not copied again.
const COPY: &str = "x-test-copy";

/// Publishes to the broker directly, without core.
struct RawPublisher {
    channel: Channel,
    // Held because the channel ends with it.
    _connection: Connection,
    url: String,
}

impl RawPublisher {
    async fn at(scene: &Scene<'_>) -> Self {
        let url = scene.mesh.bed.url(tourin_testbed::Server::Amqp).to_owned();
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { channel, _connection: connection, url }
    }

    async fn publish(&self, routing_key: &str, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm = self
            .channel
            .basic_publish(EXCHANGE.into(), routing_key.into(), options, body, properties)
            .await
            .unwrap();
        let confirmation = confirm.await.unwrap();
        assert!(matches!(confirmation, Confirmation::Ack(None)), "{confirmation:?}");
    }

    /// Publishes an event of this person and spot with the time `at`.
    async fn event(
        &self,
        kind: &str,
        person: &str,
        spot: impl ToString,
        at: DateTime<Utc>,
    ) -> Uuid {
        let data = json!({"user_id": person, "tourspot_id": spot.to_string()});
        let envelope = Envelope::new(kind, at, data);
        self.publish(kind, &envelope.encode(), keyed(person)).await;
        envelope.id
    }

    /// The events that are published to the exchange from now on.
    async fn listen(&self) -> Consumer {
        let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
        let none = FieldTable::default;
        let queue = self.channel.queue_declare("".into(), options, none()).await.unwrap();
        let name = queue.name().clone();
        let options = QueueBindOptions::default();
        let binding =
            self.channel.queue_bind(name.clone(), EXCHANGE.into(), "#".into(), options, none());
        binding.await.unwrap();
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        self.channel.basic_consume(name, "".into(), options, none()).await.unwrap()
    }

    /// Publishes an event again, unchanged.
    async fn repeat(&self, event: &Delivery) {
        let mut headers = event.properties.headers().clone().unwrap_or_default();
        headers.insert(COPY.into(), AMQPValue::Boolean(true));
        let properties = event.properties.clone().with_headers(headers);
        self.publish(event.routing_key.as_str(), &event.data, properties).await;
    }

    /// The dead letters of the queues that take bookmarks, whose body has `text` in it.
    async fn letters_with(&self, text: &str) -> Vec<DeadLetter> {
        let bus = RabbitBus::start(RabbitSettings::new(self.url.parse().unwrap()));
        let letters = RabbitDeadLetters::new(bus.clone(), QUEUES.map(str::to_owned).into());
        let found = letters.list(500, None).await.expect("dead letters can be read");
        bus.close(Duration::from_secs(1)).await;
        let has_text = |letter: &DeadLetter| String::from_utf8_lossy(&letter.body).contains(text);
        found.into_iter().filter(has_text).collect()
    }

    /// Waits until each queue has one dead letter with `text` in its body, and returns them.
    async fn dead_letters_with(&self, text: &str) -> Vec<DeadLetter> {
        eventually("the dead letters of both queues", async || {
            let letters = self.letters_with(text).await;
            let mut queues: Vec<_> = letters.iter().map(|letter| letter.queue.clone()).collect();
            queues.sort();
            if queues == ["recommendation.history", "recommendation.trend"] {
                Ok(letters)
            } else {
                Err(queues)
            }
        })
        .await
    }
}

fn keyed(person: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("x-ordering-key".into(), AMQPValue::LongString(person.into()));
    headers.insert(COPY.into(), AMQPValue::Boolean(true));
    BasicProperties::default().with_delivery_mode(2).with_headers(headers)
}

fn is_copy(event: &Delivery) -> bool {
    let headers = event.properties.headers().as_ref();
    headers.is_some_and(|headers| headers.inner().contains_key(COPY))
}

/// The next event that core published.
async fn next(events: &mut Consumer) -> Delivery {
    use futures::StreamExt;
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
        let event = event.expect("events come").expect("a consumer").expect("a delivery");
        if !is_copy(&event) {
            return event;
        }
    }
}

/// A member id that core does not know.
fn person() -> String {
    format!("unknown{:08}", Uuid::now_v7().as_u128() % 100_000_000)
}

/// A person's history and the scores of spots, by the first replica.
async fn effects(probe: &Probe, person: &str, spots: &[SpotId]) -> (History, Vec<f64>) {
    let (_, address) = probe.observer.instances().await.unwrap().remove(0);
    let members = [person.to_owned()];
    let effects = probe.observer.effects(address, spots, &members).await.unwrap();
    let scores = spots.iter().map(|spot| effects.scores.of(*spot)).collect();
    (effects.histories[person].clone(), scores)
}

/// Waits until a person's history has exactly these bookmarks.
async fn comes_to(probe: &Probe, person: &str, expected: &[SpotId]) {
    eventually("the history is as expected", async || {
        let (mut history, _) = effects(probe, person, expected).await;
        history.bookmarked.sort_unstable();
        if history.bookmarked == expected { Ok(()) } else { Err(history) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_a_second_time_has_no_second_effect() {
    audited(async |scene| {
        let publisher = RawPublisher::at(scene).await;
        let mut events = publisher.listen().await;
        for _ in 0..EVENTS {
            let event = next(&mut events).await;
            publisher.repeat(&event).await;
        }
        scene.recovers().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_the_wrong_order_end_in_the_latest_state() {
    audited(async |scene| {
        let publisher = RawPublisher::at(scene).await;
        // The same events again, in reverse: bookmarks after their removal.
        let mut events = publisher.listen().await;
        let mut seen = Vec::new();
        while seen.len() < EVENTS {
            seen.push(next(&mut events).await);
        }
        for event in seen.iter().rev() {
            publisher.repeat(event).await;
        }
        // New events, the later one first.
        let probe = Probe::new(scene).await;
        let (person, now) = (person(), Utc::now());
        let [gone, back] = [probe.spots[1], probe.spots[2]];
        publisher.event(UNBOOKMARK, &person, gone, now).await;
        publisher.event(BOOKMARK, &person, gone, now - TimeDelta::seconds(1)).await;
        publisher.event(BOOKMARK, &person, back, now).await;
        publisher.event(UNBOOKMARK, &person, back, now - TimeDelta::seconds(1)).await;
        comes_to(&probe, &person, &[back]).await;
        scene.recovers().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_event_has_no_effect() {
    audited(async |scene| {
        let publisher = RawPublisher::at(scene).await;
        let probe = Probe::new(scene).await;
        let (person, spots) = (person(), [probe.spots[3], probe.spots[4]]);
        let (_, before) = effects(&probe, &person, &spots).await;
        let long_ago = Utc::now() - TimeDelta::days(60);
        publisher.event(BOOKMARK, &person, spots[0], long_ago).await;
        // The same key, so it is handled after the expired one.
        publisher.event(BOOKMARK, &person, spots[1], Utc::now()).await;
        comes_to(&probe, &person, &spots[1..]).await;
        eventually("the second spot counts", async || {
            let (_, after) = effects(&probe, &person, &spots).await;
            if after[1] > before[1] + 1.0 { Ok(()) } else { Err(after) }
        })
        .await;
        let (_, after) = effects(&probe, &person, &spots).await;
        assert!(after[0] <= before[0], "{before:?} {after:?}");
        let letters = publisher.letters_with(&person).await;
        assert!(letters.is_empty(), "expired, not failed: {letters:?}");
        scene.recovers().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_event_ends_in_the_dead_letters() {
    audited(async |scene| {
        let publisher = RawPublisher::at(scene).await;
        let mark = Uuid::now_v7().to_string();
        let body = format!("{{\"id\": \"{mark}\", \"type\":");
        publisher.publish(BOOKMARK, body.as_bytes(), keyed("nobody")).await;
        for letter in publisher.dead_letters_with(&mark).await {
            assert!(letter.reason.contains("not an event envelope"), "{letter:?}");
            assert_eq!(letter.event_id, None, "{letter:?}");
            // It is not tried again. But the broker also counts a delivery that a replica returned when
            // another one took over the shard.
            assert!(letter.attempts <= 2, "{letter:?}");
            assert_eq!(letter.body, body.as_bytes());
        }
        scene.recovers().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_event_ends_in_the_dead_letters() {
    audited(async |scene| {
        let publisher = RawPublisher::at(scene).await;
        let mark = Uuid::now_v7().to_string();
        let zeros = "0".repeat(300 * 1_024);
        let data = json!({"user_id": mark, "tourspot_id": "1", "zeros": zeros});
        let body = Envelope::new(BOOKMARK, Utc::now(), data).encode();
        publisher.publish(BOOKMARK, &body, keyed(&mark)).await;
        for letter in publisher.dead_letters_with(&mark).await {
            assert!(letter.reason.contains("more than the"), "{}", letter.reason);
            assert_eq!(letter.body_bytes, body.len() as u64);
        }
        scene.recovers().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_event_does_not_block_other_events() {
    audited(async |scene| {
        let publisher = RawPublisher::at(scene).await;
        let probe = Probe::new(scene).await;
        let person = person();
        let mut good = [probe.spots[5], probe.spots[6]];
        good.sort_unstable();
        publisher.event(BOOKMARK, &person, good[0], Utc::now()).await;
        let poison = publisher.event(BOOKMARK, &person, "no number", Utc::now()).await;
        publisher.event(BOOKMARK, &person, good[1], Utc::now()).await;
        comes_to(&probe, &person, &good).await;
        for letter in publisher.dead_letters_with(&poison.to_string()).await {
            assert_eq!(letter.event_id, Some(poison));
            assert!(letter.reason.contains("tourspot_id"), "{}", letter.reason);
            assert!(letter.attempts >= 1, "{letter:?}");
            assert_eq!(letter.ordering_key.as_deref(), Some(person.as_str()));
        }
        scene.recovers().await;
    })
    .await;
}
