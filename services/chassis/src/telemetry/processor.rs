//! What becomes of a span that has ended: queued for export, kept back, or let go.
//!
//! A sampled span goes to the queues at once. The spans of an unsampled request are kept back until
//! this process's part of its trace ends: when that part failed or was slow they are exported, else
//! let go. That is a decision per process and not per trace: another process whose part went well
//! exports nothing, so that such a trace can begin with a span whose parent Zipkin does not have.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Span as _, SpanId, Status, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};

use super::export::Outlet;
use super::names;
use super::record::Facts;
use super::span::Origin;

const SHARDS: usize = 16;
/// Unsampled traces under way at once whose spans are kept back, per shard; the bound on memory
/// together with the next. Those above it are let go whatever their end.
const MAX_TRACES_PER_SHARD: usize = 256;
/// Spans kept back for one trace.
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
enum Ended {
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

    fn into_data(self) -> SpanData {
        match self {
            Self::Recorded(facts) => facts.into_data(),
            Self::Foreign(data) => *data,
        }
    }
}

/// This process's part of an unsampled trace.
#[derive(Debug, Default)]
struct KeptBack {
    /// Spans under way here whose parent is elsewhere. More than one where several services share a
    /// process.
    entries: u32,
    spans: Vec<Ended>,
    kept: bool,
}

#[derive(Debug)]
pub(super) struct Processor {
    outlets: Vec<Outlet>,
    keep: Keep,
    shards: [Mutex<HashMap<TraceId, KeptBack>>; SHARDS],
    let_go: Arc<AtomicU64>,
}

impl Processor {
    pub fn new(outlets: Vec<Outlet>, keep: Keep, let_go: Arc<AtomicU64>) -> Self {
        Self { outlets, keep, shards: Default::default(), let_go }
    }

    fn shard(&self, trace: TraceId) -> &Mutex<HashMap<TraceId, KeptBack>> {
        &self.shards[usize::from(trace.to_bytes()[15]) % SHARDS]
    }

    fn queue(&self, span: Ended) {
        let span = Arc::new(span.into_data());
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
        } else if self.keep.anything() {
            for span in self.settle(span) {
                self.queue(span);
            }
        }
    }

    /// What is to be exported now that this unsampled span has ended.
    fn settle(&self, mut span: Ended) -> Vec<Ended> {
        let trace = span.trace();
        let is_entry = span.is_entry();
        let asked = span.attributes().iter().any(|pair| pair.key.as_str() == names::KEEP);
        let reason =
            if asked { Some("kept") } else { is_entry.then(|| span.reason(self.keep)).flatten() };
        if let Some(reason) = reason {
            span.attributes().push(KeyValue::new(names::KEPT_FOR, reason));
        }
        let mut shard = self.shard(trace).lock().unwrap_or_else(PoisonError::into_inner);
        let Some(part) = shard.get_mut(&trace) else {
            // Outlived the request that started it, or was over the bound.
            return Vec::new();
        };
        part.kept |= reason.is_some();
        if part.spans.len() < MAX_SPANS_PER_TRACE {
            part.spans.push(span);
        } else {
            self.let_go.fetch_add(1, Ordering::Relaxed);
        }
        let ready = if part.kept { std::mem::take(&mut part.spans) } else { Vec::new() };
        if is_entry {
            part.entries = part.entries.saturating_sub(1);
            if part.entries == 0 {
                let over = shard.remove(&trace);
                // What is let go is freed while nobody waits for the shard.
                drop(shard);
                drop(over);
            }
        }
        ready
    }
}

/// The processor as the SDK's, for spans of code that knows OpenTelemetry's API alone.
#[derive(Debug)]
pub(super) struct ForSdk(pub Arc<Processor>);

impl SpanProcessor for ForSdk {
    fn on_start(&self, span: &mut Span, parent: &Context) {
        if let Some(origin) = parent.get::<Origin>() {
            span.set_attribute(KeyValue::new(names::SERVICE, origin.service));
            if let Some(local) = &origin.local {
                span.set_attribute(KeyValue::new(names::LOCAL, local.clone()));
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
