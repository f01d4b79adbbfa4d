//! A request whose span is built at its end, and only if it is kept, since most requests are
//! successful and unsampled. While the request runs it has ids, and notes of unusual events.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceContextExt};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, SamplingDecision, SpanData, SpanEvents, SpanLinks,
};

use super::calls::{HttpCall, HttpRequest};
use super::names;
use super::scope::Scope;
use super::service::{Parts, Service};
use super::span::Span;
use super::tail::{Ended, Verdict};

/// The most notes of one request.
const MAX_NOTES: usize = 64;

/// A running request; see the module.
pub struct DeferredRequest {
    scope: Arc<Scope>,
    parts: Arc<Parts>,
    parent: SpanContext,
    ids: SpanContext,
    /// `Drop` once it is finished.
    decision: SamplingDecision,
    started: SystemTime,
    notes: Notes,
    handle: Span,
}

impl fmt::Debug for DeferredRequest {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_tuple("DeferredRequest").field(&self.ids).finish()
    }
}

/// A finished call to another service.
#[derive(Debug)]
pub struct FinishedCall<'a> {
    /// The span's id, as [`DeferredRequest::new_call`] gave it.
    pub id: SpanId,
    /// The called service.
    pub call: HttpCall<'a>,
    /// When it began.
    pub started: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// The response's status, if there was one.
    pub status: Option<u16>,
    /// Why it failed, in a fixed word.
    pub error: Option<&'static str>,
    /// Why it was abandoned without a fault of the called service.
    pub abandoned: Option<&'static str>,
}

impl Service {
    /// A request that came in at `started`, continuing the caller's trace.
    pub fn deferred(
        &self,
        headers: &HeaderMap,
        request: &HttpRequest<'_>,
        started: SystemTime,
    ) -> DeferredRequest {
        let caller = self.caller(headers, request);
        let (ids, decision) = self.parts().new_span(&caller, &SpanKind::Server, request.route);
        let parent = caller.span().span_context().clone();
        let tail = self.parts().tail.as_ref();
        let decision = if tail.is_none() { SamplingDecision::Drop } else { decision };
        let notes = Notes::default();
        let recording = decision != SamplingDecision::Drop;
        let current = CurrentSpan { ids: ids.clone(), notes: recording.then(|| notes.clone()) };
        if let (SamplingDecision::RecordOnly, Some(tail)) = (&decision, tail) {
            tail.enter(ids.trace_id());
        }
        DeferredRequest {
            scope: Arc::clone(self.scope()),
            parts: Arc::clone(self.parts()),
            parent,
            ids,
            decision,
            started,
            notes,
            handle: Span::found(self.context().with_span(current)),
        }
    }
}

impl DeferredRequest {
    /// A handle on it, for its ids, notes and children.
    pub fn handle(&self) -> &Span {
        &self.handle
    }

    /// The id of a new call's span, and the headers by which the called service continues the trace.
    pub fn new_call(&self) -> (SpanId, Vec<(HeaderName, HeaderValue)>) {
        let id = RandomIdGenerator::default().new_span_id();
        (id, self.scope.propagator.headers_of(self.ids_of(id)))
    }

    fn ids_of(&self, span: SpanId) -> SpanContext {
        let (trace, flags) = (self.ids.trace_id(), self.ids.trace_flags());
        SpanContext::new(trace, span, flags, false, self.ids.trace_state().clone())
    }

    /// Ends the request with the response's status; `None` when its client left before.
    pub fn finish(&mut self, request: &HttpRequest<'_>, status: Option<u16>) {
        self.finish_with_calls(request, status, std::iter::empty);
    }

    /// As [`DeferredRequest::finish`], with the calls that were made for it. `calls` returns them, and
    /// runs only if they are exported or buffered.
    pub fn finish_with_calls<'a, C>(
        &mut self,
        request: &HttpRequest<'_>,
        status: Option<u16>,
        calls: impl FnOnce() -> C,
    ) where
        C: IntoIterator<Item = FinishedCall<'a>>,
    {
        let decision = std::mem::replace(&mut self.decision, SamplingDecision::Drop);
        let Some(tail) = &self.parts.tail else { return };
        let spans = |verdict: Verdict| {
            let mut spans: Vec<_> = calls().into_iter().map(|call| self.call(&call)).collect();
            let mut server = self.server(request, status);
            server.attributes.extend(verdict.tag());
            spans.push(server);
            spans
        };
        match decision {
            SamplingDecision::Drop => {}
            SamplingDecision::RecordAndSample => {
                spans(Verdict::AsItsPart).into_iter().for_each(|span| tail.queue(span));
            }
            SamplingDecision::RecordOnly => {
                let took = self.started.elapsed().unwrap_or_default();
                let failed =
                    status.is_some_and(|status| status >= 500) || request.degraded.is_some();
                let verdict = tail.keep().outcome(failed, took);
                tail.settle(self.ended(verdict), || spans(verdict));
            }
        }
    }

    fn ended(&self, verdict: Verdict) -> Ended {
        Ended { trace: self.ids.trace_id(), id: self.ids.span_id(), is_entry: true, verdict }
    }

    fn server(&self, request: &HttpRequest<'_>, status: Option<u16>) -> SpanData {
        let took = self.started.elapsed().unwrap_or_default();
        let notes = &mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut span = self.span(SpanKind::Server, self.ids.clone(), (self.started, took));
        span.parent_span_id = self.parent.span_id();
        span.parent_span_is_remote = self.parent.is_valid();
        span.name = request.name().into();
        span.attributes.extend(request.attributes());
        span.events.events = std::mem::take(notes);
        if status.is_none() {
            span.events.events.push(Event::new("client_gone", span.end_time, Vec::new(), 0));
        }
        answered(span, status, request.degraded)
    }

    fn call(&self, call: &FinishedCall<'_>) -> SpanData {
        let ids = self.ids_of(call.id);
        let mut span = self.span(SpanKind::Client, ids, (call.started, call.took));
        span.parent_span_id = self.ids.span_id();
        span.name = call.call.name().into();
        span.attributes.extend(call.call.attributes());
        if let Some(reason) = call.abandoned {
            let facts = vec![KeyValue::new("reason", reason)];
            span.events.events.push(Event::new("abandoned", span.end_time, facts, 0));
        }
        answered(span, call.status, call.error)
    }

    fn span(
        &self,
        kind: SpanKind,
        ids: SpanContext,
        (started, took): (SystemTime, Duration),
    ) -> SpanData {
        SpanData {
            span_context: ids,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: kind,
            name: Cow::Borrowed(""),
            start_time: started,
            end_time: started + took,
            attributes: self.scope.attributes().collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::default(),
        }
    }
}

/// The span with its answer: it failed for a reason of its own, or by a status of 500 and more.
fn answered(mut span: SpanData, status: Option<u16>, error: Option<&'static str>) -> SpanData {
    span.attributes.extend(status.map(|code| KeyValue::new(names::HTTP_STATUS, i64::from(code))));
    let failed = status.filter(|status| *status >= 500).map(|status| Cow::from(status.to_string()));
    if let Some(error) = error.map(Cow::Borrowed).or(failed) {
        span.attributes.push(KeyValue::new(names::ERROR_TYPE, error.clone()));
        span.status = Status::error(error);
    }
    span
}

impl Drop for DeferredRequest {
    /// A request that was never finished is removed from the buffer.
    fn drop(&mut self) {
        if let (SamplingDecision::RecordOnly, Some(tail)) = (&self.decision, &self.parts.tail) {
            tail.settle(self.ended(Verdict::AsItsPart), Vec::new);
        }
    }
}

/// What unusual happened; empty for nearly every request.
type Notes = Arc<Mutex<Vec<Event>>>;

/// The request as OpenTelemetry's current span: a parent, and a target for notes.
#[derive(Debug)]
struct CurrentSpan {
    ids: SpanContext,
    /// `None` where they are not used.
    notes: Option<Notes>,
}

impl opentelemetry::trace::Span for CurrentSpan {
    fn add_event_with_timestamp<T>(&mut self, name: T, at: SystemTime, facts: Vec<KeyValue>)
    where
        T: Into<Cow<'static, str>>,
    {
        let Some(notes) = &self.notes else { return };
        let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < MAX_NOTES {
            notes.push(Event::new(name, at, facts, 0));
        }
    }

    fn span_context(&self) -> &SpanContext {
        &self.ids
    }

    fn is_recording(&self) -> bool {
        self.notes.is_some()
    }

    fn set_attribute(&mut self, _: KeyValue) {}

    fn set_status(&mut self, _: Status) {}

    fn update_name<T>(&mut self, _: T)
    where
        T: Into<Cow<'static, str>>,
    {
    }

    fn add_link(&mut self, _: SpanContext, _: Vec<KeyValue>) {}

    fn end_with_timestamp(&mut self, _: SystemTime) {}
}
