use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method};
use opentelemetry::trace::{SpanKind, Tracer, TracerProvider};

use super::super::memory::{MemoryLimits, MemoryStore};
use super::super::{
    DeferredRequest, HttpRequest, MAX_EVENTS, Pipeline, Service, Span, TraceSettings,
};
use super::*;

fn start(ratio: f64) -> (Pipeline, MemoryStore) {
    let store = MemoryStore::new(MemoryLimits::default());
    let settings = TraceSettings { trace_ratio: ratio, ..TraceSettings::default() };
    (Pipeline::start(&settings, Some(store.clone())).unwrap(), store)
}

fn asked() -> HttpRequest<'static> {
    HttpRequest::new(&Method::GET, Some("/a"))
}

fn request(service: &Service) -> DeferredRequest {
    service.deferred(&HeaderMap::new(), &asked(), SystemTime::now())
}

/// A span by code that uses only OpenTelemetry's API.
fn foreign(pipeline: &Pipeline, parent: &Context, kind: SpanKind) -> Context {
    let tracer = pipeline.parts.provider.tracer("foreign");
    let builder = tracer.span_builder("foreign").with_kind(kind);
    parent.with_span(builder.start_with_context(&tracer, parent))
}

#[tokio::test]
async fn a_failed_request_exports_the_spans_of_all_parts() {
    let (pipeline, store) = start(0.0);
    let mut request = request(&pipeline.service("core"));
    let trace = request.handle().trace_id().unwrap();
    let event = foreign(&pipeline, request.handle().context(), SpanKind::Producer);
    assert!(event.span().is_recording() && !event.span().span_context().is_sampled());
    event.span().end();
    request.finish(&asked(), Some(500));
    pipeline.flush(Duration::from_secs(5)).await;
    assert_eq!(store.trace(&trace).unwrap().len(), 2);
}

#[tokio::test]
async fn a_failed_event_exports_its_local_spans() {
    let (pipeline, store) = start(0.0);
    let _spans = pipeline.enter();
    let delivery = foreign(&pipeline, &pipeline.service("core").context(), SpanKind::Consumer);
    let within = {
        let _current = delivery.clone().attach();
        Span::current().child("apply")
    };
    assert!(within.is_recording());
    let trace = within.trace_id().unwrap();
    drop(within);
    delivery.span().set_status(Status::error("conflict"));
    delivery.span().end();
    pipeline.flush(Duration::from_secs(5)).await;
    let spans = store.trace(&trace).unwrap();
    assert_eq!(spans.len(), 2);
    let services = spans.iter().filter_map(|span| span.local_endpoint.clone()?.service_name);
    assert!(services.eq(["core", "core"]));
}

/// Spans of an event that waits for a store repeat every second.
#[tokio::test]
async fn repeated_outcomes_are_exported_only_when_they_change() {
    for (ratio, keep_failed) in [(1.0, true), (0.0, true), (1.0, false)] {
        let store = MemoryStore::new(MemoryLimits::default());
        let settings = TraceSettings {
            trace_ratio: ratio,
            trace_keep_failed: keep_failed,
            trace_slow_ms: 0,
            ..TraceSettings::default()
        };
        let pipeline = Pipeline::start(&settings, Some(store.clone())).unwrap();
        let tracer = pipeline.parts.provider.tracer("foreign");
        for says_something in [false, true] {
            let builder = tracer
                .span_builder("foreign")
                .with_kind(SpanKind::Consumer)
                .with_attributes([KeyValue::new(names::REPEAT, true)]);
            let parent = pipeline.service("recommendation").context();
            let delivery = parent.with_span(builder.start_with_context(&tracer, &parent));
            let trace = delivery.span().span_context().trace_id().to_string();
            if says_something {
                delivery.span().set_attribute(KeyValue::new(names::KEEP, true));
            } else {
                delivery.span().set_status(Status::error("unavailable"));
            }
            delivery.span().end();
            pipeline.flush(Duration::from_secs(5)).await;
            assert_eq!(
                store.trace(&trace).is_some(),
                says_something && (ratio > 0.0 || keep_failed),
                "{ratio} {keep_failed}"
            );
        }
    }
}

#[tokio::test]
async fn changes_to_an_ended_span_are_ignored() {
    for ratio in [1.0, 0.0] {
        let (pipeline, store) = start(ratio);
        let _spans = pipeline.enter();
        let mut request = request(&pipeline.service("core"));
        let trace = request.handle().trace_id().unwrap();
        let part = request.handle().child("part");
        let context = part.context().clone();
        context.span().set_attribute(KeyValue::new(names::OUTCOME, "applied"));
        drop(part);
        assert!(!context.span().is_recording());
        context.span().set_attribute(KeyValue::new(names::OUTCOME, "too late"));
        context.span().end();
        request.finish(&asked(), Some(503));
        pipeline.flush(Duration::from_secs(5)).await;
        let spans = store.trace(&trace).unwrap();
        assert_eq!(spans.len(), 2, "{ratio}");
        let outcomes = spans.iter().filter_map(|span| span.tags.get("tourin.outcome"));
        assert!(outcomes.eq(["applied"]), "{ratio}");
    }
}

#[tokio::test]
async fn buffered_spans_are_exported_when_the_pipeline_is_dropped() {
    for (ratio, exported) in [(1.0, 2), (0.0, 0)] {
        let (pipeline, store) = start(ratio);
        let spans = pipeline.enter();
        let mut request = request(&pipeline.service("core"));
        let trace = request.handle().trace_id().unwrap();
        drop(request.handle().child("part"));
        request.finish(&asked(), Some(200));
        let tail = Arc::downgrade(&pipeline.parts.tail.as_ref().unwrap().0);
        drop((request, spans, pipeline));
        assert_eq!(store.trace(&trace).map_or(0, |spans| spans.len()), exported);
        assert_eq!(tail.strong_count(), 0);
    }
}

#[tokio::test]
async fn a_stored_span_is_bounded() {
    let (pipeline, store) = start(1.0);
    let span = pipeline.service("core").work("import");
    let trace = span.trace_id().unwrap();
    let outcome = |word| {
        span.context().span().set_attribute(KeyValue::new(names::OUTCOME, word));
    };
    outcome("applied");
    for _ in 0..2 * MAX_EVENTS {
        span.annotate("again", &[]);
        span.set_error("conflict");
    }
    outcome("one too many");
    drop(span);
    pipeline.flush(Duration::from_secs(5)).await;
    let spans = store.trace(&trace).unwrap();
    assert_eq!(spans[0].annotations.len(), MAX_EVENTS as usize);
    assert_eq!(spans[0].tags["tourin.outcome"], "applied");
}

#[test]
fn without_a_destination_a_callers_sampled_trace_is_passed_on_and_not_recorded() {
    let pipeline = Pipeline::start(&TraceSettings::default(), None).unwrap();
    let mut headers = HeaderMap::new();
    let caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    headers.insert("traceparent", caller.parse().unwrap());
    let request = pipeline.service("core").deferred(&headers, &asked(), SystemTime::now());
    let span = request.handle();
    assert!(!span.is_recording());
    let sent = span.headers();
    let sent = sent[0].1.to_str().unwrap();
    assert!(sent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && sent.ends_with("-01"));
    assert!(!sent.contains("00f067aa0ba902b7"), "a span of its own: {sent}");
}
