//! Collectors that are dead, slow or failing, and an OTLP collector.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use http::StatusCode;
use tourin_chassis::telemetry::{Pipeline, Service, TraceSettings};
use tourin_testbed::{SOON, eventually, free_address};

use crate::readers::{all, serve};

fn spans(service: &Service, count: usize) {
    for _ in 0..count {
        drop(service.work("test"));
    }
}

fn counted(pipeline: &Pipeline) -> (u64, u64) {
    let stats = pipeline.stats();
    let counters = &stats.destinations[0].1;
    (counters.exported.load(std::sync::atomic::Ordering::Relaxed), counters.dropped())
}

#[tokio::test]
async fn a_dead_collector_costs_its_spans_and_they_are_counted() {
    let dead = format!("http://{}", free_address());
    let settings = TraceSettings { zipkin_url: Some(dead), trace_queue_spans: 100, ..all() };
    let pipeline = Pipeline::start(&settings, None).unwrap();
    spans(&pipeline.service("demo"), 5_000);
    // The hundred of the queue and those of the batch in progress are dropped later.
    eventually("4,000 spans dropped", async || counted(&pipeline).1 >= 4_000).await;
    eventually("all spans dropped", async || counted(&pipeline).1 == 5_000).await;
    assert_eq!(counted(&pipeline).0, 0);
}

#[tokio::test]
async fn a_slow_collector_holds_the_queue_at_its_bound() {
    let asked = Arc::new(tokio::sync::Notify::new());
    let ask = asked.clone();
    let stuck = post(move || async move {
        ask.notify_one();
        std::future::pending::<StatusCode>().await
    });
    let address = serve(Router::new().route("/api/v2/spans", stuck)).await;
    let settings = TraceSettings {
        zipkin_url: Some(format!("http://{address}")),
        trace_queue_spans: 200,
        trace_batch_spans: 50,
        // Only a full batch goes out.
        trace_flush_interval_ms: 600_000,
        trace_export_timeout_ms: 60_000,
        ..all()
    };
    let pipeline = Pipeline::start(&settings, None).unwrap();
    let service = pipeline.service("demo");
    spans(&service, 50);
    // The first batch is in progress and never ends.
    tokio::time::timeout(SOON, asked.notified()).await.unwrap();
    let start = std::time::Instant::now();
    spans(&service, 10_000);
    // Recording did not wait: the collector never answers.
    assert!(start.elapsed() < SOON);
    let (exported, dropped) = counted(&pipeline);
    assert_eq!(exported, 0);
    assert_eq!(dropped, 10_000 - 200);
    // A flush waits no longer than its limit.
    let start = std::time::Instant::now();
    pipeline.flush(Duration::from_millis(100)).await;
    assert!(start.elapsed() < SOON);
}

#[tokio::test]
async fn a_collector_that_fails_for_a_moment_loses_nothing() {
    let calls = Arc::new(Mutex::new(0));
    let flaky = post(|State(calls): State<Arc<Mutex<u32>>>| async move {
        let mut calls = calls.lock().unwrap();
        *calls += 1;
        if *calls == 1 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::ACCEPTED }
    });
    let address = serve(Router::new().route("/api/v2/spans", flaky).with_state(calls)).await;
    let settings = TraceSettings { zipkin_url: Some(format!("http://{address}")), ..all() };
    let pipeline = Pipeline::start(&settings, None).unwrap();
    spans(&pipeline.service("demo"), 10);
    eventually("all spans taken", async || counted(&pipeline) == (10, 0)).await;
}

#[tokio::test]
async fn a_batch_that_is_refused_is_not_sent_again() {
    let calls = Arc::new(Mutex::new(0));
    let refusing = post(|State(calls): State<Arc<Mutex<u32>>>| async move {
        *calls.lock().unwrap() += 1;
        StatusCode::BAD_REQUEST
    });
    let router = Router::new().route("/api/v2/spans", refusing).with_state(calls.clone());
    let settings =
        TraceSettings { zipkin_url: Some(format!("http://{}", serve(router).await)), ..all() };
    let pipeline = Pipeline::start(&settings, None).unwrap();
    spans(&pipeline.service("demo"), 3);
    pipeline.flush(Duration::from_secs(5)).await;
    eventually("spans counted as lost", async || counted(&pipeline) == (0, 3)).await;
    assert!(*calls.lock().unwrap() <= 3, "one call for each batch at most");
}

#[cfg(feature = "otlp")]
#[tokio::test]
async fn an_otlp_collector_gets_a_resource_for_each_service() {
    use serde_json::Value;
    use tourin_chassis::telemetry::DbCall;

    let bodies: Arc<Mutex<Vec<Value>>> = Arc::default();
    let take =
        post(|State(bodies): State<Arc<Mutex<Vec<Value>>>>, body: axum::Json<Value>| async move {
            bodies.lock().unwrap().push(body.0);
            axum::Json(serde_json::json!({}))
        });
    let router = Router::new().route("/v1/traces", take).with_state(bodies.clone());
    let settings =
        TraceSettings { otlp_url: Some(format!("http://{}", serve(router).await)), ..all() };
    let pipeline = Pipeline::start(&settings, None).unwrap();
    let _spans = pipeline.enter();
    let work = pipeline.service("core").work("tidy up");
    let database = work.db(&DbCall::new("mysql", "select", "spots"));
    database.set_error("timeout");
    drop(database);
    drop(work);
    drop(pipeline.service("gateway").work("other"));
    pipeline.flush(Duration::from_secs(5)).await;

    let bodies = bodies.lock().unwrap();
    let resources: Vec<&Value> =
        bodies.iter().flat_map(|body| body["resourceSpans"].as_array().unwrap()).collect();
    let spans_of = |service: &str| -> Vec<Value> {
        let of_service = resources.iter().filter(|resource| {
            resource["resource"]["attributes"][0]["value"]["stringValue"] == service
        });
        of_service
            .flat_map(|resource| resource["scopeSpans"][0]["spans"].as_array().unwrap().clone())
            .collect()
    };
    assert_eq!(spans_of("gateway").len(), 1);
    let core = spans_of("core");
    let database = core.iter().find(|span| span["kind"] == 3).expect("a client's span");
    assert_eq!(database["status"]["code"], 2);
    assert_eq!(database["parentSpanId"].as_str().unwrap().len(), 16);
    let work = core.iter().find(|span| span["kind"] == 1).expect("work within");
    assert!(work["parentSpanId"].as_str().unwrap_or_default().is_empty());
    assert_ne!(work["status"]["code"], 2);
}

#[test]
fn a_url_that_cannot_be_reached_is_refused_at_the_start() {
    for bad in ["https://zipkin:9411", "zipkin:9411", "http://", "not a url"] {
        let settings = TraceSettings { zipkin_url: Some(bad.to_owned()), ..all() };
        let error = Pipeline::start(&settings, None).unwrap_err();
        assert!(error.contains("--zipkin-url"), "{bad}: {error}");
    }
}
