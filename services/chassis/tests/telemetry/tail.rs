//! The spans of an unsampled request, once its outcome is known.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method};
use opentelemetry::KeyValue;
use opentelemetry::trace::TraceContextExt as _;
use tourin_chassis::telemetry::memory::{MemoryLimits, MemoryStore};
use tourin_chassis::telemetry::{
    DeferredRequest, HttpCall, HttpRequest, Pipeline, Service, Span, TraceSettings, ZipkinSpan,
    names,
};

use crate::readers::all;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const GET: Method = Method::GET;
const ROUTE: &str = "/api/users/{id}";

fn start(settings: TraceSettings) -> (Pipeline, MemoryStore) {
    let store = MemoryStore::new(MemoryLimits::default());
    let pipeline = Pipeline::start(&settings, Some(store.clone())).unwrap();
    (pipeline, store)
}

/// A request whose caller decided against sampling.
fn unsampled(pipeline: &Pipeline) -> DeferredRequest {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", format!("00-{TRACE}-{CALLER}-00").parse().unwrap());
    let service: Service = pipeline.service("gateway").listening("127.0.0.1:8080".parse().unwrap());
    service.deferred(&headers, &asked(), SystemTime::now())
}

fn asked() -> HttpRequest<'static> {
    HttpRequest::new(&GET, Some(ROUTE))
}

fn call(request: &DeferredRequest, resend_count: u32) -> Span {
    let address = Some(format!("127.0.0.2:{}", 9_000 + resend_count).parse().unwrap());
    request.handle().http_client(&HttpCall {
        method: &GET,
        route: ROUTE,
        service: "core",
        instance: Some(if resend_count == 0 { "core-1" } else { "core-2" }),
        address,
        resend_count,
    })
}

/// The exported spans: the request's first, then its parts in the order of their start.
async fn exported(pipeline: &Pipeline, store: &MemoryStore) -> Vec<ZipkinSpan> {
    pipeline.flush(Duration::from_secs(5)).await;
    let mut spans = store.trace(TRACE).unwrap_or_default();
    spans.sort_by_key(|span| (span.parent_id.as_deref() != Some(CALLER), span.timestamp));
    spans
}

fn notes(span: &ZipkinSpan) -> Vec<&str> {
    span.annotations.iter().map(|note| note.value.as_str()).collect()
}

#[tokio::test]
async fn a_request_that_failed_after_a_retry_is_exported_completely() {
    let (pipeline, store) = start(all());
    let _spans = pipeline.enter();
    let mut request = unsampled(&pipeline);
    let first = call(&request, 0);
    first.set_error("connect_refused");
    drop(first);
    request.handle().annotate("retry", &[("reason", "connect_refused"), ("failed", "core-1")]);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let second = call(&request, 1);
    let sent = second.headers();
    second.set_status(502);
    drop(second);
    assert_eq!(exported(&pipeline, &store).await, [], "it is not known yet how it ends");
    request.finish(&asked(), Some(502));
    let answered = request.handle().trace_response().unwrap();

    let spans = exported(&pipeline, &store).await;
    let [request, first, second] = &spans[..] else { panic!("{spans:#?}") };
    assert_eq!(request.kind.as_deref(), Some("SERVER"));
    assert_eq!(request.name.as_deref(), Some("get /api/users/{id}"));
    let endpoint = request.local_endpoint.as_ref().unwrap();
    assert_eq!((endpoint.service_name.as_deref(), endpoint.port), (Some("gateway"), Some(8080)));
    for (tag, value) in [
        ("http.request.method", "GET"),
        ("http.route", ROUTE),
        ("http.response.status_code", "502"),
        ("error", "502"),
        ("tourin.kept_for", "failed"),
    ] {
        assert_eq!(request.tags[tag], value, "{tag}");
    }
    assert_eq!(notes(request), ["retry reason=connect_refused failed=core-1"]);
    for (span, error, instance, port) in
        [(first, "connect_refused", "core-1", 9_000), (second, "502", "core-2", 9_001)]
    {
        assert_eq!(span.kind.as_deref(), Some("CLIENT"));
        assert_eq!(span.parent_id.as_ref(), Some(&request.id));
        assert_eq!((&*span.tags["error"], &*span.tags["tourin.instance"]), (error, instance));
        let remote = span.remote_endpoint.as_ref().unwrap();
        assert_eq!((remote.service_name.as_deref(), remote.port), (Some("core"), Some(port)));
        assert_eq!(span.local_endpoint, request.local_endpoint);
        assert!(!span.tags.contains_key("tourin.kept_for"), "its request has it");
    }
    assert!(!first.tags.contains_key("http.request.resend_count"));
    assert_eq!(second.tags["http.request.resend_count"], "1");
    // The next hop and the client got the ids of these spans.
    assert_eq!(sent[0].1, format!("00-{TRACE}-{}-00", second.id));
    assert_eq!(answered, format!("00-{TRACE}-{}-00", request.id));
}

#[tokio::test]
async fn a_request_that_a_retry_repaired_is_not_exported() {
    let (pipeline, store) = start(all());
    let _spans = pipeline.enter();
    let mut request = unsampled(&pipeline);
    call(&request, 0).set_error("connect_refused");
    request.handle().annotate("retry", &[("reason", "connect_refused")]);
    call(&request, 1).set_status(200);
    request.finish(&asked(), Some(200));
    assert_eq!(exported(&pipeline, &store).await, []);
    assert_eq!(pipeline.stats().not_kept_back, 0);
}

#[tokio::test]
async fn a_slow_request_has_what_was_noted_within_it() {
    let (pipeline, store) = start(TraceSettings { trace_slow_ms: 20, ..all() });
    let _spans = pipeline.enter();
    let mut request = unsampled(&pipeline);
    request
        .handle()
        .run(async {
            Span::current().annotate("fall_back", &[("to", "visitor")]);
            let verify = tracing::info_span!(target: "tourin", "verify");
            verify.in_scope(|| Span::current().annotate("waited", &[]));
            tokio::time::sleep(Duration::from_millis(30)).await;
        })
        .await;
    request.finish(&asked(), Some(200));
    let spans = exported(&pipeline, &store).await;
    let [request, inner] = &spans[..] else { panic!("{spans:#?}") };
    assert_eq!(request.tags["tourin.kept_for"], "slow");
    assert!(!request.tags.contains_key("error"));
    assert!(request.duration.unwrap() >= 30_000, "{request:?}");
    assert_eq!(notes(request), ["fall_back to=visitor"]);
    assert_eq!((inner.name.as_deref(), &*notes(inner)), (Some("verify"), &["waited"][..]));
}

#[tokio::test]
async fn a_part_that_outlives_its_request_is_exported_if_somebody_asks() {
    let (pipeline, store) = start(all());
    let _spans = pipeline.enter();
    let mut request = unsampled(&pipeline);
    let late = request.handle().child("late");
    request.finish(&asked(), Some(200));
    late.context().span().set_attribute(KeyValue::new(names::KEEP, true));
    drop(late);
    let spans = exported(&pipeline, &store).await;
    let [late] = &spans[..] else { panic!("{spans:#?}") };
    assert_eq!((late.name.as_deref(), &*late.tags["tourin.kept_for"]), (Some("late"), "kept"));
}

#[tokio::test]
async fn a_part_that_outlives_its_request_is_dropped() {
    let (pipeline, store) = start(all());
    let _spans = pipeline.enter();
    let mut request = unsampled(&pipeline);
    let late = request.handle().child("late");
    request.finish(&asked(), Some(500));
    drop(late);
    assert_eq!(exported(&pipeline, &store).await.len(), 1);
}
