//! A request whose spans are built when it is over: the same as if they had been recorded.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method};
use tourin_chassis::telemetry::memory::{MemoryLimits, MemoryStore};
use tourin_chassis::telemetry::{
    DbCall, DeferredRequest, FinishedCall, HttpCall, HttpRequest, Pipeline, Span, SpanId,
    TraceSettings, ZipkinSpan,
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

fn request() -> HttpRequest<'static> {
    HttpRequest::new(&GET, Some(ROUTE))
}

/// A request whose caller decided by `flags`.
fn begin(pipeline: &Pipeline, flags: &str, started: SystemTime) -> DeferredRequest {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", format!("00-{TRACE}-{CALLER}-{flags}").parse().unwrap());
    let service = pipeline.service("gateway").listening("127.0.0.1:8080".parse().unwrap());
    service.deferred(&headers, &request(), started)
}

fn call(
    id: SpanId,
    resend_count: u32,
    status: Option<u16>,
    error: Option<&'static str>,
) -> FinishedCall<'static> {
    FinishedCall {
        id,
        call: HttpCall {
            method: &GET,
            route: ROUTE,
            service: "core",
            instance: Some(if resend_count == 0 { "core-1" } else { "core-2" }),
            address: Some(format!("127.0.0.2:{}", 9_000 + resend_count).parse().unwrap()),
            resend_count,
        },
        started: SystemTime::now() + Duration::from_millis(u64::from(resend_count)),
        took: Duration::from_millis(1),
        status,
        error,
        abandoned: None,
    }
}

/// The exported spans: the request's first, then its parts in the order of their start.
async fn exported(pipeline: &Pipeline, store: &MemoryStore) -> Vec<ZipkinSpan> {
    pipeline.flush(Duration::from_secs(5)).await;
    let mut spans = store.trace(TRACE).unwrap_or_default();
    spans.sort_by_key(|span| (span.parent_id.as_deref() != Some(CALLER), span.timestamp));
    spans
}

#[tokio::test]
async fn a_request_that_failed_after_a_retry_is_exported_completely() {
    for (flags, kept_for) in [("00", Some("failed")), ("01", None)] {
        let (pipeline, store) = start(all());
        let mut trace = begin(&pipeline, flags, SystemTime::now());
        let (first, _) = trace.new_call();
        trace.handle().annotate("retry", &[("reason", "connect_refused"), ("failed", "core-1")]);
        let (second, sent) = trace.new_call();
        let answered = trace.handle().trace_response().unwrap();
        assert_eq!(exported(&pipeline, &store).await, [], "it is not known yet how it ends");
        trace.finish_with_calls(&request(), Some(502), || {
            [call(first, 0, None, Some("connect_refused")), call(second, 1, Some(502), None)]
        });

        let spans = exported(&pipeline, &store).await;
        let [request, first, second] = &spans[..] else { panic!("{spans:#?}") };
        assert_eq!(request.kind.as_deref(), Some("SERVER"));
        assert_eq!(request.name.as_deref(), Some("get /api/users/{id}"));
        let endpoint = request.local_endpoint.as_ref().unwrap();
        let local = (endpoint.service_name.as_deref(), endpoint.port);
        assert_eq!(local, (Some("gateway"), Some(8080)));
        for (tag, value) in [
            ("http.request.method", "GET"),
            ("http.route", ROUTE),
            ("http.response.status_code", "502"),
            ("error", "502"),
        ] {
            assert_eq!(request.tags[tag], value, "{tag}");
        }
        assert_eq!(request.tags.get("tourin.kept_for").map(String::as_str), kept_for);
        assert_eq!(request.annotations[0].value, "retry reason=connect_refused failed=core-1");
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
        assert_eq!(sent[0].1, format!("00-{TRACE}-{}-{flags}", second.id));
        assert_eq!(answered, format!("00-{TRACE}-{}-{flags}", request.id));
    }
}

#[tokio::test]
async fn a_request_that_went_well_is_dropped_and_its_calls_are_not_asked_for() {
    let (pipeline, store) = start(all());
    let mut trace = begin(&pipeline, "00", SystemTime::now());
    trace.finish_with_calls(&request(), Some(200), || -> [FinishedCall<'static>; 0] {
        panic!("asked for")
    });
    drop(trace);
    // A request without a response leaves nothing behind for later ones.
    drop(begin(&pipeline, "00", SystemTime::now()));
    let mut failed = begin(&pipeline, "00", SystemTime::now());
    failed.finish(&request(), Some(500));
    assert_eq!(exported(&pipeline, &store).await.len(), 1);
    assert_eq!(pipeline.stats().not_kept_back, 0);
}

#[tokio::test]
async fn a_slow_request_has_the_spans_and_the_notes_that_were_made_within_it() {
    let (pipeline, store) = start(TraceSettings { trace_slow_ms: 20, ..all() });
    let _spans = pipeline.enter();
    let mut trace = begin(&pipeline, "00", SystemTime::now() - Duration::from_millis(30));
    let renew = async {
        Span::current().annotate("fall_back", &[("to", "visitor")]);
        let call = Span::current().db(&DbCall::new("redis", "get", "sessions"));
        assert!(call.is_recording());
    };
    trace.handle().run(renew).await;
    trace.finish(&request(), Some(200));
    let spans = exported(&pipeline, &store).await;
    let [request, inner] = &spans[..] else { panic!("{spans:#?}") };
    assert_eq!(request.tags["tourin.kept_for"], "slow");
    assert!(!request.tags.contains_key("error"));
    assert!(request.duration.unwrap() >= 30_000, "{request:?}");
    assert_eq!(request.annotations[0].value, "fall_back to=visitor");
    assert_eq!(
        (inner.name.as_deref(), &inner.parent_id),
        (Some("get sessions"), &Some(request.id.clone()))
    );
}

#[tokio::test]
async fn a_service_in_the_same_process_has_the_request_kept_with_it() {
    let (pipeline, store) = start(all());
    let mut gateway = begin(&pipeline, "00", SystemTime::now());
    let (id, sent) = gateway.new_call();
    let sent = sent.into_iter().collect();
    let mut core = pipeline.service("core").deferred(&sent, &request(), SystemTime::now());
    core.finish(&request(), Some(500));
    gateway.finish_with_calls(&request(), Some(200), || [call(id, 0, Some(200), None)]);
    assert_eq!(exported(&pipeline, &store).await.len(), 3);
}

#[tokio::test]
async fn a_probe_has_ids_and_no_spans() {
    let (pipeline, store) = start(all());
    let probe = HttpRequest { unsampled: true, ..request() };
    let service = pipeline.service("gateway");
    let mut trace = service.deferred(&HeaderMap::new(), &probe, SystemTime::now());
    assert!(trace.handle().trace_id().is_some() && !trace.handle().is_recording());
    trace.finish(&probe, Some(500));
    pipeline.flush(Duration::from_secs(5)).await;
    assert_eq!(store.span_count(), 0);
}
