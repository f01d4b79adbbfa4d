//! What becomes of a span that has ended: queued for export, kept back, or let go.
//!
//! A sampled span goes to the queues at once. The spans of an unsampled request are kept back until
//! this process's part of its trace ends: when that part failed or was slow they are exported, else
//! let go. That is a decision per process and not per trace: another process whose part went well
//! exports nothing, so that such a trace can begin with a span whose parent Zipkin does not have.
//!
//! A span of code that knows the API alone, marked [`names::REPEAT`] when it starts, says what others before it said, until it
//! turns out otherwise ([`names::KEEP`]): such a part is kept back whether its trace is sampled or
//! not, and let go also when it failed. Where it overlaps in time with another part of its trace that
//! is kept, calls of its own may go out without it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Span as _, SpanId, Status, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use smallvec::SmallVec;

use super::export::Outlet;
use super::finished::Finished;
use super::names;
use super::record::Record;
use super::span::Origin;

const SHARDS: usize = 64;
/// Unsampled traces under way at once whose spans are kept back, per shard; the bound on memory
/// together with the next, and on how many ids are compared. Those above it are let go whatever
/// their end.
const MAX_TRACES_PER_SHARD: usize = 128;
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

    /// What an unsampled span that ended so says for its export.
    pub fn verdict(self, ending: &Ending<'_>) -> Verdict {
        if ending.is_wanted {
            return Verdict::Keep(Reason::Wanted);
        }
        if ending.repeats {
            return Verdict::SaysNothing;
        }
        // Of what a request did, itself decides.
        if !ending.is_entry {
            return Verdict::AsItsPart;
        }
        if self.failed && matches!(ending.status, Status::Error { .. }) {
            return Verdict::Keep(Reason::Failed);
        }
        let took = ending.end.duration_since(ending.start).unwrap_or_default();
        if self.slower_than.is_some_and(|limit| took >= limit) {
            return Verdict::Keep(Reason::Slow);
        }
        Verdict::AsItsPart
    }
}

/// How an unsampled span ended.
#[derive(Debug)]
pub(super) struct Ending<'a> {
    /// Whether its parent, if it has one, is elsewhere.
    pub is_entry: bool,
    /// Somebody asked to have it exported ([`names::KEEP`]).
    pub is_wanted: bool,
    /// It probably says what others said ([`names::REPEAT`]).
    pub repeats: bool,
    pub status: &'a Status,
    pub start: SystemTime,
    pub end: SystemTime,
}

/// A span that has ended, our own or of code that knows OpenTelemetry's API alone. One of our own holds,
/// by its origin, the processor that may keep it back and the queues in which it waits: a circle that
/// lasts until its part of the trace ends, and the worker takes it out.
#[derive(Debug, Clone)]
pub(super) enum Ended {
    Own(Arc<Record>),
    Foreign(Arc<SpanData>),
}

impl Ended {
    /// Has `reader` read it as exporters do. One of our own is locked meanwhile: `reader` neither waits
    /// nor asks it anything.
    pub fn read<R>(&self, reader: impl FnOnce(&Finished<'_>) -> R) -> R {
        match self {
            Self::Own(record) => record.read(reader),
            Self::Foreign(data) => reader(&Finished::of_foreign(data)),
        }
    }

    fn id(&self) -> SpanId {
        match self {
            Self::Own(record) => record.context.span_id(),
            Self::Foreign(data) => data.span_context.span_id(),
        }
    }

    fn parent(&self) -> SpanId {
        match self {
            Self::Own(record) => record.parent,
            Self::Foreign(data) => data.parent_span_id,
        }
    }
}

/// What decides over an unsampled span that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unsampled {
    pub trace: TraceId,
    pub id: SpanId,
    /// Whether its parent, if it has one, is elsewhere.
    pub is_entry: bool,
    pub verdict: Verdict,
}

/// What an unsampled span itself says for its export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: it goes where its part of the trace goes.
    AsItsPart,
    /// It repeats what others said: it goes nowhere, and nothing below it does.
    SaysNothing,
    /// It is exported, and its part with it.
    Keep(Reason),
}

/// Why a span is exported although nobody sampled it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Somebody asked for it ([`names::KEEP`]), which holds even when its part has ended before.
    Wanted,
    Failed,
    Slow,
}

impl Reason {
    /// As [`names::KEPT_FOR`] has it.
    fn name(self) -> &'static str {
        match self {
            Self::Wanted => "kept",
            Self::Failed => "failed",
            Self::Slow => "slow",
        }
    }

    pub fn tag(self) -> KeyValue {
        KeyValue::new(names::KEPT_FOR, self.name())
    }
}

/// Most requests of the gateway have one call, and some of a service have two. A request itself comes
/// last, when it is exported.
type Spans = SmallVec<[Ended; 2]>;

/// This process's part of an unsampled trace.
#[derive(Debug)]
struct KeptBack {
    trace: TraceId,
    /// Spans under way here whose parent is elsewhere. More than one where several services share a
    /// process.
    entries: u32,
    kept: bool,
    spans: Spans,
}

impl KeptBack {
    /// Keeps one more back.
    fn add(&mut self, span: Ended, let_go: &AtomicU64) {
        if self.spans.len() < MAX_SPANS_PER_TRACE {
            self.spans.push(span);
        } else {
            let_go.fetch_add(1, Ordering::Relaxed);
        }
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

/// A list and no map: a shard has few traces at once, and strangers choose their ids.
type Parts = Vec<KeptBack>;

#[derive(Debug)]
pub(super) struct Processor {
    outlets: Vec<Outlet>,
    pub keep: Keep,
    shards: [Mutex<Parts>; SHARDS],
    let_go: Arc<AtomicU64>,
}

impl Processor {
    pub fn new(outlets: Vec<Outlet>, keep: Keep, let_go: Arc<AtomicU64>) -> Self {
        Self { outlets, keep, shards: std::array::from_fn(|_| Mutex::default()), let_go }
    }

    fn shard(&self, trace: TraceId) -> MutexGuard<'_, Parts> {
        let shard = &self.shards[usize::from(trace.to_bytes()[15]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn queue(&self, span: Ended) {
        let Some((last, others)) = self.outlets.split_last() else { return };
        for outlet in others {
            outlet.offer(|| span.clone());
        }
        last.offer(|| span);
    }

    /// This process's part of an unsampled trace begins, or another service's in this process.
    pub fn enter(&self, trace: TraceId) {
        let mut shard = self.shard(trace);
        if let Some(part) = shard.iter_mut().find(|part| part.trace == trace) {
            part.entries += 1;
        } else if shard.len() < MAX_TRACES_PER_SHARD {
            shard.push(KeptBack { trace, entries: 1, kept: false, spans: Spans::new() });
        } else {
            self.let_go.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes an unsampled span that has ended: kept back, let go, or queued with all that was kept
    /// back for it.
    pub fn settle(&self, ended: Unsampled, span: impl FnOnce() -> Ended) {
        let mut shard = self.shard(ended.trace);
        let Some(at) = shard.iter().position(|part| part.trace == ended.trace) else {
            drop(shard);
            // Outlived the request that started it, or was over the bound.
            if ended.verdict == Verdict::Keep(Reason::Wanted) {
                self.queue(span());
            }
            return;
        };
        let part = &mut shard[at];
        part.entries = part.entries.saturating_sub(u32::from(ended.is_entry));
        if ended.verdict != Verdict::AsItsPart || part.kept {
            return self.settle_unusual(shard, at, ended, span());
        }
        if part.entries > 0 {
            part.add(span(), &self.let_go);
        } else {
            let part = shard.swap_remove(at);
            // What a whole part lets go is freed while nobody waits for the shard.
            drop(shard);
            drop(part);
        }
    }

    /// Apart, so that what every request runs through lies close together.
    #[cold]
    fn settle_unusual(
        &self,
        mut shard: MutexGuard<'_, Parts>,
        at: usize,
        ended: Unsampled,
        span: Ended,
    ) {
        let part = &mut shard[at];
        let says_nothing = ended.verdict == Verdict::SaysNothing;
        part.kept |= matches!(ended.verdict, Verdict::Keep(_));
        if says_nothing {
            // Another part of the trace may be kept.
            part.forget_below(ended.id);
        }
        // What a whole part lets go is freed while nobody waits for the shard.
        let (mut out, mut gone) = (Spans::new(), None);
        if part.entries > 0 {
            if !says_nothing {
                part.add(span, &self.let_go);
            }
            if part.kept {
                out = std::mem::take(&mut part.spans);
            }
        } else {
            let part = shard.swap_remove(at);
            if part.kept {
                out = part.spans;
                // The request itself, without which its parts would hang in the air, has room whatever
                // it had of them.
                if !says_nothing {
                    out.push(span);
                }
            } else {
                gone = Some((part, span));
            }
        }
        drop(shard);
        drop(gone);
        for span in out {
            self.queue(span);
        }
    }

    /// A span of code that knows OpenTelemetry's API alone has ended.
    fn ended(&self, mut span: SpanData) {
        if span.span_context.is_sampled() {
            return self.queue(Ended::Foreign(Arc::new(span)));
        }
        let says = |name| span.attributes.iter().any(|pair| pair.key.as_str() == name);
        let is_entry = span.parent_span_id == SpanId::INVALID || span.parent_span_is_remote;
        let verdict = self.keep.verdict(&Ending {
            is_entry,
            is_wanted: says(names::KEEP),
            repeats: says(names::REPEAT),
            status: &span.status,
            start: span.start_time,
            end: span.end_time,
        });
        if let Verdict::Keep(reason) = verdict {
            span.attributes.push(reason.tag());
        }
        let ended = Unsampled {
            trace: span.span_context.trace_id(),
            id: span.span_context.span_id(),
            is_entry,
            verdict,
        };
        self.settle(ended, || Ended::Foreign(Arc::new(span)));
    }
}

/// The processor as the SDK's, for spans of code that knows OpenTelemetry's API alone.
#[derive(Debug)]
pub(super) struct ForSdk(pub Arc<Processor>);

impl SpanProcessor for ForSdk {
    fn on_start(&self, span: &mut Span, parent: &Context) {
        if let Some(origin) = Origin::of(parent) {
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
        self.0.ended(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}
