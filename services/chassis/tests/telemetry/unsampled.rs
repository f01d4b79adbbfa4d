//! Unsampled requests: what is not recorded, and what is exported all the same.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method};
use opentelemetry::KeyValue;
use opentelemetry::trace::TraceContextExt as _;
use tourin_chassis::telemetry::memory::{MemoryLimits, MemoryStore};
use tourin_chassis::telemetry::{
    DbCall, DeferredRequest, HttpRequest, Pipeline, Service, TraceSettings, names,
};

use crate::readers::all;

fn start(settings: &TraceSettings) -> (Pipeline, MemoryStore) {
    let store = MemoryStore::new(MemoryLimits::default());
    (Pipeline::start(settings, Some(store.clone())).unwrap(), store)
}

fn unsampled() -> TraceSettings {
    TraceSettings { trace_ratio: 0.0, ..all() }
}

fn asked() -> HttpRequest<'static> {
    HttpRequest::new(&Method::GET, Some("/a"))
}

fn request(service: &Service) -> DeferredRequest {
    service.deferred(&HeaderMap::new(), &asked(), SystemTime::now())
}

async fn exported(pipeline: &Pipeline, store: &MemoryStore, trace: &str) -> usize {
    pipeline.flush(Duration::from_secs(5)).await;
    store.trace(trace).map_or(0, |spans| spans.len())
}

#[tokio::test]
async fn an_unsampled_request_has_a_trace_id_and_is_exported_only_if_it_failed() {
    let (pipeline, store) = start(&unsampled());
    let _spans = pipeline.enter();
    let service = pipeline.service("demo");
    for (status, expected) in [(200, 0), (404, 0), (503, 2)] {
        let mut request = request(&service);
        let trace = request.handle().trace_id().expect("for logs and error bodies");
        drop(request.handle().db(&DbCall::new("mysql", "select", "spots")));
        request.finish(&asked(), Some(status));
        assert_eq!(exported(&pipeline, &store, &trace).await, expected, "{status}");
    }
}

#[tokio::test]
async fn an_unsampled_request_is_exported_if_it_was_slow_or_somebody_asks() {
    let (pipeline, store) = start(&TraceSettings { trace_slow_ms: 20, ..unsampled() });
    let _spans = pipeline.enter();
    let service = pipeline.service("demo");
    let mut slow = request(&service);
    let trace = slow.handle().trace_id().unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    slow.finish(&asked(), None);
    assert_eq!(exported(&pipeline, &store, &trace).await, 1);
    let spans = store.trace(&trace).unwrap();
    assert_eq!(spans[0].tags["tourin.kept_for"], "slow");
    assert!(!spans[0].tags.contains_key("error"), "slow is not failed");
    assert_eq!(spans[0].annotations[0].value, "client_gone");

    let mut wanted = request(&service);
    let trace = wanted.handle().trace_id().unwrap();
    let inner = wanted.handle().child("breaker");
    inner.context().span().set_attribute(KeyValue::new(names::KEEP, true));
    drop(inner);
    wanted.finish(&asked(), Some(200));
    assert_eq!(exported(&pipeline, &store, &trace).await, 2);
}

#[tokio::test]
async fn a_failed_request_of_too_many_parts_exports_the_first_of_them() {
    let (pipeline, store) = start(&unsampled());
    let _spans = pipeline.enter();
    let mut request = request(&pipeline.service("demo"));
    let trace = request.handle().trace_id().unwrap();
    for _ in 0..200 {
        drop(request.handle().db(&DbCall::new("mysql", "select", "spots")));
    }
    request.finish(&asked(), Some(500));
    assert_eq!(exported(&pipeline, &store, &trace).await, 129);
    let spans = store.trace(&trace).unwrap();
    assert!(spans.iter().any(|span| span.parent_id.is_none()), "the request is among them");
    assert_eq!(pipeline.stats().not_kept_back, 72);
}

#[tokio::test]
async fn services_in_one_process_keep_a_failed_trace_whole() {
    let (pipeline, store) = start(&unsampled());
    let mut gateway = request(&pipeline.service("gateway"));
    let trace = gateway.handle().trace_id().unwrap();
    let mut headers = HeaderMap::new();
    gateway.handle().inject(&mut headers);
    assert!(headers["traceparent"].to_str().unwrap().ends_with("-00"), "{headers:?}");
    let mut core = pipeline.service("core").deferred(&headers, &asked(), SystemTime::now());
    core.finish(&asked(), Some(500));
    gateway.finish(&asked(), Some(200));
    assert_eq!(exported(&pipeline, &store, &trace).await, 2);
}

#[tokio::test]
async fn with_nothing_to_keep_an_unsampled_request_makes_no_spans() {
    let settings = TraceSettings { trace_keep_failed: false, trace_slow_ms: 0, ..unsampled() };
    let (pipeline, store) = start(&settings);
    let _spans = pipeline.enter();
    let mut request = request(&pipeline.service("demo"));
    let span = request.handle();
    assert!(!span.is_recording());
    let child = span.db(&DbCall::new("mysql", "select", "spots"));
    assert!(!child.is_recording());
    assert_eq!(child.trace_id(), span.trace_id());
    let trace = span.trace_id().unwrap();
    drop(child);
    request.finish(&asked(), Some(500));
    assert_eq!(exported(&pipeline, &store, &trace).await, 0);
}

#[tokio::test]
async fn internal_calls_join_traces_and_start_none() {
    let (pipeline, store) = start(&all());
    let service = pipeline.service("registry");
    let quiet =
        HttpRequest { unsampled: true, ..HttpRequest::new(&Method::PUT, Some("/v1/instances")) };
    let mut alone = service.deferred(&HeaderMap::new(), &quiet, SystemTime::now());
    assert!(!alone.handle().is_recording());
    alone.finish(&quiet, Some(200));
    let caller = pipeline.service("gateway").work("register");
    let mut headers = HeaderMap::new();
    caller.inject(&mut headers);
    let mut joined = service.deferred(&headers, &quiet, SystemTime::now());
    assert_eq!(joined.handle().trace_id(), caller.trace_id());
    let trace = caller.trace_id().unwrap();
    joined.finish(&quiet, Some(200));
    drop(caller);
    assert_eq!(exported(&pipeline, &store, &trace).await, 2);
    assert_eq!(store.span_count(), 2);
}

#[tokio::test]
async fn the_store_keeps_to_its_bounds_and_drops_the_oldest() {
    for limits in [
        MemoryLimits { spans: 10, ..MemoryLimits::default() },
        MemoryLimits { bytes: 10 * 1_024, ..MemoryLimits::default() },
    ] {
        let store = MemoryStore::new(limits);
        let pipeline = Pipeline::start(&all(), Some(store.clone())).unwrap();
        let service = pipeline.service("demo");
        let traces: Vec<String> = (0..100)
            .map(|_| {
                let mut request = request(&service);
                request.finish(&asked(), Some(200));
                request.handle().trace_id().unwrap()
            })
            .collect();
        pipeline.flush(Duration::from_secs(5)).await;
        assert!((1..=20).contains(&store.span_count()), "{}", store.span_count());
        assert!(store.trace(&traces[0]).is_none());
        assert!(store.trace(&traces[99]).is_some());
    }
}
