//! The traces that this process keeps in memory, for the all-in-one, which has no collector.
//! Bounded, and lost with the process. [`crate::trace_viewer`] shows them.

mod links;
mod query;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::links::Link;
pub use self::query::TraceQuery;
use super::zipkin_span::ZipkinSpan;

/// The bounds of a [`MemoryStore`]. The oldest traces are dropped first.
#[derive(Debug, Clone, Copy)]
pub struct MemoryLimits {
    /// The most spans. Default 20,000.
    pub spans: usize,
    /// The most bytes, estimated from a span's text and a flat rate for the rest. Default 32 MiB.
    pub bytes: usize,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self { spans: 20_000, bytes: 32 << 20 }
    }
}

/// The most spans of one trace; further ones are dropped.
const MAX_SPANS_PER_TRACE: usize = 2_000;

/// The last traces of this process. Clones are the same store.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    limits: MemoryLimits,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    traces: HashMap<String, Trace>,
    /// Trace ids by the arrival of their first span.
    order: VecDeque<String>,
    spans: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Trace {
    spans: Vec<ZipkinSpan>,
    bytes: usize,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(limits: MemoryLimits) -> Self {
        Self { limits, kept: Arc::default() }
    }

    /// Adds spans, and drops the oldest traces while there are too many.
    pub fn insert(&self, spans: Vec<ZipkinSpan>) {
        let mut kept = self.lock();
        for span in spans {
            kept.add(span);
        }
        while kept.spans > self.limits.spans || kept.bytes > self.limits.bytes {
            if !kept.drop_oldest() {
                break;
            }
        }
    }

    /// The number of spans.
    pub fn span_count(&self) -> usize {
        self.lock().spans
    }

    /// The spans of one trace; `None` when it is not kept. A 64-bit id finds its 128-bit form.
    pub fn trace(&self, id: &str) -> Option<Vec<ZipkinSpan>> {
        let id = format!("{:0>32}", id.to_lowercase());
        self.lock().traces.get(&id).map(|trace| trace.spans.clone())
    }

    /// Maps each trace under the lock: `each` should be quick.
    fn map_traces<T>(&self, mut each: impl FnMut(&[ZipkinSpan]) -> Option<T>) -> Vec<T> {
        let kept = self.lock();
        // The latest first.
        let latest = kept.order.iter().rev().filter_map(|id| kept.traces.get(id));
        latest.filter_map(|trace| each(&trace.spans)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, span: ZipkinSpan) {
        let id = format!("{:0>32}", span.trace_id);
        let bytes = weight(&span);
        let trace = self.traces.entry(id.clone()).or_insert_with(|| {
            self.order.push_back(id);
            Trace::default()
        });
        if trace.spans.len() < MAX_SPANS_PER_TRACE {
            trace.spans.push(ZipkinSpan { trace_id: format!("{:0>32}", span.trace_id), ..span });
            trace.bytes += bytes;
            self.spans += 1;
            self.bytes += bytes;
        }
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(id) = self.order.pop_front() else { return false };
        if let Some(trace) = self.traces.remove(&id) {
            self.spans -= trace.spans.len();
            self.bytes -= trace.bytes;
        }
        true
    }
}

/// The approximate size of a span: its texts, and the structures around them.
fn weight(span: &ZipkinSpan) -> usize {
    let tags: usize = span.tags.iter().map(|(name, value)| name.len() + value.len() + 96).sum();
    let notes: usize = span.annotations.iter().map(|note| note.value.len() + 48).sum();
    512 + tags + notes + span.name.as_ref().map_or(0, String::len)
}
