//! What every bus must do. Each function takes a fixture with its own bus.

use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use tokio::time::{Instant, timeout};
use tourin_testbed::{SOON, eventually};

use super::{Binding, Deliveries, Delivery, Settlement, Subscriber, Subscription};
use crate::dead_letters::{DeadLetter, DeadLetterStore, REPLAYED, Settled};
use crate::envelope::Envelope;
use crate::events::{
    DeleteUser, Event as _, Outgoing, TOUR_SPOT_EXCHANGE, TourSpotDelete, USER_EXCHANGE,
    ViewTourspot,
};

/// How long to watch that something does not happen.
const A_WHILE: Duration = Duration::from_millis(120);
/// When a failed event comes again: long enough that a few others are through before it.
const RETRY_AFTER: Duration = Duration::from_secs(3);

/// A bus under test.
#[async_trait]
pub trait BusFixture: Send + Sync {
    /// Publishes events, in order, without waiting for their settlement. Calls keep their order too.
    async fn send(&self, events: Vec<Outgoing>);

    /// Creates a queue without a consumer. A bus that keeps all events anyway does nothing.
    async fn declare(&self, subscription: Subscription);

    /// The consuming side.
    fn subscriber(&self) -> &dyn Subscriber;

    /// The bus's dead letters.
    fn dead_letters(&self) -> &dyn DeadLetterStore;
}

/// Runs the whole suite; `fresh` makes a fixture with an empty bus.
pub async fn all<F: BusFixture>(mut fresh: impl AsyncFnMut() -> F) {
    a_queue_gets_what_it_is_bound_to_and_nothing_else(&fresh().await).await;
    an_event_arrives_whole(&fresh().await).await;
    a_retry_holds_back_its_own_key_only(&fresh().await).await;
    of_one_key_one_delivery_is_out(&fresh().await).await;
    a_dropped_delivery_comes_again(&fresh().await).await;
    a_dead_letter_is_kept_and_its_key_goes_on(&fresh().await).await;
    a_subscriber_holds_no_more_than_its_prefetch(&fresh().await).await;
    a_successor_gets_what_was_not_settled_and_only_that(&fresh().await).await;
    queues_each_get_all_events(&fresh().await).await;
    a_declared_queue_keeps_events_for_later_subscribers(&fresh().await).await;
    events_without_a_queue_block_no_other(&fresh().await).await;
    a_replayed_dead_letter_comes_again_whole_and_to_its_queue_only(&fresh().await).await;
    a_replay_that_fails_again_is_the_same_dead_letter(&fresh().await).await;
    a_subscription_that_cannot_work_is_refused(&fresh().await).await;
    unsettled_deliveries_count_as_backlog(&fresh().await).await;
}

/// A view by `user` of spot number `number`.
pub fn view(user: &str, number: u32) -> Outgoing {
    let event = ViewTourspot { user_id: user.to_owned(), tourspot_id: number.to_string() };
    Outgoing::new(&event, Utc::now())
}

/// A subscription to all of the users' events.
pub fn users(queue: &str) -> Subscription {
    Subscription::new(queue, vec![Binding::new(USER_EXCHANGE, "user.#")])
}

/// The key and the number of a [`view`].
pub fn key_and_number(delivery: &Delivery) -> (String, String) {
    let envelope = Envelope::decode(&delivery.body).expect("an envelope");
    let text = |field: &str| envelope.data[field].as_str().unwrap_or_default().to_owned();
    (text("user_id"), text("tourspot_id"))
}

async fn subscribe(fixture: &impl BusFixture, subscription: Subscription) -> Deliveries {
    fixture.subscriber().subscribe(subscription).await.expect("a subscription")
}

async fn next(deliveries: &mut Deliveries) -> Delivery {
    let next = timeout(SOON, deliveries.next()).await;
    next.expect("a delivery in time").expect("an open bus")
}

async fn expect(deliveries: &mut Deliveries, user: &str, number: u32) -> Delivery {
    let delivery = next(deliveries).await;
    assert_eq!(key_and_number(&delivery), (user.to_owned(), number.to_string()));
    delivery
}

async fn expect_nothing(deliveries: &mut Deliveries) {
    if let Ok(delivery) = timeout(A_WHILE, deliveries.next()).await {
        panic!("nothing should come, but {delivery:?} did");
    }
}

async fn ack(delivery: Delivery) {
    delivery.settle(Settlement::Ack).await.expect("an acknowledgement");
}

/// Queued, delivered and waiting events are backlog; settled ones are not.
pub async fn unsettled_deliveries_count_as_backlog(fixture: &impl BusFixture) {
    let waits = async |is_right: fn(u64) -> bool| {
        eventually("the backlog", async || {
            let waiting = fixture.subscriber().backlog().await.expect("a backlog");
            if is_right(waiting) { Ok(()) } else { Err(waiting) }
        })
        .await;
    };
    let mut deliveries = subscribe(fixture, users("q")).await;
    fixture.send(vec![view("someone1", 1), view("someone1", 2)]).await;
    let first = expect(&mut deliveries, "someone1", 1).await;
    waits(|waiting| waiting >= 2).await;
    ack(first).await;
    let second = expect(&mut deliveries, "someone1", 2).await;
    second.settle(Settlement::Retry { after: A_WHILE }).await.expect("a retry");
    waits(|waiting| waiting > 0).await;
    ack(expect(&mut deliveries, "someone1", 2).await).await;
    waits(|waiting| waiting == 0).await;
}

/// Bindings select by exchange and by pattern.
pub async fn a_queue_gets_what_it_is_bound_to_and_nothing_else(fixture: &impl BusFixture) {
    let bindings = vec![
        Binding::new(USER_EXCHANGE, ViewTourspot::TYPE),
        Binding::new(TOUR_SPOT_EXCHANGE, "tourSpot.*"),
    ];
    let mut deliveries = subscribe(fixture, Subscription::new("q", bindings)).await;
    let gone = Outgoing::new(&DeleteUser { user_id: "someone1".to_owned() }, Utc::now());
    let mut elsewhere = view("someone2", 1);
    elsewhere.exchange = "event.other.ex".to_owned();
    let deleted = TourSpotDelete { tourspot_id: "9".to_owned(), version: 2 };
    let deleted = Outgoing::new(&deleted, Utc::now());
    fixture.send(vec![gone, elsewhere, view("someone3", 2), deleted.clone()]).await;
    let mut types = Vec::new();
    for _ in 0..2 {
        let delivery = next(&mut deliveries).await;
        types.push(delivery.routing_key.clone());
        ack(delivery).await;
    }
    types.sort();
    assert_eq!(types, [TourSpotDelete::TYPE, ViewTourspot::TYPE]);
    expect_nothing(&mut deliveries).await;
}

/// Body, routing and headers are as sent; the attempt is the first.
pub async fn an_event_arrives_whole(fixture: &impl BusFixture) {
    let mut deliveries = subscribe(fixture, users("q")).await;
    let sent = view("someone1", 7).with_header("traceparent", "00-1-2-01");
    fixture.send(vec![sent.clone()]).await;
    let delivery = next(&mut deliveries).await;
    let mut envelope = Envelope::decode(&delivery.body).expect("an envelope");
    // What comes by way of an outbox has a version besides.
    envelope.data.as_object_mut().expect("an object").remove("version");
    assert_eq!(envelope, sent.envelope);
    assert_eq!(delivery.exchange, sent.exchange);
    assert_eq!(delivery.routing_key, sent.routing_key);
    assert_eq!(delivery.ordering_key, Some(sent.ordering_key));
    assert_eq!(delivery.headers, sent.headers);
    assert_eq!(delivery.attempt, 1);
    ack(delivery).await;
}

/// Order per key survives a retry, and other keys do not wait for it.
pub async fn a_retry_holds_back_its_own_key_only(fixture: &impl BusFixture) {
    let mut deliveries = subscribe(fixture, users("q")).await;
    fixture.send(vec![view("a", 1), view("a", 2)]).await;
    let failed = expect(&mut deliveries, "a", 1).await;
    let started = Instant::now();
    failed.settle(Settlement::Retry { after: RETRY_AFTER }).await.expect("a retry");
    fixture.send(vec![view("b", 1), view("b", 2)]).await;
    ack(expect(&mut deliveries, "b", 1).await).await;
    ack(expect(&mut deliveries, "b", 2).await).await;
    let again = expect(&mut deliveries, "a", 1).await;
    assert!(started.elapsed() >= RETRY_AFTER, "it came back after {:?}", started.elapsed());
    assert_eq!(again.attempt, 2);
    again.settle(Settlement::Wait { after: Duration::ZERO }).await.expect("a wait");
    let again = expect(&mut deliveries, "a", 1).await;
    assert_eq!(again.attempt, 2, "waiting is no attempt");
    ack(again).await;
    ack(expect(&mut deliveries, "a", 2).await).await;
}

/// The next event of a key waits for the outcome of the one before.
pub async fn of_one_key_one_delivery_is_out(fixture: &impl BusFixture) {
    let mut deliveries = subscribe(fixture, users("q")).await;
    fixture.send(vec![view("a", 1), view("a", 2), view("a", 3)]).await;
    for number in 1..=3 {
        let delivery = expect(&mut deliveries, "a", number).await;
        if number == 1 {
            expect_nothing(&mut deliveries).await;
        }
        ack(delivery).await;
    }
    expect_nothing(&mut deliveries).await;
}

/// A consumer that dies halfway loses no event.
pub async fn a_dropped_delivery_comes_again(fixture: &impl BusFixture) {
    let mut deliveries = subscribe(fixture, users("q")).await;
    fixture.send(vec![view("a", 1), view("a", 2)]).await;
    drop(expect(&mut deliveries, "a", 1).await);
    let again = expect(&mut deliveries, "a", 1).await;
    assert_eq!(again.attempt, 2);
    ack(again).await;
    ack(expect(&mut deliveries, "a", 2).await).await;
}

/// The envelope without the version, which the outbox adds.
fn as_sent(body: &[u8]) -> Envelope {
    let mut envelope = Envelope::decode(body).expect("an envelope");
    if let Some(data) = envelope.data.as_object_mut() {
        data.remove("version");
    }
    envelope
}

/// A dead letter is final, recorded, and frees its key.
pub async fn a_dead_letter_is_kept_and_its_key_goes_on(fixture: &impl BusFixture) {
    let mut deliveries = subscribe(fixture, users("q")).await;
    let poison = view("a", 1).with_header("traceparent", "00-1-2-01");
    fixture.send(vec![poison.clone(), view("a", 2)]).await;
    let delivery = expect(&mut deliveries, "a", 1).await;
    let reason = "no such thing".to_owned();
    delivery.settle(Settlement::DeadLetter { reason }).await.expect("a dead letter");
    ack(expect(&mut deliveries, "a", 2).await).await;
    expect_nothing(&mut deliveries).await;
    let kept = fixture.dead_letters().list(10, None).await.expect("dead letters");
    let [letter] = kept.as_slice() else {
        panic!("one dead letter, not {kept:?}");
    };
    assert_eq!(letter.queue, "q");
    assert_eq!(letter.event_id, Some(poison.envelope.id));
    assert_eq!(letter.routing_key, poison.routing_key);
    assert_eq!(letter.reason, "no such thing");
    assert_eq!(letter.attempts, 1);
    assert_eq!(letter.headers, poison.headers);
    assert_eq!(as_sent(&letter.body), poison.envelope);
}

/// Backpressure: unsettled deliveries are bounded, and settling makes room.
pub async fn a_subscriber_holds_no_more_than_its_prefetch(fixture: &impl BusFixture) {
    let subscription = Subscription { prefetch: 2, ..users("q") };
    let mut deliveries = subscribe(fixture, subscription).await;
    fixture.send(["a", "b", "c", "d"].map(|user| view(user, 1)).to_vec()).await;
    let first = next(&mut deliveries).await;
    let second = next(&mut deliveries).await;
    expect_nothing(&mut deliveries).await;
    ack(first).await;
    ack(next(&mut deliveries).await).await;
    ack(second).await;
    ack(next(&mut deliveries).await).await;
}

/// A replica that takes over begins where the other stopped.
pub async fn a_successor_gets_what_was_not_settled_and_only_that(fixture: &impl BusFixture) {
    let mut deliveries = subscribe(fixture, users("q")).await;
    fixture.send(vec![view("a", 1), view("a", 2), view("a", 3)]).await;
    ack(expect(&mut deliveries, "a", 1).await).await;
    drop(expect(&mut deliveries, "a", 2).await);
    deliveries.close().await;
    let mut successor = subscribe(fixture, users("q")).await;
    ack(expect(&mut successor, "a", 2).await).await;
    ack(expect(&mut successor, "a", 3).await).await;
    expect_nothing(&mut successor).await;
}

/// Two services do not take events from each other.
pub async fn queues_each_get_all_events(fixture: &impl BusFixture) {
    let mut one = subscribe(fixture, users("one")).await;
    let mut two = subscribe(fixture, users("two")).await;
    fixture.send(vec![view("a", 1), view("a", 2)]).await;
    for deliveries in [&mut one, &mut two] {
        ack(expect(deliveries, "a", 1).await).await;
        ack(expect(deliveries, "a", 2).await).await;
    }
}

/// A service's queues are declared before it subscribes.
pub async fn a_declared_queue_keeps_events_for_later_subscribers(fixture: &impl BusFixture) {
    fixture.declare(users("one")).await;
    fixture.declare(users("two")).await;
    let mut one = subscribe(fixture, users("one")).await;
    fixture.send(vec![view("a", 1), view("a", 2)]).await;
    ack(expect(&mut one, "a", 1).await).await;
    ack(expect(&mut one, "a", 2).await).await;
    // Declared again, it is the same queue.
    fixture.declare(users("two")).await;
    let mut two = subscribe(fixture, users("two")).await;
    ack(expect(&mut two, "a", 1).await).await;
    ack(expect(&mut two, "a", 2).await).await;
    expect_nothing(&mut one).await;
    expect_nothing(&mut two).await;
}

/// Unbound event types do not block later events of their key.
pub async fn events_without_a_queue_block_no_other(fixture: &impl BusFixture) {
    let bindings = vec![Binding::new(USER_EXCHANGE, ViewTourspot::TYPE)];
    let mut deliveries = subscribe(fixture, Subscription::new("q", bindings)).await;
    let gone = Outgoing::new(&DeleteUser { user_id: "a".to_owned() }, Utc::now());
    fixture.send(vec![gone.clone(), view("a", 1), gone, view("a", 2)]).await;
    ack(expect(&mut deliveries, "a", 1).await).await;
    ack(expect(&mut deliveries, "a", 2).await).await;
    expect_nothing(&mut deliveries).await;
}

async fn give_up(delivery: Delivery, reason: &str) {
    let reason = reason.to_owned();
    delivery.settle(Settlement::DeadLetter { reason }).await.expect("a dead letter");
}

async fn dead_letters(fixture: &impl BusFixture) -> Vec<DeadLetter> {
    fixture.dead_letters().list(10, None).await.expect("dead letters")
}

async fn expect_dead_letters(fixture: &impl BusFixture, count: usize) -> Vec<DeadLetter> {
    eventually(&format!("{count} dead letters"), async || {
        let letters = dead_letters(fixture).await;
        if letters.len() == count { Ok(letters) } else { Err(letters) }
    })
    .await
}

/// Replays exactly the named letters, in their own queue only, and deletes each letter afterwards.
pub async fn a_replayed_dead_letter_comes_again_whole_and_to_its_queue_only(
    fixture: &impl BusFixture,
) {
    let mut one = subscribe(fixture, users("one")).await;
    let mut two = subscribe(fixture, users("two")).await;
    let first = view("a", 1).with_header("traceparent", "00-1-2-01");
    fixture.send(vec![first.clone(), view("b", 2)]).await;
    for _ in 0..2 {
        give_up(next(&mut one).await, "broken").await;
        ack(next(&mut two).await).await;
    }
    let letters = expect_dead_letters(fixture, 2).await;
    let is_first = |letter: &&DeadLetter| letter.event_id == Some(first.envelope.id);
    let id = letters.iter().find(is_first).expect("the first one's letter").id;
    let (unknown, dead) = (uuid::Uuid::now_v7(), fixture.dead_letters());
    let settled = dead.replay(&[unknown, id]).await.expect("a replay");
    assert_eq!(settled[0], Settled::Gone);
    assert!(matches!(settled[1], Settled::Done | Settled::Accepted), "{settled:?}");
    let again = expect(&mut one, "a", 1).await;
    assert_eq!(as_sent(&again.body), first.envelope);
    assert_eq!(again.exchange, first.exchange);
    assert_eq!(again.routing_key, first.routing_key);
    assert_eq!(again.ordering_key, Some(first.ordering_key.clone()));
    assert_eq!(again.headers, first.with_header(REPLAYED, "1").headers);
    assert_eq!(again.attempt, 1);
    ack(again).await;
    let left = expect_dead_letters(fixture, 1).await;
    assert_ne!(left[0].id, id);
    assert_eq!(dead.replay(&[id]).await.expect("a replay"), [Settled::Gone]);
    // Longer than the interval at which replays are looked for.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    expect_nothing(&mut one).await;
    expect_nothing(&mut two).await;
}

/// The dead letter returns with its latest facts, and can be replayed again.
pub async fn a_replay_that_fails_again_is_the_same_dead_letter(fixture: &impl BusFixture) {
    let mut deliveries = subscribe(fixture, users("q")).await;
    fixture.send(vec![view("a", 1)]).await;
    give_up(next(&mut deliveries).await, "broken").await;
    for times in 1..=2 {
        let letters = expect_dead_letters(fixture, 1).await;
        assert!(!letters[0].replay_requested);
        let settled = fixture.dead_letters().replay(&[letters[0].id]).await.expect("a replay");
        assert!(matches!(settled[..], [Settled::Done | Settled::Accepted]), "{settled:?}");
        let again = expect(&mut deliveries, "a", 1).await;
        assert_eq!(again.headers[REPLAYED], times.to_string());
        give_up(again, "still broken").await;
        let letters = expect_dead_letters(fixture, 1).await;
        assert_eq!(letters[0].reason, "still broken");
    }
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    expect_nothing(&mut deliveries).await;
}

/// An invalid subscription fails at once.
pub async fn a_subscription_that_cannot_work_is_refused(fixture: &impl BusFixture) {
    let wrong = [
        Subscription { queue: String::new(), ..users("q") },
        Subscription { prefetch: 0, ..users("q") },
        Subscription { shards: 0, ..users("q") },
        Subscription { bindings: Vec::new(), ..users("q") },
    ];
    for subscription in wrong {
        let result = fixture.subscriber().subscribe(subscription.clone()).await;
        assert!(
            matches!(result, Err(super::SubscribeError::Invalid(_))),
            "{subscription:?} was not refused"
        );
    }
}
