//! What every bus with reply queues must do. Each function takes a separate bus.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tourin_testbed::{SOON, eventually};

use super::{
    Commands, Message, ReplyOutcome, ReplyPublisher, RequestError, RequestHandler, RequestSettings,
    Requests, Responder, SendError,
};
use crate::bus::contract::{users, view};
use crate::bus::{Deliveries, PublishError, ReplyQueues, Settlement, Subscriber, Subscription};
use crate::consumer::{Consumer, HandlerError, Received};
use crate::envelope::Envelope;
use crate::system_clock;

/// How long to watch that something does not happen.
const A_WHILE: Duration = Duration::from_millis(200);
/// How long to wait for a reply that does not come to a request that does: sending it is part of this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// The queues that the suite makes, for cleaning up.
pub const QUEUES: [&str; 2] = ["one", "two"];

/// Runs the whole suite; `fresh` makes an empty bus.
pub async fn all<B: ReplyQueues + Subscriber + 'static>(mut fresh: impl AsyncFnMut() -> Arc<B>) {
    a_command_goes_to_the_queue_it_names_and_to_no_other(fresh().await).await;
    each_request_gets_its_own_reply_in_its_trace(fresh().await).await;
    a_request_times_out_and_a_late_reply_is_dropped(fresh().await).await;
    replies_to_an_event_are_collected_until_enough_or_late(fresh().await).await;
    requests_are_bounded(fresh().await).await;
    a_reply_to_a_closed_queue_is_dropped(fresh().await).await;
}

async fn subscribe(bus: &impl Subscriber, subscription: Subscription) -> Deliveries {
    let subscription = Subscription { shards: 2, ..subscription };
    bus.subscribe(subscription).await.expect("a subscription")
}

async fn open(bus: &Arc<impl ReplyQueues + 'static>) -> Requests {
    let settings = RequestSettings::default();
    Requests::open(bus.clone(), system_clock(), settings).await.expect("a reply queue")
}

fn trace_of_number(number: u32) -> String {
    format!("{number:032x}")
}

fn traceparent(number: u32) -> String {
    format!("00-{}-{:016x}-01", trace_of_number(number), 2)
}

/// The trace that headers carry. The parent differs where a hop makes spans.
fn trace_of(headers: &BTreeMap<String, String>) -> String {
    headers["traceparent"].split('-').nth(1).unwrap_or_default().to_owned()
}

/// Replies with its name and the request's data.
struct Echo(&'static str);

#[async_trait]
impl RequestHandler for Echo {
    async fn reply(&self, request: &Received) -> Result<Value, HandlerError> {
        Ok(json!({ "by": self.0, "asked": request.envelope.data }))
    }
}

/// Replies to what comes to `deliveries` until dropped.
fn respond(
    bus: &Arc<impl ReplyQueues + 'static>,
    name: &'static str,
    of: Deliveries,
) -> JoinSet<()> {
    let responder = Responder::new(Echo(name), ReplyPublisher::new(bus.clone(), system_clock()));
    let consumer = Consumer::new(name, of, Arc::new(responder), system_clock());
    let mut running = JoinSet::new();
    running.spawn(consumer.run(CancellationToken::new()));
    running
}

/// A command goes to one queue only, and fails without it.
pub async fn a_command_goes_to_the_queue_it_names_and_to_no_other<B>(bus: Arc<B>)
where
    B: ReplyQueues + Subscriber + 'static,
{
    let mut one = subscribe(&*bus, Commands::subscription("one")).await;
    let mut two = subscribe(&*bus, Commands::subscription("two")).await;
    let commands = Commands::new(bus.clone(), system_clock());
    let command = Message::new("index.rebuild", json!({ "from": 7 }))
        .with_key("index")
        .with_header("traceparent", traceparent(1));
    let receiving = async {
        let delivery = timeout(SOON, one.next()).await.expect("in time").expect("a command");
        let envelope = Envelope::decode(&delivery.body).expect("an envelope");
        assert_eq!(
            (envelope.r#type.as_str(), &envelope.data["from"]),
            ("index.rebuild", &json!(7))
        );
        assert_eq!(delivery.ordering_key.as_deref(), Some("index"));
        assert_eq!(trace_of(&delivery.headers), trace_of_number(1));
        delivery.settle(Settlement::Ack).await.expect("an acknowledgement");
    };
    let (sent, ()) = tokio::join!(commands.send("one", command.clone()), receiving);
    assert_eq!(sent, Ok(()));
    let other = timeout(A_WHILE, two.next()).await;
    assert!(other.is_err(), "{other:?} came to another queue");
    let nowhere = commands.send("three", command.clone()).await;
    assert_eq!(nowhere, Err(SendError::Publish(PublishError::Unroutable)));
    let long = commands.with_max_bytes(10).send("one", command).await;
    assert!(matches!(long, Err(SendError::TooLarge { max_bytes: 10, .. })), "{long:?}");
}

/// Many requests at once share one reply queue.
pub async fn each_request_gets_its_own_reply_in_its_trace<B>(bus: Arc<B>)
where
    B: ReplyQueues + Subscriber + 'static,
{
    let deliveries = subscribe(&*bus, Commands::subscription("one")).await;
    let _responder = respond(&bus, "one", deliveries);
    let requests = open(&bus).await;
    let asking = (0..50).map(|n| {
        let request =
            Message::new("sum", json!({ "n": n })).with_header("traceparent", traceparent(n + 1));
        let requests = &requests;
        async move {
            let reply = requests.request("one", request, SOON).await.expect("a reply");
            assert_eq!(reply.envelope.data, json!({ "by": "one", "asked": { "n": n } }));
            assert_eq!(trace_of(&reply.headers), trace_of_number(n + 1));
        }
    });
    join_all(asking).await;
    assert_eq!(requests.late(), 0);
}

/// A late reply does not reach the next request.
pub async fn a_request_times_out_and_a_late_reply_is_dropped<B>(bus: Arc<B>)
where
    B: ReplyQueues + Subscriber + 'static,
{
    let mut deliveries = subscribe(&*bus, Commands::subscription("one")).await;
    let requests = open(&bus).await;
    let request = |n: u32| Message::new("sum", json!({ "n": n }));
    let slow = async {
        let delivery = timeout(SOON, deliveries.next()).await.expect("in time").expect("a request");
        let received = received(&delivery);
        // Not acknowledged until the requester has timed out.
        sleep(PATIENCE + A_WHILE).await;
        delivery.settle(Settlement::Ack).await.expect("an acknowledgement");
        received
    };
    let started = Instant::now();
    let (lost, late) = tokio::join!(requests.request("one", request(1), PATIENCE), slow);
    assert_eq!(lost, Err(RequestError::TimedOut));
    assert!(started.elapsed() >= PATIENCE);
    let replies = ReplyPublisher::new(bus.clone(), system_clock());
    let outcome = replies.reply(&late, json!({ "n": 1 })).await;
    assert_eq!(outcome, Ok(ReplyOutcome::Sent));
    eventually("the late reply is there", async || requests.late() > 0).await;
    let _responder = respond(&bus, "one", deliveries);
    let reply = requests.request("one", request(2), SOON).await.expect("a reply");
    assert_eq!(reply.envelope.data["asked"], json!({ "n": 2 }));
}

/// Publish/asynchronous responses.
pub async fn replies_to_an_event_are_collected_until_enough_or_late<B>(bus: Arc<B>)
where
    B: ReplyQueues + Subscriber + 'static,
{
    let (one, two) = (subscribe(&*bus, users("one")).await, subscribe(&*bus, users("two")).await);
    let _responders = [respond(&bus, "one", one), respond(&bus, "two", two)];
    let requests = open(&bus).await;
    let enough = requests.publish(view("a", 1), 2, SOON).await.expect("replies");
    assert!(enough.complete);
    let mut by: Vec<_> = enough.replies.iter().map(|a| a.envelope.data["by"].clone()).collect();
    by.sort_by_key(Value::to_string);
    assert_eq!(by, ["one", "two"]);
    let first = requests.publish(view("a", 2), 1, SOON).await.expect("replies");
    assert_eq!((first.replies.len(), first.complete), (1, true));
    let until_late = requests.publish(view("a", 3), 3, 2 * PATIENCE).await.expect("replies");
    assert_eq!((until_late.replies.len(), until_late.complete), (2, false));
}

/// Requests are bounded in number and in length.
pub async fn requests_are_bounded<B>(bus: Arc<B>)
where
    B: ReplyQueues + Subscriber + 'static,
{
    let _deliveries = subscribe(&*bus, Commands::subscription("one")).await;
    let settings = RequestSettings { max_pending: 2, max_bytes: 400 };
    let requests =
        Requests::open(bus.clone(), system_clock(), settings).await.expect("a reply queue");
    let request = || Message::new("sum", json!({}));
    let asking = (0..3).map(|_| requests.request("one", request(), A_WHILE));
    let results = join_all(asking).await;
    let refused = RequestError::TooManyPending;
    let lost = RequestError::TimedOut;
    assert_eq!(results, [Err(lost.clone()), Err(lost), Err(refused)]);
    // Timed-out requests made room.
    let again = requests.request("one", request(), A_WHILE).await;
    assert_eq!(again, Err(RequestError::TimedOut));
    let long = Message::new("sum", json!({ "text": "x".repeat(400) }));
    let long = requests.request("one", long, SOON).await;
    let expected =
        matches!(long, Err(RequestError::NotSent(SendError::TooLarge { max_bytes: 400, .. })));
    assert!(expected, "{long:?}");
    let nowhere = requests.request("three", request(), SOON).await;
    let unroutable = SendError::Publish(PublishError::Unroutable);
    assert_eq!(nowhere, Err(RequestError::NotSent(unroutable)));
}

/// Requesters that died do not block a responder.
pub async fn a_reply_to_a_closed_queue_is_dropped<B>(bus: Arc<B>)
where
    B: ReplyQueues + Subscriber + 'static,
{
    let mut deliveries = subscribe(&*bus, Commands::subscription("one")).await;
    let requests = open(&bus).await;
    let asking = requests.request("one", Message::new("sum", json!({})), PATIENCE);
    let receiving = async {
        let delivery = timeout(SOON, deliveries.next()).await.expect("in time").expect("a request");
        let received = received(&delivery);
        delivery.settle(Settlement::Ack).await.expect("an acknowledgement");
        received
    };
    let (_, request) = tokio::join!(asking, receiving);
    drop(requests);
    let replies = ReplyPublisher::new(bus.clone(), system_clock());
    // The reply queue may outlive its owner for a while. In either case no request waits.
    let given = timeout(SOON, replies.reply(&request, json!({}))).await.expect("in time");
    assert!(matches!(given, Ok(_) | Err(PublishError::Unavailable(_))), "{given:?}");
}

fn received(delivery: &crate::bus::Delivery) -> Received {
    let envelope = Envelope::decode(&delivery.body).expect("an envelope");
    Received {
        dated_at: envelope.timestamp,
        envelope,
        exchange: delivery.exchange.clone(),
        routing_key: delivery.routing_key.clone(),
        ordering_key: delivery.ordering_key.clone(),
        headers: delivery.headers.clone(),
        attempt: delivery.attempt,
        trace: Default::default(),
    }
}
