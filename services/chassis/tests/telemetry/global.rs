//! Code that knows OpenTelemetry's API and not the chassis, as shared-events does.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use opentelemetry::context::FutureExt;
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{SpanKind, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};
use tourin_chassis::config::{LogFormat, LogSettings};
use tourin_chassis::telemetry::memory::{MemoryLimits, MemoryStore};
use tourin_chassis::telemetry::{self, Service, TelemetrySettings};
use tracing::Instrument as _;

use crate::readers::all;

struct Headers<'a>(&'a mut BTreeMap<String, String>);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// A hop of an event, as a relay or a consumer records it.
async fn hop(headers: &mut BTreeMap<String, String>, kind: SpanKind, name: &'static str) {
    let parent = global::get_text_map_propagator(|codec| codec.extract(&Headers(headers)));
    let tracer = global::tracer("shared-events");
    let span = tracer
        .span_builder(name)
        .with_kind(kind)
        .with_attributes([
            KeyValue::new(telemetry::names::MESSAGING_SYSTEM, "rabbitmq"),
            KeyValue::new("body", "never leaves"),
        ])
        .start_with_context(&tracer, &parent);
    let context = parent.with_span(span);
    global::get_text_map_propagator(|codec| codec.inject_context(&context, &mut Headers(headers)));
    async { tokio::task::yield_now().await }.with_context(context).await;
}

/// A span of ours and one of a library, each with a line of the log.
async fn within_it() {
    let ours = tracing::info_span!(target: "tourin_core::app", "step", spot = 7);
    async {
        tracing::warn!("no annotation");
        let library = tracing::info_span!(target: "sqlx::query", "theirs");
        async { tracing::error!("no failure") }.instrument(library).await;
    }
    .instrument(ours)
    .await;
}

#[tokio::test]
async fn spans_by_opentelemetrys_own_api_are_the_services() {
    let store = MemoryStore::new(MemoryLimits::default());
    let log = LogSettings { log_format: LogFormat::Json, log: "warn".to_owned() };
    let settings = TelemetrySettings { log, traces: all() };
    telemetry::init_with(settings, Some(store.clone())).unwrap();
    let (core, recommendation) = (Service::new("core"), Service::new("recommendation"));

    let mut headers = BTreeMap::new();
    let request = core.work("request");
    request.inject_event(&mut headers);
    let trace = request.trace_id().unwrap();
    // The log's filter does not affect the trace.
    request.run(within_it()).await;
    drop(request);
    core.run(hop(&mut headers, SpanKind::Producer, "send")).await;
    recommendation.run(hop(&mut headers, SpanKind::Consumer, "process")).await;
    telemetry::flush(Duration::from_secs(5)).await;

    assert!(!Context::current().has_active_span());
    let spans = store.trace(&trace).unwrap();
    let by_name: HashMap<_, _> =
        spans.iter().map(|span| (span.name.clone().unwrap(), span)).collect();
    let service = |name: &str| by_name[name].local_endpoint.clone().unwrap().service_name.unwrap();
    assert_eq!((service("send"), service("process")), ("core".into(), "recommendation".into()));
    assert_eq!(by_name["send"].parent_id.as_ref(), Some(&by_name["request"].id));
    assert_eq!(by_name["process"].parent_id.as_ref(), Some(&by_name["send"].id));
    let step = by_name["step"];
    assert_eq!(step.parent_id.as_ref(), Some(&by_name["request"].id));
    assert_eq!(service("step"), "core");
    assert!(step.annotations.is_empty() && step.tags.is_empty(), "{step:?}");
    assert_eq!(by_name.len(), 4, "{by_name:?}");
    let remote = by_name["process"].remote_endpoint.clone().unwrap();
    assert_eq!(remote.service_name.as_deref(), Some("rabbitmq"));
    assert!(!by_name["send"].tags.contains_key("body"));
}
