//! Logs and traces.
//!
//! [`init`] starts both for the process, once: logs on standard error, and the pipeline of spans.
//! OpenTelemetry's SDK records the spans. Requests, events and named work begin by its API
//! ([`Service`], shared-events). The spans below them come from `tracing`, by
//! `tracing-opentelemetry`. The gateway's requests are built afterwards ([`DeferredRequest`]). An
//! ended span passes through [`tail`] to a batch of each destination ([`export`]).
//!
//! docs/decisions/0009-spans.md gives the reasons.

mod calls;
mod collector;
mod deferred;
mod export;
mod ids;
mod log;
pub mod memory;
pub mod names;
#[cfg(feature = "otlp")]
mod otlp;
mod privacy;
mod propagation;
mod sampler;
mod scope;
mod service;
mod settings;
mod span;
mod tail;
#[cfg(feature = "testing")]
pub mod testing;
mod zipkin;
mod zipkin_span;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanLimits};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use opentelemetry::SpanId;

pub use self::calls::{DbCall, HttpCall, HttpRequest, method_name};
use self::collector::Collector;
pub use self::deferred::{DeferredRequest, FinishedCall};
pub use self::export::ExportCounters;
use self::export::{Bounds, Destination};
pub use self::log::{log_filter, set_log_filter};
use self::memory::MemoryStore;
pub use self::propagation::{Propagation, Propagator, TRACE_HEADERS};
use self::service::Parts;
pub use self::service::Service;
pub use self::settings::{RouteRatio, TelemetrySettings, TraceSettings};
pub use self::span::{Span, current_trace_id, db_call};
use self::tail::{TailPolicy, TailProcessor};
use self::zipkin::{Receiver, ZipkinExporter};
pub use self::zipkin_span::{Annotation, Endpoint, ZipkinSpan};

/// The most attributes of a span.
const MAX_ATTRIBUTES: u32 = 32;
/// The most annotations of a span.
const MAX_EVENTS: u32 = 64;

static PIPELINE: OnceLock<Pipeline> = OnceLock::new();

/// The process's pipeline. Before [`init`] it creates ids and exports nothing.
fn pipeline() -> &'static Pipeline {
    static NONE: OnceLock<Pipeline> = OnceLock::new();
    PIPELINE.get().unwrap_or_else(|| {
        let parts = || Arc::new(Pipeline::assemble(&TraceSettings::default(), Vec::new(), 0.0));
        NONE.get_or_init(|| Pipeline { parts: parts(), destinations: Destinations::default() })
    })
}

/// Starts logs and traces for this process. A second call (tests start several services) changes
/// nothing.
///
/// # Errors
/// When a setting is invalid; the error says why.
pub fn init(settings: impl Into<TelemetrySettings>) -> Result<(), String> {
    init_with(settings, None)
}

/// [`init`], with a store that keeps this process's traces for its own viewer.
///
/// # Errors
/// Those of [`init`].
pub fn init_with(
    settings: impl Into<TelemetrySettings>,
    memory: Option<MemoryStore>,
) -> Result<(), String> {
    let settings = settings.into();
    if PIPELINE.get().is_some() {
        return Ok(());
    }
    let pipeline = Pipeline::start(&settings.traces, memory)?;
    let provider = &pipeline.parts.provider;
    log::init(&settings.log, provider.tracer("tourin"))?;
    opentelemetry::global::set_tracer_provider(provider.clone());
    opentelemetry::global::set_text_map_propagator(propagator(&settings.traces));
    // Another thread may have been first. Then this pipeline ends unused.
    PIPELINE.set(pipeline).ok();
    Ok(())
}

/// Sends the ended spans, for at most `limit`: the last act of a process.
pub async fn flush(limit: Duration) {
    pipeline().flush(limit).await;
}

/// The destinations and the sampling ratio of this process's traces, for its start-up message.
pub fn destinations() -> &'static Destinations {
    &pipeline().destinations
}

/// Counters of the process's pipeline.
pub fn stats() -> TraceStats {
    pipeline().stats()
}

/// The results of the export of spans, since the start.
#[derive(Debug, Clone)]
pub struct TraceStats {
    /// Each destination's name (`zipkin`, `otlp`, `memory`) and counters.
    pub destinations: Vec<(&'static str, Arc<ExportCounters>)>,
    /// Spans and traces that were not buffered because a bound was reached.
    pub not_kept_back: u64,
}

/// A pipeline of spans. The process uses the one of [`init`]; tests create their own.
#[derive(Debug)]
pub struct Pipeline {
    parts: Arc<Parts>,
    destinations: Destinations,
}

/// The destinations of traces.
#[derive(Debug, Default)]
pub struct Destinations {
    /// Each destination, in words and without credentials.
    pub endpoints: Vec<String>,
    /// The sampling ratio of traces that start here, from 0 to 1.
    pub ratio: f64,
}

impl fmt::Display for Destinations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.endpoints.as_slice() {
            [] => f.write_str("nowhere: neither --zipkin-url nor --otlp-url is given"),
            endpoints => write!(f, "to {}, ratio {}", endpoints.join(" and "), self.ratio),
        }
    }
}

impl Pipeline {
    /// Starts what `settings` ask for, and exports into `memory` if given.
    ///
    /// # Errors
    /// When a URL is invalid, or OTLP is requested but not built in.
    pub fn start(settings: &TraceSettings, memory: Option<MemoryStore>) -> Result<Self, String> {
        let timeout = Duration::from_millis(settings.trace_export_timeout_ms);
        let collector = |setting: &str, url: &Option<String>, path| {
            let url = given(url);
            url.map(|url| Collector::new(setting, url, path, timeout)).transpose()
        };
        let zipkin = collector("zipkin-url", &settings.zipkin_url, "/api/v2/spans")?;
        let otlp = collector("otlp-url", &settings.otlp_url, "/v1/traces")?;
        if otlp.is_some() && cfg!(not(feature = "otlp")) {
            return Err(
                "'--otlp-url' needs a program that was built with the feature 'otlp'".into()
            );
        }
        let bounds = Bounds {
            queue_spans: settings.trace_queue_spans as usize,
            batch_spans: settings.trace_batch_spans as usize,
            flush_interval: Duration::from_millis(settings.trace_flush_interval_ms),
        };
        let (mut to, mut endpoints) = (Vec::new(), Vec::new());
        if let Some(collector) = zipkin {
            endpoints.push(format!("zipkin at {}", collector.endpoint()));
            let exporter = ZipkinExporter::new(Receiver::Collector(collector))?;
            to.push(Destination::start("zipkin", exporter, bounds));
        }
        #[cfg(feature = "otlp")]
        if let Some(collector) = otlp {
            endpoints.push(format!("otlp at {}", collector.endpoint()));
            to.push(Destination::start("otlp", otlp::OtlpExporter(collector), bounds));
        }
        if let Some(store) = memory {
            endpoints.push("this process's memory".to_owned());
            let exporter = ZipkinExporter::new(Receiver::Memory(store))?;
            // A store in this process can be written to at once.
            let flush_interval = bounds.flush_interval.min(MEMORY_FLUSH_INTERVAL);
            to.push(Destination::start("memory", exporter, Bounds { flush_interval, ..bounds }));
        }
        let ratio = if to.is_empty() { 0.0 } else { settings.trace_ratio };
        let parts = Arc::new(Self::assemble(settings, to, ratio));
        Ok(Self { parts, destinations: Destinations { endpoints, ratio } })
    }

    fn assemble(settings: &TraceSettings, to: Vec<Destination>, ratio: f64) -> Parts {
        let slow = settings.trace_slow_ms;
        let keep = TailPolicy {
            failed: settings.trace_keep_failed,
            slower_than: (slow > 0).then(|| Duration::from_millis(slow)),
        };
        let exports = !to.is_empty();
        let sampler = sampler::Sampler {
            ratio,
            routes: if exports { settings.trace_route.clone() } else { Vec::new() },
            record_unsampled: exports && keep.anything(),
        };
        let limits = SpanLimits {
            max_attributes_per_span: MAX_ATTRIBUTES,
            max_events_per_span: MAX_EVENTS,
            ..SpanLimits::default()
        };
        let tail = exports.then(|| TailProcessor::new(to, keep));
        let builder = SdkTracerProvider::builder()
            .with_resource(Resource::builder_empty().build())
            .with_sampler(sampler.clone())
            .with_span_limits(limits);
        let provider = match &tail {
            Some(tail) => builder.with_span_processor(tail.clone()).build(),
            None => builder.build(),
        };
        Parts { provider, sampler, tail, propagator: Arc::new(propagator(settings)) }
    }

    /// A service that uses this pipeline.
    pub fn service(&self, name: &'static str) -> Service {
        Service::with(Arc::clone(&self.parts), name, None)
    }

    /// OpenTelemetry's tracer provider of it, for code that uses only that API.
    pub fn provider(&self) -> &SdkTracerProvider {
        &self.parts.provider
    }

    /// Sends `tracing`'s spans on this thread to this pipeline until the guard is dropped, for a
    /// pipeline that is not the process's.
    #[must_use = "it holds as long as the guard lives"]
    pub fn enter(&self) -> tracing::subscriber::DefaultGuard {
        let layer = log::span_layer(self.parts.provider.tracer("tourin"));
        tracing_subscriber::registry().with(layer).set_default()
    }

    /// Sends the ended spans, for at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let provider = self.parts.provider.clone();
        let (done, flushed) = tokio::sync::oneshot::channel();
        // Not a task of the runtime, which would wait for it on shutdown. The SDK stops after 5 s.
        std::thread::spawn(move || done.send(provider.force_flush().is_ok()));
        if !matches!(tokio::time::timeout(limit, flushed).await, Ok(Ok(_))) {
            tracing::warn!("the last spans were not exported in time");
        }
    }

    /// The results of the export.
    pub fn stats(&self) -> TraceStats {
        let tail = self.parts.tail.as_ref();
        let destinations = tail.map_or(&[][..], TailProcessor::destinations);
        TraceStats {
            destinations: destinations.iter().map(|to| (to.name, to.counters.clone())).collect(),
            not_kept_back: tail.map_or(0, TailProcessor::not_buffered),
        }
    }
}

/// How long a span may wait for a store in this process.
const MEMORY_FLUSH_INTERVAL: Duration = Duration::from_millis(20);

fn propagator(settings: &TraceSettings) -> Propagator {
    Propagator::new(&settings.trace_accept, &settings.trace_propagation)
}

/// A setting that is present and not blank.
fn given(setting: &Option<String>) -> Option<&str> {
    setting.as_deref().map(str::trim).filter(|value| !value.is_empty())
}
