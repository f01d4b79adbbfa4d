//! Logs and traces.
//!
//! [`init`] starts both for the process, once: logs on standard error, and the pipeline that spans
//! go through when they end (`processor`, `export`). Spans are made by [`Service`] and [`Span`] and
//! recorded by `record`; they are spans to OpenTelemetry's API, so that code which knows only that
//! (shared-events) takes part through `opentelemetry::global` and the current `Context`. What such
//! code starts is recorded by `opentelemetry_sdk`.
//!
//! What a span costs, and why the `tracing` bridge is not used for spans, is in
//! docs/decisions/0009-zipkin-reporter.md.

mod calls;
pub mod codec;
mod export;
mod finished;
mod log;
pub mod memory;
pub mod names;
mod privacy;
mod processor;
mod record;
mod sampler;
mod settings;
mod span;
mod subject;
#[cfg(feature = "testing")]
pub mod testing;
mod within;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry_sdk::trace::{SdkTracerProvider, SpanLimits};

pub use self::calls::{DbCall, HttpCall, HttpRequest, Message, Text, method_name};
pub use self::codec::{Codec, Propagation, TRACE_HEADERS};
use self::export::Collector;
pub use self::export::ExportCounters;
pub use self::export::zipkin::{Annotation, Endpoint, ZipkinSpan};
pub use self::log::{log_filter, set_log_filter};
use self::memory::MemoryStore;
pub use self::settings::{DEFAULT_RATIO, RouteRatio, TelemetrySettings, TraceSettings};
use self::span::Origin;
pub use self::span::{Service, Span, current_trace_id};
pub use self::within::{db_call, part};

static PIPELINE: OnceLock<Pipeline> = OnceLock::new();

/// The process's pipeline; before [`init`], one that gives ids and exports nothing.
fn pipeline() -> &'static Pipeline {
    static NONE: OnceLock<Pipeline> = OnceLock::new();
    PIPELINE.get().unwrap_or_else(|| {
        NONE.get_or_init(|| Pipeline::assemble(&TraceSettings::default(), Vec::new(), 0.0))
    })
}

/// Starts logs and traces for this process. A second call (tests start several services) changes
/// nothing.
///
/// # Errors
/// When a setting is not valid, with what is wrong in it; when the export thread cannot be started.
pub fn init(settings: impl Into<TelemetrySettings>) -> Result<(), String> {
    init_with(settings, None)
}

/// [`init`], with a store in which this process keeps its traces to show them itself.
///
/// # Errors
/// Those of [`init`].
pub fn init_with(
    settings: impl Into<TelemetrySettings>,
    memory: Option<MemoryStore>,
) -> Result<(), String> {
    let settings = settings.into();
    log::init(&settings.log)?;
    if PIPELINE.get().is_some() {
        return Ok(());
    }
    let pipeline = Pipeline::start(&settings.traces, memory)?;
    opentelemetry::global::set_tracer_provider(pipeline.provider.clone());
    opentelemetry::global::set_text_map_propagator((*pipeline.codec).clone());
    // Another thread may have been first; then this pipeline ends unused.
    PIPELINE.set(pipeline).ok();
    Ok(())
}

/// Sends what has ended so far, for `limit` at most: a process's last act.
pub async fn flush(limit: Duration) {
    pipeline().flush(limit).await;
}

/// Where this process's traces go and which part of them, for its start to say.
pub fn destinations() -> &'static Destinations {
    &pipeline().destinations
}

/// Counters of the process's pipeline.
pub fn stats() -> TraceStats {
    pipeline().stats()
}

/// How the export of spans is going, since the start.
#[derive(Debug, Clone)]
pub struct TraceStats {
    /// Each destination's name (`zipkin`, `otlp`, `memory`) and counters.
    pub destinations: Vec<(&'static str, Arc<ExportCounters>)>,
    /// Spans and traces not kept back for a possible failure because their bound was reached.
    pub not_kept_back: u64,
}

/// The way of spans through a process. [`init`] makes the one that the process uses; tests make
/// their own.
#[derive(Debug)]
pub struct Pipeline {
    /// For code that knows OpenTelemetry's API alone.
    provider: SdkTracerProvider,
    recorder: Arc<record::Recorder>,
    codec: Arc<Codec>,
    outlets: Vec<export::Outlet>,
    not_kept_back: Arc<AtomicU64>,
    destinations: Destinations,
}

/// Where traces go.
#[derive(Debug, Default)]
pub struct Destinations {
    /// Each place, in words and without credentials.
    pub places: Vec<String>,
    /// The part of the traces that start here which is sampled, from 0 to 1.
    pub ratio: f64,
}

impl fmt::Display for Destinations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.places.as_slice() {
            [] => f.write_str("nowhere: neither --zipkin-url nor --otlp-url is given"),
            places => write!(f, "to {}, ratio {}", places.join(" and "), self.ratio),
        }
    }
}

impl Pipeline {
    /// Starts what `settings` ask for, and export into `memory` if given.
    ///
    /// # Errors
    /// When a URL is not one, or the export thread cannot be started.
    pub fn start(settings: &TraceSettings, memory: Option<MemoryStore>) -> Result<Self, String> {
        let timeout = Duration::from_millis(settings.trace_export_timeout_ms);
        let mut sinks = Vec::new();
        if let Some(url) = given(&settings.zipkin_url) {
            let collector = Collector::new("zipkin-url", url, "/api/v2/spans", timeout)?;
            sinks.push(export::Sink::Zipkin(collector));
        }
        if let Some(url) = given(&settings.otlp_url) {
            let collector = Collector::new("otlp-url", url, "/v1/traces", timeout)?;
            sinks.push(export::Sink::Otlp(collector));
        }
        let ratio = match (sinks.is_empty(), &memory) {
            (true, None) => 0.0,
            _ => settings.trace_ratio.unwrap_or(DEFAULT_RATIO),
        };
        sinks.extend(memory.map(export::Sink::Memory));
        let places = sinks.iter().map(export::Sink::place).collect();
        let bounds = export::Bounds {
            queue_spans: settings.trace_queue_spans as usize,
            batch_spans: settings.trace_batch_spans as usize,
            flush_interval: Duration::from_millis(settings.trace_flush_interval_ms),
        };
        let outlets = export::start(sinks, bounds)
            .map_err(|error| format!("cannot start the export of traces: {error}"))?;
        let pipeline = Self::assemble(settings, outlets, ratio);
        Ok(Self { destinations: Destinations { places, ratio }, ..pipeline })
    }

    fn assemble(settings: &TraceSettings, outlets: Vec<export::Outlet>, ratio: f64) -> Self {
        let slow = settings.trace_slow_ms;
        let keep = processor::Keep {
            failed: settings.trace_keep_failed,
            slower_than: (slow > 0).then(|| Duration::from_millis(slow)),
        };
        let exports = !outlets.is_empty();
        let sampler = sampler::Sampler {
            ratio,
            routes: if exports { settings.trace_route.clone() } else { Vec::new() },
            record_unsampled: exports && keep.anything(),
        };
        let not_kept_back = Arc::new(AtomicU64::new(0));
        let limits = SpanLimits {
            max_attributes_per_span: record::MAX_ATTRIBUTES as u32,
            max_events_per_span: record::MAX_EVENTS as u32,
            ..SpanLimits::default()
        };
        let builder = SdkTracerProvider::builder()
            .with_resource(opentelemetry_sdk::Resource::builder_empty().build())
            .with_sampler(sampler.clone())
            .with_span_limits(limits);
        // Without a destination a caller's sampled trace is passed on and not recorded.
        let processor = exports.then(|| {
            Arc::new(processor::Processor::new(outlets.clone(), keep, not_kept_back.clone()))
        });
        let provider = match &processor {
            Some(processor) => {
                builder.with_span_processor(processor::ForSdk(processor.clone())).build()
            }
            None => builder.build(),
        };
        let recorder = Arc::new(record::Recorder::new(sampler, processor));
        let codec = Arc::new(Codec::new(&settings.trace_accept, &settings.trace_propagation));
        Self {
            provider,
            recorder,
            codec,
            outlets,
            not_kept_back,
            destinations: Destinations::default(),
        }
    }

    /// A service whose spans go this way.
    pub fn service(&self, name: &'static str) -> Service {
        Service::of(Origin {
            service: name,
            local: None,
            recorder: self.recorder.clone(),
            codec: self.codec.clone(),
        })
    }

    /// Sends what has ended so far, for `limit` at most.
    pub async fn flush(&self, limit: Duration) {
        let all = async {
            for outlet in &self.outlets {
                outlet.flush().await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("the last spans were not taken in time");
        }
    }

    /// How the export is going.
    pub fn stats(&self) -> TraceStats {
        TraceStats {
            destinations: self
                .outlets
                .iter()
                .map(|outlet| (outlet.name, outlet.counters.clone()))
                .collect(),
            not_kept_back: self.not_kept_back.load(Ordering::Relaxed),
        }
    }
}

/// A setting that is there and not blank.
fn given(setting: &Option<String>) -> Option<&str> {
    setting.as_deref().map(str::trim).filter(|value| !value.is_empty())
}
