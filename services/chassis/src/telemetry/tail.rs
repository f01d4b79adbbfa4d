//! Tail sampling: an ended span is queued for export, buffered, or dropped.
//!
//! A sampled span goes to the queues at once. The spans of an unsampled request are buffered until
//! this process's part of its trace ends. If that part failed or was slow they are exported, else
//! dropped. Each process decides for its own part: a process whose part succeeded exports nothing,
//! so such a trace can begin with a span whose parent Zipkin does not have.
//!
//! A span that starts with [`names::REPEAT`] repeats earlier ones, unless it has [`names::KEEP`]
//! before it ends. Such a part is buffered whether its trace is sampled or not, and dropped even
//! when it failed. When it overlaps in time with another part of its trace that is kept, calls of
//! its own may be exported without it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::trace::{Span as _, SpanId, Status, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};

use super::export::Destination;
use super::names;
use super::scope::Scope;

const SHARDS: usize = 64;
/// The most buffered unsampled traces per shard. With the next bound it limits memory, and the
/// number of ids to compare. Further traces are dropped, whatever their outcome.
const MAX_TRACES_PER_SHARD: usize = 128;
/// The most buffered spans of one trace, besides the request's own.
const MAX_SPANS_PER_TRACE: usize = 128;

/// When an unsampled request's spans are exported.
#[derive(Debug, Clone, Copy)]
pub(super) struct TailPolicy {
    pub failed: bool,
    /// `None` is never.
    pub slower_than: Option<Duration>,
}

impl TailPolicy {
    pub fn anything(self) -> bool {
        self.failed || self.slower_than.is_some()
    }

    /// The decision at the end of an unsampled request, or of another part's first span.
    pub fn outcome(self, failed: bool, took: Duration) -> Verdict {
        if self.failed && failed {
            Verdict::Keep(Reason::Failed)
        } else if self.slower_than.is_some_and(|limit| took >= limit) {
            Verdict::Keep(Reason::Slow)
        } else {
            Verdict::AsItsPart
        }
    }

    fn verdict(self, span: &SpanData) -> Verdict {
        let is_marked = |name| span.attributes.iter().any(|pair| pair.key.as_str() == name);
        if is_marked(names::KEEP) {
            return Verdict::Keep(Reason::Wanted);
        }
        if is_marked(names::REPEAT) {
            return Verdict::SaysNothing;
        }
        // Within a request, only the request's own span decides.
        if !is_entry(span) {
            return Verdict::AsItsPart;
        }
        let took = span.end_time.duration_since(span.start_time).unwrap_or_default();
        self.outcome(matches!(span.status, Status::Error { .. }), took)
    }
}

/// Whether a span is the root, or its parent is in another process.
fn is_entry(span: &SpanData) -> bool {
    span.parent_span_id == SpanId::INVALID || span.parent_span_is_remote
}

/// The decision about an unsampled span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It follows its part of the trace.
    AsItsPart,
    /// It repeats earlier spans: neither it nor any span below it is exported.
    SaysNothing,
    /// It is exported, and its part with it.
    Keep(Reason),
}

/// Why a span is exported although it was not sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// It is marked [`names::KEEP`], which counts even after the end of its part.
    Wanted,
    Failed,
    Slow,
}

impl Verdict {
    /// The tag with the reason, for a span that is exported for its own sake.
    pub fn tag(self) -> Option<KeyValue> {
        let reason = match self {
            Self::Keep(Reason::Wanted) => "kept",
            Self::Keep(Reason::Failed) => "failed",
            Self::Keep(Reason::Slow) => "slow",
            Self::AsItsPart | Self::SaysNothing => return None,
        };
        Some(KeyValue::new(names::KEPT_FOR, reason))
    }
}

/// An unsampled span that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub trace: TraceId,
    pub id: SpanId,
    pub is_entry: bool,
    pub verdict: Verdict,
}

/// This process's part of an unsampled trace.
#[derive(Debug)]
struct Part {
    trace: TraceId,
    /// Running spans here whose parent is elsewhere. More than one where several services share a
    /// process.
    entries: u32,
    kept: bool,
    spans: Vec<SpanData>,
}

impl Part {
    /// Drops the spans below a span.
    fn drop_below(&mut self, span: SpanId) {
        let mut gone = vec![span];
        // A child ends before its parent.
        for at in (0..self.spans.len()).rev() {
            if gone.contains(&self.spans[at].parent_span_id) {
                gone.push(self.spans.remove(at).span_context.span_id());
            }
        }
    }
}

/// The span processor before the batches. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct TailProcessor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    destinations: Vec<Destination>,
    keep: TailPolicy,
    /// Lists, not maps: a shard has few traces at once, and clients choose their ids.
    shards: [Mutex<Vec<Part>>; SHARDS],
    not_buffered: AtomicU64,
}

impl TailProcessor {
    pub fn new(destinations: Vec<Destination>, keep: TailPolicy) -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self(Arc::new(Inner { destinations, keep, shards, not_buffered: AtomicU64::new(0) }))
    }

    pub fn destinations(&self) -> &[Destination] {
        &self.0.destinations
    }

    pub fn keep(&self) -> TailPolicy {
        self.0.keep
    }

    /// Spans and traces that were not buffered because a bound was reached.
    pub fn not_buffered(&self) -> u64 {
        self.0.not_buffered.load(Ordering::Relaxed)
    }

    fn shard(&self, trace: TraceId) -> MutexGuard<'_, Vec<Part>> {
        let shard = &self.0.shards[usize::from(trace.to_bytes()[15]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a span for each destination.
    pub fn queue(&self, span: SpanData) {
        let Some((last, others)) = self.0.destinations.split_last() else { return };
        for destination in others {
            destination.offer(span.clone());
        }
        last.offer(span);
    }

    /// Starts this process's part of an unsampled trace, or another service's part in this process.
    pub fn enter(&self, trace: TraceId) {
        let mut shard = self.shard(trace);
        if let Some(part) = shard.iter_mut().find(|part| part.trace == trace) {
            part.entries += 1;
        } else if shard.len() < MAX_TRACES_PER_SHARD {
            shard.push(Part { trace, entries: 1, kept: false, spans: Vec::new() });
        } else {
            self.0.not_buffered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Buffers or drops an ended unsampled span, or queues it with all spans buffered for it.
    /// `spans` returns it, after the spans that were made with it; it does not run if they are
    /// dropped.
    pub fn settle<S>(&self, ended: Ended, spans: impl FnOnce() -> S)
    where
        S: IntoIterator<Item = SpanData>,
    {
        let mut shard = self.shard(ended.trace);
        let Some(at) = shard.iter().position(|part| part.trace == ended.trace) else {
            drop(shard);
            // It outlived the request that started it, or exceeded the bound.
            if ended.verdict == Verdict::Keep(Reason::Wanted) {
                spans().into_iter().for_each(|span| self.queue(span));
            }
            return;
        };
        let part = &mut shard[at];
        part.entries = part.entries.saturating_sub(u32::from(ended.is_entry));
        let is_over = part.entries == 0;
        match ended.verdict {
            Verdict::Keep(_) => part.kept = true,
            // Another entry of the trace may be kept.
            Verdict::SaysNothing => part.drop_below(ended.id),
            Verdict::AsItsPart => {}
        }
        let is_dropped = ended.verdict == Verdict::SaysNothing || (is_over && !part.kept);
        let mut out = Vec::new();
        if !is_dropped && part.kept {
            // The request itself always has room: without it its children would have no parent.
            out = std::mem::take(&mut part.spans);
            out.extend(spans());
        } else if !is_dropped {
            for span in spans() {
                if part.spans.len() < MAX_SPANS_PER_TRACE {
                    part.spans.push(span);
                } else {
                    self.0.not_buffered.fetch_add(1, Ordering::Relaxed);
                }
            }
        } else if part.kept {
            out = std::mem::take(&mut part.spans);
        }
        let over = is_over.then(|| shard.swap_remove(at));
        // Frees a dropped part outside the shard's lock.
        drop(shard);
        drop(over);
        out.into_iter().for_each(|span| self.queue(span));
    }
}

impl SpanProcessor for TailProcessor {
    fn on_start(&self, span: &mut Span, parent: &Context) {
        if let Some(scope) = Scope::of(parent) {
            scope.attributes().for_each(|attribute| span.set_attribute(attribute));
        }
        let parent = parent.span();
        let is_entry = !parent.span_context().is_valid() || parent.span_context().is_remote();
        if is_entry && !span.span_context().is_sampled() {
            self.enter(span.span_context().trace_id());
        }
    }

    fn on_end(&self, mut span: SpanData) {
        if span.span_context.is_sampled() {
            return self.queue(span);
        }
        let ended = Ended {
            trace: span.span_context.trace_id(),
            id: span.span_context.span_id(),
            is_entry: is_entry(&span),
            verdict: self.0.keep.verdict(&span),
        };
        span.attributes.extend(ended.verdict.tag());
        self.settle(ended, || [span]);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.destinations.iter().map(Destination::flush).fold(Ok(()), Result::and)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let each = self.0.destinations.iter().map(|destination| destination.shutdown(timeout));
        each.fold(Ok(()), Result::and)
    }
}

#[cfg(test)]
mod tests;
