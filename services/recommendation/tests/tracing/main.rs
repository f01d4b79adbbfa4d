//! The service's spans and metrics of events, requests and operations of stores.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

#[path = "../mesh/mod.rs"]
mod mesh;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tourin_chassis::clock::SystemClock;
use tourin_chassis::telemetry::memory::{MemoryStore, TraceQuery};
use tourin_chassis::telemetry::testing::all_spans;
use tourin_chassis::telemetry::{Service, Span, ZipkinSpan};
use tourin_recommendation::{Dependencies, Settings, open_stores};
use tourin_shared_events::backoff::Backoff;
use tourin_shared_events::bus::in_process::InProcessBus;
use tourin_shared_events::bus::{Binding, Publisher as _, Subscriber as _, Subscription};
use tourin_shared_events::consumer::{
    Consumer, ConsumerSettings, Handler, HandlerError, Outcome, Received, RetryPolicy,
};
use tourin_shared_events::dead_letters::MemoryDeadLetters;
use tourin_shared_events::events::{Outgoing, USER_EXCHANGE};
use tourin_shared_events::system_clock;
use tourin_testbed::{SOON, equal, eventually};
use uuid::Uuid;

use mesh::*;
use tourin_recommendation::SERVICE;
use tourin_registry::testing::{url, workload};

/// An event in a new trace, and the trace's id.
fn traced(event: Outgoing) -> (Outgoing, String) {
    let request = Service::new("core").work("request");
    let mut headers = BTreeMap::new();
    request.inject_event(&mut headers);
    (Outgoing { headers, ..event }, request.trace_id().unwrap())
}

fn name(span: &ZipkinSpan) -> &str {
    span.name.as_deref().unwrap_or("")
}

fn remote(span: &ZipkinSpan) -> &str {
    span.remote_endpoint.as_ref().and_then(|at| at.service_name.as_deref()).unwrap_or("")
}

/// The trace's spans, once `count` of them have this name.
async fn trace(store: &MemoryStore, id: &str, awaited: &str, count: usize) -> Vec<ZipkinSpan> {
    eventually(&format!("{count} spans {awaited}"), async || {
        let spans = store.trace(id).unwrap_or_default();
        let found = spans.iter().filter(|span| name(span) == awaited).count();
        if found >= count { Ok(spans) } else { Err(spans) }
    })
    .await
}

/// The span of a store's operation, a child of the queue's consumer span.
fn effect<'a>(spans: &'a [ZipkinSpan], queue: &str, operation: &str) -> &'a ZipkinSpan {
    let consumer = spans.iter().find(|span| name(span) == format!("process {queue}")).unwrap();
    assert_eq!(consumer.kind.as_deref(), Some("CONSUMER"));
    assert_eq!(consumer.tags["tourin.outcome"], "applied", "{consumer:?}");
    let is_child = |span: &&ZipkinSpan| span.parent_id.as_ref() == Some(&consumer.id);
    let child = spans.iter().filter(is_child).find(|span| name(span) == operation);
    let child = child.unwrap_or_else(|| panic!("no {operation} below {consumer:?}: {spans:#?}"));
    assert!(consumer.duration >= child.duration, "{consumer:?} {child:?}");
    child
}

/// Many events at once, so that stores write them in batches, and the three queries.
async fn a_batch_and_the_questions(settings: Settings, trend_at: &str, documents_at: &str) {
    let store = all_spans();
    let clock = Arc::new(SystemClock);
    let stores = open_stores(&settings, clock.clone()).await.unwrap();
    let bus = InProcessBus::new(stores.dead_letters.clone());
    let (events, traces): (Vec<_>, Vec<_>) =
        (0..20).map(|n| traced(view(&format!("member{n:02}"), 1 + n % 3))).unzip();
    let dependencies = Dependencies {
        events: Some(Arc::new(bus.clone())),
        workload: Some(workload(SERVICE)),
        stores: Some(stores),
        clock,
    };
    let service = Running::start(settings, dependencies).await;
    // Not sooner: the test bed's document server never answers again once something is written to a
    // collection that it is building an index on.
    eventually("the service is ready", async || equal(service.unready().await, READY)).await;
    let published = tokio::time::timeout(SOON, bus.publish(events)).await;
    assert!(published.expect("all are settled in time").iter().all(Result::is_ok));
    for id in &traces {
        let spans = trace(&store, id, "process recommendation.trend", 1).await;
        assert_eq!(remote(effect(&spans, "recommendation.trend", "record trend")), trend_at);
        let spans = trace(&store, id, "process recommendation.history", 1).await;
        let kept = effect(&spans, "recommendation.history", "record histories");
        assert_eq!(remote(kept), documents_at);
        let at = kept.local_endpoint.as_ref().unwrap();
        assert_eq!(at.service_name.as_deref(), Some("recommendation"));
    }

    let answer = service.answer("/api/recommendations/trend", "member01").await;
    let response = answer.headers()["traceresponse"].to_str().unwrap().to_owned();
    let id = response.split('-').nth(1).unwrap();
    let spans = trace(&store, id, "get /api/recommendations/trend", 1).await;
    let server = spans.iter().find(|span| span.kind.as_deref() == Some("SERVER")).unwrap();
    for (operation, at) in [("top trend", trend_at), ("find spots", documents_at)] {
        let asked = spans.iter().find(|span| name(span) == operation).unwrap();
        assert_eq!((asked.parent_id.as_ref(), remote(asked)), (Some(&server.id), at));
    }

    let wanted = [
        r#"tourin_consumer_events_total{queue="recommendation.trend",outcome="applied"} 20"#,
        r#"tourin_consumer_events_total{queue="recommendation.trend",outcome="duplicate"} 0"#,
        r#"tourin_consumer_retries_total{queue="recommendation.history"} 0"#,
        r#"tourin_consumer_in_flight{queue="recommendation.trend"} 0.0"#,
        r#"tourin_consumer_oldest_age_seconds{queue="recommendation.trend"} 0.0"#,
        r#"tourin_event_age_at_effect_seconds_count{queue="recommendation.trend"} 20"#,
        r#"tourin_event_age_at_effect_seconds_bucket{le="+Inf",queue="recommendation.trend"} 20"#,
        "tourin_trend_newest_event_age_seconds ",
        "tourin_trend_stale_answers_total 0",
        "tourin_dead_letters 0.0",
        r#"tourin_http_requests_total{service="recommendation",route="/api/recommendations/trend""#,
    ];
    // An event and a request are counted a moment after their end.
    let text = eventually("all metrics", async || {
        let text = metrics(&service).await;
        match wanted.iter().find(|line| !text.contains(**line)) {
            None => Ok(text),
            Some(line) => Err(format!("{line} is not in {text}")),
        }
    })
    .await;
    // No span and no metric names the user of a view.
    let told = format!("{text}{:?}", traces.iter().map(|id| store.trace(id)).collect::<Vec<_>>());
    assert!(!told.contains("member0"), "{told}");
    service.stop().await;
}

async fn metrics(service: &Running) -> String {
    service.http.get(url(service.addr, "/metrics")).send().await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_of_a_group_has_its_effect_in_its_own_trace() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = FakeMesh::start(catalogue(9, 1)).await;
    a_batch_and_the_questions(settings(folder.path(), mesh.url()), "sqlite", "sqlite").await;
}

fn server(variable: &str) -> String {
    let Ok(url) = std::env::var(variable) else {
        panic!("{variable} is not set: run it by deploy/testbed.sh run -- cargo test ...");
    };
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_and_mongodb_too() {
    let name = format!("tracing-{}", Uuid::new_v4().simple());
    let folder = tempfile::tempdir().unwrap();
    let mesh = FakeMesh::start(catalogue(9, 1)).await;
    let mut settings = settings(folder.path(), mesh.url());
    let mongodb = server("TOURIN_MONGODB_URL");
    let host = mongodb.find("://").unwrap() + 3;
    let path = mongodb[host..].find('/').map_or(mongodb.len(), |at| host + at);
    let options = mongodb[path..].split_once('?').map_or("", |(_, options)| options);
    let mongodb = format!("{}/{name}?{options}", &mongodb[..path]);
    settings.servers.redis_url = Some(server("TOURIN_REDIS_URL").parse().unwrap());
    settings.servers.recommendation_redis_prefix = name.clone();
    settings.servers.mongodb_url = Some(mongodb.parse().unwrap());
    a_batch_and_the_questions(settings, "redis", "mongodb").await;
    let client = mongodb::Client::with_uri_str(mongodb).await.unwrap();
    client.database(&name).drop().await.unwrap();
}

/// Fails `left` times because its store is unavailable, then works. Keeps the headers that it would send.
struct Waiting {
    left: AtomicU32,
    sends: Mutex<BTreeMap<String, String>>,
}

#[async_trait]
impl Handler for Waiting {
    async fn handle(&self, _: &Received) -> Result<Outcome, HandlerError> {
        let _asked = Span::current().child("ask");
        if self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(HandlerError::Unavailable(anyhow::anyhow!("away")));
        }
        *self.sends.lock().unwrap() = tourin_shared_events::trace::current();
        Ok(Outcome::Applied)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_wait_for_a_store_exports_few_spans_and_later_events_are_sampled() {
    let store = all_spans();
    let bus = InProcessBus::new(Arc::new(MemoryDeadLetters::default()));
    let deliveries = bus
        .subscribe(Subscription::new("waiting", vec![Binding::new(USER_EXCHANGE, "#")]))
        .await
        .unwrap();
    let handler = Arc::new(Waiting { left: AtomicU32::new(20), sends: Mutex::default() });
    let short = Duration::from_millis(20);
    let backoff = Backoff { base: Duration::from_millis(2), max: short, jitter: 0.5 };
    let retry = RetryPolicy { backoff, ..RetryPolicy::default() };
    let consumer = Consumer::new("waiting", deliveries, handler.clone(), system_clock())
        .with_settings(ConsumerSettings { retry, ..ConsumerSettings::default() });
    let stop = CancellationToken::new();
    let service = Service::new("recommendation");
    let consuming = tokio::spawn(service.run(consumer.run(stop.clone())));

    let (event, id) = traced(view("member01", 1));
    assert_eq!(bus.publish(vec![event]).await, [Ok(())]);
    stop.cancel();
    consuming.await.unwrap();
    let ended =
        |spans: &[ZipkinSpan]| spans.iter().any(|span| span.tags.contains_key("tourin.outcome"));
    eventually("the attempt has ended", async || ended(&store.trace(&id).unwrap_or_default()))
        .await;
    let mut spans = store.trace(&id).unwrap();
    spans.sort_by_key(|span| span.timestamp);
    let (attempts, asked): (Vec<_>, Vec<_>) = spans
        .iter()
        .filter(|span| name(span) != "request")
        .partition(|span| span.kind.as_deref() == Some("CONSUMER"));
    let waits =
        attempts.iter().map(|span| span.tags.get("tourin.waits").map_or("", String::as_str));
    assert_eq!(waits.collect::<Vec<_>>(), ["", "1", "2", "3", "4", "8", "16", "20"]);
    // Each attempt has one child, and no child is without an attempt.
    let of_attempt = asked.iter().map(|span| span.parent_id.as_ref().unwrap());
    assert!(of_attempt.eq(attempts.iter().map(|span| &span.id)), "{spans:#?}");

    let sent_on = format!("00-{id}-{}-01", attempts.last().unwrap().id);
    assert_eq!(handler.sends.lock().unwrap()["traceparent"], sent_on);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resync_is_a_trace_of_its_own() {
    let store = all_spans();
    let folder = tempfile::tempdir().unwrap();
    let mesh = FakeMesh::start(catalogue(9, 1)).await;
    let service = Running::start(settings(folder.path(), mesh.url()), on(&bus())).await;
    let query = TraceQuery {
        service: Some("recommendation".to_owned()),
        span: Some("resync of spots".to_owned()),
        remote_service: Some("core".to_owned()),
        annotations: Vec::new(),
        min_duration: None,
        max_duration: None,
        end_ms: u64::MAX,
        lookback_ms: u64::MAX,
        limit: 1,
    };
    eventually("the trace of the resync", async || equal(store.traces(&query).len(), 1)).await;
    let resync = store.traces(&query).remove(0);
    let work = resync.iter().find(|span| name(span) == "resync of spots").unwrap();
    for part in ["get /internal/tour-spots", "merge spots"] {
        let span = resync.iter().find(|span| name(span) == part);
        assert_eq!(span.unwrap().parent_id.as_ref(), Some(&work.id), "{resync:#?}");
    }
    service.stop().await;
}
