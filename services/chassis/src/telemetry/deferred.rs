//! A request whose spans are built at its end, and only if they are kept. It is for the gateway,
//! where most requests are successful and unsampled. While the request runs it has ids, and notes
//! of unusual events.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, SamplingDecision, SpanData, SpanEvents, SpanLinks,
};

use super::calls::{HttpCall, HttpRequest};
use super::names;
use super::service::{Scope, Service};
use super::span::Span;
use super::tail::{Ended, Verdict};

/// The most notes of one request.
const MAX_NOTES: usize = 64;

/// A running request; see the module.
pub struct DeferredRequest {
    scope: Arc<Scope>,
    parent: SpanContext,
    ids: SpanContext,
    /// `Drop` once it is finished.
    decision: SamplingDecision,
    started: SystemTime,
    notes: Notes,
    span: Span,
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
        let (ids, decision) = self.scope().new_span(&caller, &SpanKind::Server, request.route);
        let parent = caller.span().span_context().clone();
        let tail = self.scope().parts.tail.as_ref();
        let decision = if tail.is_none() { SamplingDecision::Drop } else { decision };
        let notes = Notes::default();
        let recording = decision != SamplingDecision::Drop;
        let current = CurrentSpan { ids: ids.clone(), notes: recording.then(|| notes.clone()) };
        if let (SamplingDecision::RecordOnly, Some(tail)) = (&decision, tail) {
            tail.enter(ids.trace_id());
        }
        DeferredRequest {
            scope: Arc::clone(self.scope()),
            parent,
            ids,
            decision,
            started,
            notes,
            span: Span::found(self.context().with_span(current)),
        }
    }
}

impl DeferredRequest {
    /// A handle on it, for its ids, notes and children.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The id of a new call's span, and the headers by which the called service continues the trace.
    pub fn new_call(&self) -> (SpanId, Vec<(HeaderName, HeaderValue)>) {
        let id = RandomIdGenerator::default().new_span_id();
        let ids = self.ids_of(id);
        let context = Context::new().with_remote_span_context(ids);
        (id, self.scope.parts.propagator.headers(&context))
    }

    fn ids_of(&self, span: SpanId) -> SpanContext {
        let (trace, flags) = (self.ids.trace_id(), self.ids.trace_flags());
        SpanContext::new(trace, span, flags, false, self.ids.trace_state().clone())
    }

    /// Ends the request with the response's status. `calls` returns the calls that were made for
    /// it, and runs only if they are exported or buffered.
    pub fn finish<'a, C>(
        &mut self,
        request: &HttpRequest<'_>,
        status: u16,
        calls: impl FnOnce() -> C,
    ) where
        C: IntoIterator<Item = FinishedCall<'a>>,
    {
        let decision = std::mem::replace(&mut self.decision, SamplingDecision::Drop);
        let Some(tail) = &self.scope.parts.tail else { return };
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
                let verdict = tail.keep().outcome(status >= 500, took);
                tail.settle(self.ended(verdict), || spans(verdict));
            }
        }
    }

    fn ended(&self, verdict: Verdict) -> Ended {
        Ended { trace: self.ids.trace_id(), id: self.ids.span_id(), is_entry: true, verdict }
    }

    fn server(&self, request: &HttpRequest<'_>, status: u16) -> SpanData {
        let mut attributes = request.attributes();
        attributes.extend(answer(Some(status)));
        let error = (status >= 500).then(|| status.to_string());
        SpanData {
            parent_span_id: self.parent.span_id(),
            parent_span_is_remote: self.parent.is_valid(),
            ..self.span_data(
                self.ids.clone(),
                SpanKind::Server,
                request.name(),
                (self.started, self.started.elapsed().unwrap_or_default()),
                attributes,
                error.map(Cow::Owned),
                self.notes.take(),
            )
        }
    }

    fn call(&self, call: &FinishedCall<'_>) -> SpanData {
        let mut attributes = call.call.attributes();
        attributes.extend(answer(call.status));
        let failed = call.status.filter(|status| *status >= 500).map(|status| status.to_string());
        let error = call.error.map(Cow::Borrowed).or(failed.map(Cow::Owned));
        let ended = call.started + call.took;
        let abandoned = call
            .abandoned
            .map(|reason| Event::new("abandoned", ended, vec![KeyValue::new("reason", reason)], 0));
        SpanData {
            parent_span_id: self.ids.span_id(),
            ..self.span_data(
                self.ids_of(call.id),
                SpanKind::Client,
                call.call.name(),
                (call.started, call.took),
                attributes,
                error,
                abandoned.into_iter().collect(),
            )
        }
    }

    #[allow(clippy::too_many_arguments, reason = "a span has these")]
    fn span_data(
        &self,
        ids: SpanContext,
        kind: SpanKind,
        name: String,
        (started, took): (SystemTime, Duration),
        mut attributes: Vec<KeyValue>,
        error: Option<Cow<'static, str>>,
        notes: Vec<Event>,
    ) -> SpanData {
        attributes.extend(self.scope.attributes());
        attributes.extend(error.clone().map(|error| KeyValue::new(names::ERROR_TYPE, error)));
        let mut events = SpanEvents::default();
        events.events = notes;
        SpanData {
            span_context: ids,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: kind,
            name: name.into(),
            start_time: started,
            end_time: started + took,
            attributes,
            dropped_attributes_count: 0,
            events,
            links: SpanLinks::default(),
            status: error.map_or(Status::Unset, Status::error),
            instrumentation_scope: InstrumentationScope::default(),
        }
    }
}

impl Drop for DeferredRequest {
    /// A request that was never finished is removed from the buffer.
    fn drop(&mut self) {
        if let (SamplingDecision::RecordOnly, Some(tail)) = (&self.decision, &self.scope.parts.tail)
        {
            tail.settle(self.ended(Verdict::AsItsPart), Vec::new);
        }
    }
}

fn answer(status: Option<u16>) -> Option<KeyValue> {
    status.map(|status| KeyValue::new(names::HTTP_STATUS, i64::from(status)))
}

/// Notes of unusual events; empty for nearly every request.
#[derive(Debug, Clone, Default)]
struct Notes(Arc<Mutex<Vec<Event>>>);

impl Notes {
    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

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
        let mut notes = notes.0.lock().unwrap_or_else(PoisonError::into_inner);
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
