//! Collects the spans of a test process. Each test looks for those of its own traces.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]
#![allow(dead_code, reason = "no test target needs all of it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use opentelemetry::trace::{SpanId, SpanKind, Status, TraceContextExt as _, TraceId, Tracer as _};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanProcessor};
use tourin_testbed::eventually;

#[derive(Clone, Debug, Default)]
pub struct Spans(Arc<Mutex<Vec<SpanData>>>);

impl SpanProcessor for Spans {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.lock().unwrap().push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// All spans of the process from now on; the same collection for every test.
pub fn collect() -> Spans {
    static SPANS: OnceLock<Spans> = OnceLock::new();
    let start = || {
        let spans = Spans::default();
        let provider = SdkTracerProvider::builder().with_span_processor(spans.clone()).build();
        global::set_tracer_provider(provider);
        global::set_text_map_propagator(TraceContextPropagator::new());
        spans
    };
    SPANS.get_or_init(start).clone()
}

/// A request, as the parent of a test's work.
pub fn request() -> Context {
    let tracer = global::tracer("test");
    let builder = tracer.span_builder("request").with_kind(SpanKind::Server);
    Context::new().with_span(builder.start_with_context(&tracer, &Context::new()))
}

pub fn trace_of(context: &Context) -> TraceId {
    context.span().span_context().trace_id()
}

/// A span, for assertions.
#[derive(Clone, Debug)]
pub struct Seen {
    pub id: SpanId,
    pub parent: SpanId,
    pub kind: SpanKind,
    pub name: String,
    pub took: Duration,
    pub tags: BTreeMap<String, String>,
    /// Its annotations with their attributes.
    pub events: Vec<(String, BTreeMap<String, String>)>,
    pub failed: bool,
}

impl Seen {
    pub fn tag(&self, name: &str) -> &str {
        self.tags.get(name).map_or("", String::as_str)
    }

    pub fn event(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.events.iter().find(|(event, _)| event == name).map(|(_, facts)| facts)
    }
}

fn facts<'a>(pairs: impl IntoIterator<Item = &'a KeyValue>) -> BTreeMap<String, String> {
    pairs.into_iter().map(|pair| (pair.key.to_string(), pair.value.to_string())).collect()
}

impl Spans {
    /// The ended spans of a trace, in the order of their start.
    pub fn of(&self, trace: TraceId) -> Vec<Seen> {
        let spans = self.0.lock().unwrap();
        let mut spans: Vec<_> =
            spans.iter().filter(|span| span.span_context.trace_id() == trace).collect();
        spans.sort_by_key(|span| span.start_time);
        let seen = |span: &&SpanData| Seen {
            id: span.span_context.span_id(),
            parent: span.parent_span_id,
            kind: span.span_kind.clone(),
            name: span.name.to_string(),
            took: span.end_time.duration_since(span.start_time).unwrap_or_default(),
            tags: facts(&span.attributes),
            events: span
                .events
                .iter()
                .map(|event| (event.name.to_string(), facts(&event.attributes)))
                .collect(),
            failed: matches!(span.status, Status::Error { .. }),
        };
        spans.iter().map(seen).collect()
    }

    /// The spans of a kind, once there are as many as expected.
    pub async fn wait_for(&self, trace: TraceId, kind: SpanKind, count: usize) -> Vec<Seen> {
        eventually(&format!("{count} spans of {kind:?}"), async || {
            let (found, others): (Vec<_>, Vec<_>) =
                self.of(trace).into_iter().partition(|span| span.kind == kind);
            if found.len() >= count { Ok(found) } else { Err((found, others)) }
        })
        .await
    }
}
