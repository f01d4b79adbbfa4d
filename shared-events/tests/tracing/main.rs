//! The trace of an event from the change to its effect, over the in-process bus.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

#[path = "../spans/mod.rs"]
mod spans;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use opentelemetry::context::FutureExt as _;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, TraceContextExt as _, TraceState};
use opentelemetry::{Context, global};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tourin_shared_events::backoff::Backoff;
use tourin_shared_events::bus::contract::{users, view};
use tourin_shared_events::bus::in_process::InProcessBus;
use tourin_shared_events::bus::{MessagingSystem, PublishError, Publisher, Subscriber as _};
use tourin_shared_events::consumer::{
    Consumer, ConsumerSettings, Handler, HandlerError, Outcome, QueueMetrics, Received, RetryPolicy,
};
use tourin_shared_events::dead_letters::{DeadLetterStore as _, MemoryDeadLetters, Settled};
use tourin_shared_events::events::{Event as _, Outgoing, ViewTourspot};
use tourin_shared_events::messaging_patterns::{
    Commands, Message, ReplyPublisher, RequestHandler, RequestSettings, Requests, Responder,
};
use tourin_shared_events::outbox::sqlite::append;
use tourin_shared_events::outbox::{Relay, RelaySettings, SqliteOutbox, Wake};
use tourin_shared_events::sqlite::Database;
use tourin_shared_events::system_clock;

use self::spans::{Seen, Spans, collect, request, trace_of};

const BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(2), max: Duration::from_millis(20), jitter: 0.5 };

/// Fails a given number of times, then works. Records the span of each call.
#[derive(Default)]
struct FlakyHandler {
    failures: Mutex<Vec<HandlerError>>,
    within: Mutex<Vec<SpanId>>,
}

impl FlakyHandler {
    fn failing(errors: Vec<HandlerError>) -> Arc<Self> {
        Arc::new(Self { failures: Mutex::new(errors), within: Mutex::default() })
    }
}

#[async_trait]
impl Handler for FlakyHandler {
    async fn handle(&self, _: &Received) -> Result<Outcome, HandlerError> {
        tokio::task::yield_now().await;
        let here = Context::current().span().span_context().span_id();
        self.within.lock().unwrap().push(here);
        let failure = self.failures.lock().unwrap().pop();
        match failure {
            Some(HandlerError::Permanent(panic)) if panic == "panic" => panic!("as told"),
            Some(error) => Err(error),
            None => Ok(Outcome::Applied),
        }
    }
}

/// An outbox, a relay, a bus and a consumer.
struct Journey {
    spans: Spans,
    database: Database,
    wake: Wake,
    bus: InProcessBus,
    dead_letters: Arc<MemoryDeadLetters>,
    metrics: QueueMetrics,
    tasks: JoinSet<()>,
    _folder: TempDir,
}

impl Journey {
    async fn to(handler: Arc<dyn Handler>) -> Self {
        let mut this = Self::without_relay(handler).await;
        let bus = Arc::new(this.bus.clone());
        this.relay_to(bus).await;
        this
    }

    async fn without_relay(handler: Arc<dyn Handler>) -> Self {
        let spans = collect();
        let folder = TempDir::new().unwrap();
        let database = Database::open(&folder.path().join("outbox.db"), 2).await.unwrap();
        SqliteOutbox::open(database.clone()).await.unwrap();
        let dead_letters = Arc::new(MemoryDeadLetters::default());
        let bus = InProcessBus::new(dead_letters.clone());
        let deliveries = bus.subscribe(users("effects")).await.unwrap();
        let retry = RetryPolicy { max_attempts: 2, backoff: BACKOFF };
        let settings = ConsumerSettings { retry, ..ConsumerSettings::default() };
        let consumer = Consumer::new("effects", deliveries, handler, system_clock());
        let consumer = consumer.with_settings(settings);
        let metrics = consumer.metrics();
        let mut tasks = JoinSet::new();
        tasks.spawn(consumer.run(CancellationToken::new()));
        let wake = Wake::new();
        Self { spans, database, wake, bus, dead_letters, metrics, tasks, _folder: folder }
    }

    async fn relay_to(&mut self, publisher: Arc<dyn Publisher>) {
        let store = Arc::new(SqliteOutbox::open(self.database.clone()).await.unwrap());
        let settings = RelaySettings { backoff: BACKOFF, ..RelaySettings::default() };
        let relay = Relay::new(store, publisher, self.wake.clone(), system_clock());
        self.tasks.spawn(relay.with_settings(settings).run(CancellationToken::new()));
    }

    /// Appends events within a request, and returns its trace.
    async fn append(&self, events: &[Outgoing]) -> Context {
        let request = request();
        async {
            let mut transaction = self.database.write().await.unwrap();
            append(&mut transaction, events, Utc::now()).await.unwrap();
            transaction.commit().await.unwrap();
        }
        .with_context(request.clone())
        .await;
        self.wake.notify();
        request.span().end();
        request
    }
}

fn one(mut spans: Vec<Seen>) -> Seen {
    assert_eq!(spans.len(), 1, "{spans:#?}");
    spans.remove(0)
}

#[tokio::test]
async fn a_bookmark_and_its_effect_are_one_trace() {
    let handler = FlakyHandler::failing(vec![]);
    let journey = Journey::to(handler.clone()).await;
    let event = view("a", 1);
    let request = journey.append(std::slice::from_ref(&event)).await;
    let trace = trace_of(&request);
    let producer = one(journey.spans.wait_for(trace, SpanKind::Producer, 1).await);
    let consumer = one(journey.spans.wait_for(trace, SpanKind::Consumer, 1).await);

    assert_eq!(producer.name, "send event.user.ex");
    assert_eq!(producer.parent, request.span().span_context().span_id());
    assert_eq!(consumer.name, "process effects");
    assert_eq!(consumer.parent, producer.id);
    for span in [&producer, &consumer] {
        assert_eq!((span.tag("peer.service"), span.failed), ("tourin", false));
        assert_eq!(span.tag("messaging.message.id"), event.envelope.id.to_string());
        assert_eq!(span.tag("messaging.rabbitmq.destination.routing_key"), ViewTourspot::TYPE);
        assert!(span.events.is_empty(), "{span:?}");
    }
    assert_eq!((consumer.tag("tourin.attempt"), consumer.tag("tourin.outcome")), ("1", "applied"));
    assert!(consumer.took > Duration::ZERO);
    assert_eq!(*handler.within.lock().unwrap(), [consumer.id]);
    assert_eq!(journey.spans.of(trace).len(), 3);
}

#[tokio::test]
async fn each_event_of_a_batch_has_its_own_trace() {
    let handler = FlakyHandler::failing(vec![]);
    let journey = Journey::without_relay(handler.clone()).await;
    let mut traces = Vec::new();
    for user in ["a", "b", "c", "d"] {
        traces.push(trace_of(&journey.append(&[view(user, 1)]).await));
    }
    // All of them wait already, so they arrive together.
    let mut journey = journey;
    let bus = Arc::new(journey.bus.clone());
    journey.relay_to(bus).await;
    let mut within = Vec::new();
    for trace in traces {
        within.push(one(journey.spans.wait_for(trace, SpanKind::Consumer, 1).await).id);
    }
    let mut called = handler.within.lock().unwrap().clone();
    called.sort_by_key(ToString::to_string);
    within.sort_by_key(ToString::to_string);
    assert_eq!(called, within);
}

#[tokio::test]
async fn failed_attempts_are_errors_and_a_replay_continues_the_trace() {
    let transient = || HandlerError::Transient(anyhow::anyhow!("mina@example.com is locked"));
    let journey = Journey::to(FlakyHandler::failing(vec![transient(), transient()])).await;
    let trace = trace_of(&journey.append(&[view("a", 1)]).await);
    let attempts = journey.spans.wait_for(trace, SpanKind::Consumer, 2).await;
    let producer = one(journey.spans.wait_for(trace, SpanKind::Producer, 1).await);

    let [first, last] = &attempts[..] else { panic!("{attempts:#?}") };
    assert!(attempts.iter().all(|span| span.parent == producer.id && span.failed));
    assert_eq!((first.tag("tourin.attempt"), first.tag("error.type")), ("1", "failed"));
    assert_eq!(first.event("retry").unwrap()["reason"], "failed");
    assert_eq!((last.tag("tourin.attempt"), last.tag("tourin.outcome")), ("2", "dead_lettered"));
    assert!(last.event("dead_lettered").is_some());
    assert!(!producer.failed, "it was published");
    assert!(!format!("{attempts:?}").contains("mina"), "{attempts:#?}");

    let letter = journey.dead_letters.list(1, None).await.unwrap().remove(0);
    assert_eq!(journey.dead_letters.replay(&[letter.id]).await.unwrap(), [Settled::Accepted]);
    let replayed = journey.spans.wait_for(trace, SpanKind::Consumer, 3).await.remove(2);
    assert_eq!(replayed.event("replayed").unwrap()["times"], "1");
    assert_eq!((replayed.parent, replayed.tag("tourin.outcome")), (producer.id, "applied"));
    assert!(!replayed.failed);
    assert_eq!(journey.metrics.replayed.get(), 1);
}

#[tokio::test]
async fn a_panic_is_an_error_of_its_attempt_and_counted() {
    let panics = vec![HandlerError::Permanent("panic".to_owned())];
    let journey = Journey::to(FlakyHandler::failing(panics)).await;
    let trace = trace_of(&journey.append(&[view("a", 1)]).await);
    let attempts = journey.spans.wait_for(trace, SpanKind::Consumer, 2).await;
    assert_eq!((attempts[0].tag("error.type"), attempts[0].failed), ("panic", true));
    assert_eq!((attempts[1].tag("tourin.outcome"), attempts[1].failed), ("applied", false));
    let metrics = &journey.metrics;
    assert_eq!((metrics.broken.get(), metrics.panicked.get()), (1, 1));
}

#[tokio::test]
async fn a_long_wait_for_a_store_exports_few_spans() {
    let away = || HandlerError::Unavailable(anyhow::anyhow!("away"));
    let mut journey =
        Journey::to(FlakyHandler::failing((0..20).map(|_| away()).collect::<Vec<_>>())).await;
    let trace = trace_of(&journey.append(&[view("a", 1)]).await);
    let attempts = journey.spans.wait_for(trace, SpanKind::Consumer, 21).await;
    let told = |attempt: &&Seen| {
        attempt.tag("tourin.repeat").is_empty() || attempt.tag("tourin.keep") == "true"
    };
    let told: Vec<_> = attempts.iter().filter(told).collect();
    let waits = told.iter().map(|attempt| attempt.tag("tourin.waits"));
    assert!(waits.eq(["", "1", "2", "3", "4", "8", "16", "20"]), "{told:#?}");
    let last = told.last().unwrap();
    assert_eq!((last.tag("tourin.outcome"), last.failed), ("applied", false));
    assert!(attempts.iter().all(|attempt| attempt.tag("tourin.attempt") == "1"));
    journey.tasks.abort_all();
}

/// A bus on which publishing fails a given number of times, then works.
struct FlakyBus {
    failures: Mutex<Vec<PublishError>>,
    headers: Mutex<Vec<BTreeMap<String, String>>>,
}

#[async_trait]
impl Publisher for FlakyBus {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        self.headers.lock().unwrap().extend(batch.iter().map(|event| event.headers.clone()));
        batch.iter().map(|_| self.failures.lock().unwrap().pop().map_or(Ok(()), Err)).collect()
    }

    fn messaging_system(&self) -> MessagingSystem {
        MessagingSystem::rabbitmq("broker.example", 5672)
    }
}

#[tokio::test]
async fn one_producer_span_tells_of_all_attempts_to_publish() {
    let mut journey = Journey::without_relay(FlakyHandler::failing(vec![])).await;
    let unavailable = PublishError::Unavailable("gone".to_owned());
    let rejected = PublishError::Rejected("full".to_owned());
    let failures = vec![rejected, PublishError::Unroutable, PublishError::Unroutable, unavailable];
    let bus = Arc::new(FlakyBus { failures: Mutex::new(failures), headers: Mutex::default() });
    journey.relay_to(bus.clone()).await;
    let trace = trace_of(&journey.append(&[view("a", 1)]).await);
    let producer = one(journey.spans.wait_for(trace, SpanKind::Producer, 1).await);

    let told: Vec<(&str, &str)> = producer
        .events
        .iter()
        .map(|(event, facts)| (event.as_str(), facts["reason"].as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("retry", "unavailable"),
            ("returned", "unroutable"),
            ("returned", "unroutable"),
            ("retry", "rejected")
        ]
    );
    assert!(!producer.failed, "in the end it was taken");
    assert_eq!(producer.tag("peer.service"), "rabbitmq");
    let server = (producer.tag("server.address"), producer.tag("server.port"));
    assert_eq!(server, ("broker.example", "5672"));
    let headers = bus.headers.lock().unwrap();
    let carried = format!("00-{trace}-{}-01", producer.id);
    assert_eq!(headers.len(), 5);
    assert!(headers.iter().all(|headers| headers["traceparent"] == carried), "{headers:?}");
}

#[tokio::test]
async fn a_dead_lettered_event_is_an_error() {
    let mut journey = Journey::without_relay(FlakyHandler::failing(vec![])).await;
    let invalid = || PublishError::Invalid("too long".to_owned());
    let failures = Mutex::new(vec![invalid(), invalid(), invalid()]);
    journey.relay_to(Arc::new(FlakyBus { failures, headers: Mutex::default() })).await;
    let trace = trace_of(&journey.append(&[view("a", 1)]).await);
    let producer = one(journey.spans.wait_for(trace, SpanKind::Producer, 1).await);
    assert_eq!((producer.tag("error.type"), producer.failed), ("invalid", true));
    assert!(producer.event("rejected").is_some());
}

/// Answers with the trace of the request.
struct Echo;

#[async_trait]
impl RequestHandler for Echo {
    async fn reply(&self, _: &Received) -> Result<Value, HandlerError> {
        Ok(json!({ "trace": trace_of(&Context::current()).to_string() }))
    }
}

#[tokio::test]
async fn commands_requests_and_answers_are_of_the_askers_trace() {
    let journey = Journey::without_relay(FlakyHandler::failing(vec![])).await;
    let bus = Arc::new(journey.bus.clone());
    let deliveries = bus.subscribe(Commands::subscription("sums")).await.unwrap();
    let responder = Responder::new(Echo, ReplyPublisher::new(bus.clone(), system_clock()));
    let consumer = Consumer::new("sums", deliveries, Arc::new(responder), system_clock());
    let mut tasks = JoinSet::new();
    tasks.spawn(consumer.run(CancellationToken::new()));
    let settings = RequestSettings::default();
    let requests = Requests::open(bus.clone(), system_clock(), settings).await.unwrap();

    let asking = request();
    let trace = trace_of(&asking);
    let ask = requests.request("sums", Message::new("sum", json!({})), Duration::from_secs(10));
    let reply = ask.with_context(asking.clone()).await.unwrap();
    assert_eq!(reply.envelope.data["trace"], trace.to_string());
    let [question, sent] = &journey.spans.wait_for(trace, SpanKind::Producer, 2).await[..] else {
        panic!("{:#?}", journey.spans.of(trace))
    };
    let handling = one(journey.spans.wait_for(trace, SpanKind::Consumer, 1).await);
    assert_eq!(question.parent, asking.span().span_context().span_id());
    assert_eq!((handling.parent, sent.parent), (question.id, handling.id));
    assert_eq!(reply.headers["traceparent"], format!("00-{trace}-{}-01", sent.id));

    let command = Commands::new(bus, system_clock());
    let nowhere = command.send("nobody", Message::new("go", json!({})));
    nowhere.with_context(asking).await.unwrap_err();
    let lost = journey.spans.wait_for(trace, SpanKind::Producer, 3).await.remove(2);
    assert_eq!((lost.tag("error.type"), lost.failed), ("unroutable", true));
}

#[tokio::test]
async fn an_event_that_is_recorded_later_keeps_the_trace_it_was_made_in() {
    let journey = Journey::to(FlakyHandler::failing(vec![])).await;
    let looking = request();
    let headers = {
        let _current = looking.clone().attach();
        tourin_shared_events::trace::current()
    };
    let flush = journey.append(&[Outgoing { headers, ..view("a", 1) }]).await;
    let producer = one(journey.spans.wait_for(trace_of(&looking), SpanKind::Producer, 1).await);
    assert_eq!(producer.parent, looking.span().span_context().span_id());
    assert_eq!(journey.spans.of(trace_of(&flush)).len(), 1, "the flush itself");
    let fields = global::get_text_map_propagator(|format| format.fields().count());
    assert!(fields > 0);
}

#[tokio::test]
async fn the_tracestate_of_a_stranger_is_not_stored() {
    let _spans = collect();
    let request = request();
    let here = request.span().span_context().clone();
    let state = TraceState::from_key_value([("stranger", "x".repeat(256))]).unwrap();
    let theirs = SpanContext::new(here.trace_id(), here.span_id(), here.trace_flags(), true, state);
    let headers = {
        let _current = Context::new().with_remote_span_context(theirs).attach();
        tourin_shared_events::trace::current()
    };
    assert!(headers["traceparent"].contains(&here.trace_id().to_string()));
    assert_eq!(headers.get("tracestate").map_or("", String::as_str), "");
}
