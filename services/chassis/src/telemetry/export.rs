//! Export of spans. Each destination has a bounded queue and a batch processor of the SDK, with its
//! own thread. A span that finds the queue full is dropped and counted: no request waits for a
//! collector.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter, SpanProcessor as _,
};

use super::privacy;

/// The outcomes of spans for one destination, since the start.
#[derive(Debug, Default)]
pub struct ExportCounters {
    /// Accepted by the destination.
    pub exported: AtomicU64,
    /// Dropped because the queue was full: the destination is slow or dead.
    pub queue_full: AtomicU64,
    /// Dropped because the destination refused them, or failed three times.
    pub failed: AtomicU64,
}

impl ExportCounters {
    /// Dropped for any reason.
    pub fn dropped(&self) -> u64 {
        self.queue_full.load(Ordering::Relaxed) + self.failed.load(Ordering::Relaxed)
    }
}

/// The bounds of one destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub queue_spans: usize,
    pub batch_spans: usize,
    pub flush_interval: Duration,
}

/// A destination.
#[derive(Debug)]
pub(super) struct Destination {
    pub name: &'static str,
    pub counters: Arc<ExportCounters>,
    /// Spans in the queue. The SDK's processor has the same bound, but does not expose its count of
    /// dropped spans.
    waiting: Arc<AtomicUsize>,
    limit: usize,
    batches: BatchSpanProcessor,
}

impl Destination {
    /// Starts the thread that exports by `exporter`.
    pub fn start(
        name: &'static str,
        exporter: impl SpanExporter + 'static,
        bounds: Bounds,
    ) -> Self {
        let (counters, waiting) = (Arc::default(), Arc::default());
        let exporter = CountingExporter {
            exporter,
            name,
            counters: Arc::clone(&counters),
            waiting: Arc::clone(&waiting),
            reachable: AtomicBool::new(true),
        };
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(bounds.queue_spans)
            .with_max_export_batch_size(bounds.batch_spans.min(bounds.queue_spans))
            .with_scheduled_delay(bounds.flush_interval)
            .build();
        let batches = BatchSpanProcessor::new(exporter, config);
        Self { name, counters, waiting, limit: bounds.queue_spans, batches }
    }

    /// Queues the span if there is room; never waits.
    pub fn offer(&self, span: SpanData) {
        let one_more = |waiting| (waiting < self.limit).then_some(waiting + 1);
        if self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok() {
            self.batches.on_end(span);
        } else {
            self.counters.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until the spans in the queue are sent or dropped.
    pub fn flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    pub fn shutdown(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }
}

/// An exporter that sends only what may leave the process, and counts the results.
#[derive(Debug)]
struct CountingExporter<E> {
    exporter: E,
    name: &'static str,
    counters: Arc<ExportCounters>,
    waiting: Arc<AtomicUsize>,
    reachable: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for CountingExporter<E> {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        batch.iter_mut().for_each(privacy::clean_span);
        let result = self.exporter.export(batch).await;
        let counter = if result.is_ok() { &self.counters.exported } else { &self.counters.failed };
        counter.fetch_add(count as u64, Ordering::Relaxed);
        // Once for an outage, not for each batch.
        let was_reachable = self.reachable.swap(result.is_ok(), Ordering::Relaxed);
        match &result {
            Ok(()) if !was_reachable => {
                tracing::info!(to = self.name, "the collector accepts spans again");
            }
            Err(error) if was_reachable => tracing::warn!(
                to = self.name, %error,
                "the collector does not accept spans; they are dropped, see tourin_trace_spans_dropped_total"
            ),
            _ => {}
        }
        result
    }
}
