//! An event's trace survives the broker, retries, the dead letters and their replay.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use opentelemetry::context::FutureExt as _;
use opentelemetry::trace::{SpanKind, TraceContextExt as _};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tourin_shared_events::bus::Subscriber as _;
use tourin_shared_events::bus::contract::{users, view};
use tourin_shared_events::bus::rabbitmq::RabbitDeadLetters;
use tourin_shared_events::consumer::{
    Consumer, ConsumerSettings, Handler, HandlerError, Outcome, Received, RetryPolicy,
};
use tourin_shared_events::dead_letters::{DeadLetterStore as _, Settled};
use tourin_shared_events::outbox::sqlite::append;
use tourin_shared_events::outbox::{Relay, SqliteOutbox, Wake};
use tourin_shared_events::sqlite::Database;
use tourin_shared_events::system_clock;
use tourin_testbed::eventually;

use crate::bed::{Bed, soon};
use crate::spans::{collect, request, trace_of};

/// Fails a given number of times, then works.
struct Failing(AtomicU32);

#[async_trait]
impl Handler for Failing {
    async fn handle(&self, _: &Received) -> Result<Outcome, HandlerError> {
        let left = self.0.load(Ordering::SeqCst);
        if left == 0 {
            return Ok(Outcome::Applied);
        }
        self.0.store(left - 1, Ordering::SeqCst);
        Err(HandlerError::Transient(anyhow::anyhow!("not yet")))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_from_the_outbox_over_the_broker_to_the_replay_of_its_dead_letter() {
    let spans = collect();
    let bed = Bed::new();
    let bus = bed.bus();
    let stop = CancellationToken::new();

    let deliveries = bus.subscribe(users("q")).await.unwrap();
    let retry = RetryPolicy { max_attempts: 2, ..RetryPolicy::default() };
    let settings = ConsumerSettings { retry, ..ConsumerSettings::default() };
    let handler = Arc::new(Failing(AtomicU32::new(2)));
    let consumer = Consumer::new("q", deliveries, handler, system_clock()).with_settings(settings);
    let consuming = tokio::spawn(consumer.run(stop.clone()));

    let folder = TempDir::new().unwrap();
    let database = Database::open(&folder.path().join("outbox.db"), 2).await.unwrap();
    let store = Arc::new(SqliteOutbox::open(database.clone()).await.unwrap());
    let wake = Wake::new();
    let relay = Relay::new(store, Arc::new(bus.clone()), wake.clone(), system_clock());
    let relaying = tokio::spawn(relay.run(stop.clone()));

    let request = request();
    let trace = trace_of(&request);
    async {
        let mut transaction = database.write().await.unwrap();
        append(&mut transaction, &[view("a", 1)], Utc::now()).await.unwrap();
        transaction.commit().await.unwrap();
    }
    .with_context(request.clone())
    .await;
    wake.notify();
    request.span().end();

    let attempts = spans.wait_for(trace, SpanKind::Consumer, 2).await;
    let producer = spans.wait_for(trace, SpanKind::Producer, 1).await.remove(0);
    assert_eq!(producer.parent, request.span().span_context().span_id());
    assert_eq!((producer.tag("peer.service"), producer.failed), ("rabbitmq", false));
    for attempt in &attempts {
        assert_eq!((attempt.parent, attempt.tag("peer.service")), (producer.id, "rabbitmq"));
        assert!(attempt.failed && attempt.took > Duration::ZERO, "{attempt:?}");
    }
    assert!(attempts[0].event("retry").is_some());
    assert_eq!(attempts[1].tag("tourin.outcome"), "dead_lettered");

    let dead_letters = RabbitDeadLetters::new(bus.clone(), vec!["q".to_owned()]);
    eventually("the event is dead-lettered", async || match dead_letters.count().await {
        Ok(1) => Ok(()),
        other => Err(other),
    })
    .await;
    let letter = dead_letters.list(1, None).await.unwrap().remove(0);
    assert!(letter.headers["traceparent"].contains(&trace.to_string()), "{letter:?}");
    assert_eq!(dead_letters.replay(&[letter.id]).await.unwrap(), [Settled::Done]);
    let replayed = spans.wait_for(trace, SpanKind::Consumer, 3).await.remove(2);
    assert_eq!(replayed.event("replayed").unwrap()["times"], "1");
    assert_eq!((replayed.parent, replayed.tag("tourin.outcome")), (producer.id, "applied"));
    assert!(!replayed.failed);

    stop.cancel();
    soon(consuming).await.unwrap();
    soon(relaying).await.unwrap();
    soon(bus.close(Duration::from_secs(5))).await;
    bed.clear(&["q"]).await;
}
