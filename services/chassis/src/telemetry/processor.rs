//! What becomes of a span that has ended: queued for export, kept back, or let go.
//!
//! A sampled span goes to the queues at once. The spans of an unsampled request are kept back until
//! this process's part of its trace ends: when that part failed or was slow they are exported, else
//! let go. That is a decision per process and not per trace: another process whose part went well
//! exports nothing, so that such a trace can begin with a span whose parent Zipkin does not have.
//!
//! A span that is marked [`names::REPEAT`] when it starts says what others before it said, until it
//! turns out otherwise ([`names::KEEP`]): such a part is kept back whether its trace is sampled or
//! not, and let go also when it failed. Where it overlaps in time with another part of its trace that
//! is kept, calls of its own may go out without it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Span as _, SpanId, Status, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use smallvec::{SmallVec, smallvec};

use super::export::Outlet;
use super::finished::Finished;
use super::names;
use super::record::Facts;
use super::span::Origin;

const SHARDS: usize = 16;
/// Unsampled traces under way at once whose spans are kept back, per shard; the bound on memory
/// together with the next. Those above it are let go whatever their end.
const MAX_TRACES_PER_SHARD: usize = 256;
/// Spans kept back for one trace, besides the request's own.
const MAX_SPANS_PER_TRACE: usize = 128;

/// When an unsampled request's spans are exported all the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keep {
    pub failed: bool,
    /// `None` is never.
    pub slower_than: Option<Duration>,
}

impl Keep {
    pub fn anything(self) -> bool {
        self.failed || self.slower_than.is_some()
    }

    /// Why a request that ended so is exported, if it is.
    pub fn reason(
        self,
        status: &Status,
        start: SystemTime,
        end: SystemTime,
    ) -> Option<&'static str> {
        if self.failed && matches!(status, Status::Error { .. }) {
            return Some("failed");
        }
        let took = end.duration_since(start).unwrap_or_default();
        self.slower_than.filter(|limit| took >= *limit).map(|_| "slow")
    }
}

/// A span that has ended: our own record, or of code that knows OpenTelemetry's API alone.
#[derive(Debug)]
pub(super) enum Ended {
    Recorded(Box<Facts>),
    Foreign(Box<SpanData>),
}

impl Ended {
    fn trace(&self) -> TraceId {
        match self {
            Self::Recorded(facts) => facts.context.trace_id(),
            Self::Foreign(data) => data.span_context.trace_id(),
        }
    }

    fn id(&self) -> SpanId {
        match self {
            Self::Recorded(facts) => facts.context.span_id(),
            Self::Foreign(data) => data.span_context.span_id(),
        }
    }

    fn parent(&self) -> SpanId {
        match self {
            Self::Recorded(facts) => facts.parent,
            Self::Foreign(data) => data.parent_span_id,
        }
    }

    /// Whether its parent, if it has one, is elsewhere.
    fn is_entry(&self) -> bool {
        match self {
            Self::Recorded(facts) => facts.is_entry,
            Self::Foreign(data) => {
                data.parent_span_id == SpanId::INVALID || data.parent_span_is_remote
            }
        }
    }

    fn attributes(&mut self) -> &mut Vec<KeyValue> {
        match self {
            Self::Recorded(facts) => &mut facts.attributes,
            Self::Foreign(data) => &mut data.attributes,
        }
    }

    fn reason(&self, keep: Keep) -> Option<&'static str> {
        match self {
            Self::Recorded(facts) => facts.reason_to_keep(keep),
            Self::Foreign(data) => keep.reason(&data.status, data.start_time, data.end_time),
        }
    }

    /// As exporters read it.
    pub fn finished(&self) -> Finished<'_> {
        match self {
            Self::Recorded(facts) => facts.finished(),
            Self::Foreign(data) => Finished::of_foreign(data),
        }
    }
}

/// Most requests have two spans here, their own and that of a call.
type Spans = SmallVec<[Ended; 2]>;

/// This process's part of an unsampled trace.
#[derive(Debug, Default)]
struct KeptBack {
    /// Spans under way here whose parent is elsewhere. More than one where several services share a
    /// process.
    entries: u32,
    spans: Spans,
    kept: bool,
}

impl KeptBack {
    /// Keeps one more back, or gives all if they are to be exported.
    fn add(&mut self, span: Ended, let_go: &AtomicU64) -> Spans {
        if self.spans.len() < MAX_SPANS_PER_TRACE {
            self.spans.push(span);
        } else {
            let_go.fetch_add(1, Ordering::Relaxed);
        }
        if self.kept { std::mem::take(&mut self.spans) } else { Spans::new() }
    }

    /// Lets go what is below a span.
    fn forget_below(&mut self, span: SpanId) {
        let mut gone = vec![span];
        // A part ends before what it is a part of.
        for at in (0..self.spans.len()).rev() {
            if gone.contains(&self.spans[at].parent()) {
                gone.push(self.spans.remove(at).id());
            }
        }
    }
}

/// By trace id, hashed quickly. Strangers choose trace ids, and could choose some that collide: the
/// bound on traces is one on comparisons too.
type Parts = HashMap<TraceId, KeptBack, foldhash::fast::RandomState>;

#[derive(Debug)]
pub(super) struct Processor {
    outlets: Vec<Outlet>,
    keep: Keep,
    shards: [Mutex<Parts>; SHARDS],
    let_go: Arc<AtomicU64>,
}

impl Processor {
    pub fn new(outlets: Vec<Outlet>, keep: Keep, let_go: Arc<AtomicU64>) -> Self {
        Self { outlets, keep, shards: Default::default(), let_go }
    }

    fn shard(&self, trace: TraceId) -> &Mutex<Parts> {
        &self.shards[usize::from(trace.to_bytes()[15]) % SHARDS]
    }

    fn queue(&self, span: Ended) {
        let span = Arc::new(span);
        for outlet in &self.outlets {
            outlet.offer(&span);
        }
    }

    /// This process's part of an unsampled trace begins, or another service's in this process.
    pub fn enter(&self, trace: TraceId) {
        let mut shard = self.shard(trace).lock().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= MAX_TRACES_PER_SHARD && !shard.contains_key(&trace) {
            self.let_go.fetch_add(1, Ordering::Relaxed);
            return;
        }
        shard.entry(trace).or_default().entries += 1;
    }

    /// One of our own spans has ended.
    pub fn ended(&self, facts: Box<Facts>) {
        let is_sampled = facts.context.is_sampled();
        self.take(is_sampled, Ended::Recorded(facts));
    }

    fn take(&self, is_sampled: bool, span: Ended) {
        if is_sampled {
            self.queue(span);
        } else {
            for span in self.settle(span) {
                self.queue(span);
            }
        }
    }

    /// What is to be exported now that this unsampled span has ended.
    fn settle(&self, mut span: Ended) -> Spans {
        let trace = span.trace();
        let is_entry = span.is_entry();
        let mut says = |name| span.attributes().iter().any(|pair| pair.key.as_str() == name);
        let (asked, repeats) = (says(names::KEEP), says(names::REPEAT));
        let reason = if asked {
            Some("kept")
        } else {
            (is_entry && !repeats).then(|| span.reason(self.keep)).flatten()
        };
        if let Some(reason) = reason {
            span.attributes().push(KeyValue::new(names::KEPT_FOR, reason));
        }
        let mut shard = self.shard(trace).lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut part) = shard.entry(trace) else {
            // Outlived the request that started it, or was over the bound.
            return if asked { smallvec![span] } else { Spans::new() };
        };
        let kept_back = part.get_mut();
        kept_back.kept |= reason.is_some();
        if is_entry {
            kept_back.entries = kept_back.entries.saturating_sub(1);
        }
        let says_nothing = repeats && !asked;
        if says_nothing {
            // Another part of the trace may be kept.
            kept_back.forget_below(span.id());
        }
        if kept_back.entries > 0 {
            return if says_nothing { Spans::new() } else { kept_back.add(span, &self.let_go) };
        }
        let mut kept_back = part.remove();
        // What is let go is freed while nobody waits for the shard.
        drop(shard);
        if !kept_back.kept {
            return Spans::new();
        }
        // The request itself, without which its parts would hang in the air, has room whatever it had
        // of them.
        if !says_nothing {
            kept_back.spans.push(span);
        }
        kept_back.spans
    }
}

/// The processor as the SDK's, for spans of code that knows OpenTelemetry's API alone.
#[derive(Debug)]
pub(super) struct ForSdk(pub Arc<Processor>);

impl SpanProcessor for ForSdk {
    fn on_start(&self, span: &mut Span, parent: &Context) {
        if let Some(origin) = parent.get::<Origin>() {
            span.set_attribute(KeyValue::new(names::SERVICE, origin.service));
            if let Some(local) = origin.local {
                span.set_attribute(KeyValue::new(names::LOCAL, local.to_string()));
            }
        }
        let context = span.span_context();
        if !context.is_sampled() {
            let parent = parent.span();
            if !parent.span_context().is_valid() || parent.span_context().is_remote() {
                self.0.enter(context.trace_id());
            }
        }
    }

    fn on_end(&self, span: SpanData) {
        self.0.take(span.span_context.is_sampled(), Ended::Foreign(Box::new(span)));
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}
