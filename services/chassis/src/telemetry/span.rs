//! Spans as Tourin makes them: by small functions that know OpenTelemetry's names.
//!
//! A [`Span`] is a handle: it can be sent and kept (in the gateway's request context, say), has
//! children, and ends when dropped. [`Span::run`] makes it current for a future, so that what is
//! deep below finds it by [`Span::current`], and log lines carry its trace id. A span that is not
//! recorded costs its ids; every call on it returns at once.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::context::{FutureExt, WithContext};
use opentelemetry::trace::{Event, SpanContext, SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, ContextGuard, KeyValue};

use super::calls::{DbCall, HttpCall, HttpRequest, Message};
use super::codec::{
    Above, Caller, CallersDecision, Codec, TRACE_HEADERS, TRACESTATE, single, tracestate,
};
use super::names;
use super::record::{ApiSpan, Record, Recorder, Start, Started};
use super::subject::Subject;

/// Whose spans they are and how they are made. It travels in the context, for what is found there.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub service: &'static str,
    pub local: Option<SocketAddr>,
    pub recorder: Arc<Recorder>,
    pub codec: Arc<Codec>,
}

impl Origin {
    /// Whose context it is.
    pub fn of(context: &Context) -> Option<&Arc<Self>> {
        context.get()
    }
}

/// A service (of which one process may run several) as the start of spans.
#[derive(Clone)]
pub struct Service {
    origin: Arc<Origin>,
    base: Context,
}

/// Without what it exports to, which holds spans.
impl fmt::Debug for Service {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_tuple("Service").field(&self.name()).finish()
    }
}

impl Service {
    /// The service `name`, with the process's pipeline; see [`super::init`].
    pub fn new(name: &'static str) -> Self {
        super::pipeline().service(name)
    }

    pub(super) fn of(origin: Origin) -> Self {
        let origin = Arc::new(origin);
        Self { base: Context::new().with_value(origin.clone()), origin }
    }

    /// The same with the address that it listens on, for Zipkin's local endpoint.
    #[must_use]
    pub fn listening(&self, address: SocketAddr) -> Self {
        Self::of(Origin { local: Some(address), ..(*self.origin).clone() })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.origin.service
    }

    /// The context in which background tasks run, so that spans made there by OpenTelemetry's own
    /// API are this service's.
    pub fn context(&self) -> Context {
        self.base.clone()
    }

    /// Runs a background task's future with the context of this service.
    pub fn run<F: Future>(&self, future: F) -> WithContext<F> {
        future.with_context(self.base.clone())
    }

    /// A request that came in, continuing the caller's trace.
    pub fn server(&self, headers: &HeaderMap, request: &HttpRequest<'_>) -> Span {
        let state = tracestate(headers);
        let mut caller = self.origin.codec.caller(|name| match name {
            TRACESTATE => state.as_deref(),
            _ => single(headers, name),
        });
        if request.unwatched && caller.context.is_none() {
            caller.decision = Some(CallersDecision::Unwatched);
        }
        let start =
            Start { kind: SpanKind::Server, route: request.route, started: request.started };
        self.start(&caller, &start, || request.subject())
    }

    /// An event on its way out, continuing the trace that its headers carry from where it arose
    /// (from the outbox's row). What goes with the event is this span's context.
    pub fn producer(&self, headers: &BTreeMap<String, String>, message: &Message<'_>) -> Span {
        self.message(headers, SpanKind::Producer, "send", message)
    }

    /// An event that arrived, from before it is worked on until it is settled.
    pub fn consumer(&self, headers: &BTreeMap<String, String>, message: &Message<'_>) -> Span {
        self.message(headers, SpanKind::Consumer, "process", message)
    }

    fn message(
        &self,
        headers: &BTreeMap<String, String>,
        kind: SpanKind,
        operation: &'static str,
        message: &Message<'_>,
    ) -> Span {
        let caller = self.origin.codec.caller(|name| headers.get(name).map(String::as_str));
        self.start(&caller, &Start::of(kind), || message.subject(operation))
    }

    /// A trace that starts within: a timer's or an operator's work. `name` says what, in a few
    /// fixed words.
    pub fn work(&self, name: &'static str) -> Span {
        let start = Start::of(SpanKind::Internal);
        self.start(&Caller::default(), &start, || Subject::Work(name))
    }

    fn start(&self, caller: &Caller, start: &Start<'_>, subject: impl FnOnce() -> Subject) -> Span {
        let started = Recorder::start(&self.origin, caller.above(), start, subject);
        Span::new(self.base.clone(), started.into())
    }
}

/// A span: see the module.
#[derive(Debug)]
pub struct Span {
    /// Where it started. It is not in it itself, unless it was [`State::Found`] there.
    base: Context,
    state: State,
    /// `base` with it in, once somebody asks: most spans are only told what became of them.
    full: OnceLock<Context>,
}

#[derive(Debug)]
enum State {
    /// Its context's, of which this is one more handle, or none.
    Found {
        recording: bool,
    },
    /// Ids to pass on, perhaps those of its unrecorded parent.
    Unrecorded(SpanContext),
    Recorded(Arc<Record>),
}

impl From<Started> for State {
    fn from(started: Started) -> Self {
        match started {
            Started::Unrecorded(ids) => Self::Unrecorded(ids),
            Started::Recorded(record) => Self::Recorded(record),
        }
    }
}

impl Span {
    fn new(base: Context, state: State) -> Self {
        Self { base, state, full: OnceLock::new() }
    }

    /// A part of this span.
    fn part(&self, kind: SpanKind, subject: impl FnOnce() -> Subject) -> Self {
        let start = Start::of(kind);
        let state = match &self.state {
            State::Found { .. } => Self::part_of(&self.base, &start, subject),
            State::Unrecorded(ids) => State::Unrecorded(ids.clone()),
            State::Recorded(record) => {
                let above = Above { span: Some(&record.context), decision: None };
                Recorder::start(&record.origin, above, &start, subject).into()
            }
        };
        Self::new(self.base.clone(), state)
    }

    /// A part of what a context holds.
    fn part_of(context: &Context, start: &Start<'_>, subject: impl FnOnce() -> Subject) -> State {
        let span = context.span();
        let above = Some(span.span_context()).filter(|above| above.is_valid());
        let is_unrecorded = above.is_some_and(|above| !above.is_remote() && !span.is_recording());
        match Origin::of(context) {
            Some(origin) if !is_unrecorded => {
                let above = Above { span: above, decision: context.get().copied() };
                Recorder::start(origin, above, start, subject).into()
            }
            _ => State::Found { recording: false },
        }
    }

    /// No span: where there is no request, as in tests. Its children are none either.
    pub fn none() -> Self {
        Self::new(Context::new(), State::Found { recording: false })
    }

    /// What is current here, for children and annotations; dropping it ends nothing.
    pub fn current() -> Self {
        let context = Context::current();
        let recording = context.span().is_recording();
        Self::new(context, State::Found { recording })
    }

    /// Whether anything set on it is kept.
    pub fn is_recording(&self) -> bool {
        match self.state {
            State::Found { recording } => recording,
            State::Unrecorded(_) => false,
            State::Recorded(_) => true,
        }
    }

    fn with_ids<T>(&self, read: impl FnOnce(&SpanContext) -> T) -> T {
        match &self.state {
            State::Found { .. } => read(self.base.span().span_context()),
            State::Unrecorded(ids) => read(ids),
            State::Recorded(record) => read(&record.context),
        }
    }

    /// The trace's id as 32 hexadecimal digits; `None` for [`Span::none`].
    pub fn trace_id(&self) -> Option<String> {
        self.with_ids(trace_id_in)
    }

    /// Its context, for code that works with OpenTelemetry's API itself.
    pub fn context(&self) -> &Context {
        match &self.state {
            State::Found { .. } => &self.base,
            State::Unrecorded(ids) => {
                self.full.get_or_init(|| self.base.with_remote_span_context(ids.clone()))
            }
            State::Recorded(record) => {
                self.full.get_or_init(|| self.base.with_span(ApiSpan(record.clone())))
            }
        }
    }

    /// Runs a future with this span current.
    pub fn run<F: Future>(&self, future: F) -> WithContext<F> {
        future.with_context(self.context().clone())
    }

    /// Makes it current on this thread until the guard is dropped: for a stretch of code without
    /// an `await`, such as one of Pingora's callbacks that logs.
    #[must_use = "it is current as long as the guard lives"]
    pub fn enter(&self) -> ContextGuard {
        self.context().clone().attach()
    }

    /// A call to another service.
    pub fn http_client(&self, call: &HttpCall<'_>) -> Self {
        self.part(SpanKind::Client, || call.subject())
    }

    /// A call to a database or a cache.
    pub fn db(&self, call: &DbCall<'_>) -> Self {
        self.part(SpanKind::Client, || call.subject())
    }

    /// An event that is published within this span, without an outbox between.
    pub fn producer(&self, message: &Message<'_>) -> Self {
        self.part(SpanKind::Producer, || message.subject("send"))
    }

    /// A piece of work worth a line of its own in the waterfall.
    pub fn child(&self, name: &'static str) -> Self {
        self.part(SpanKind::Internal, || Subject::Work(name))
    }

    fn put(&self, attribute: impl FnOnce() -> KeyValue) {
        match &self.state {
            State::Recorded(record) => record.set_attribute(attribute()),
            State::Found { recording: true } => self.base.span().set_attribute(attribute()),
            State::Found { recording: false } | State::Unrecorded(_) => {}
        }
    }

    /// The answer's status. From 500 on it is a failure. A call that was answered 4xx has been answered:
    /// the gateway passes 401 and 404 on all day. A caller to whom it is a failure says so by
    /// [`Span::set_error`].
    pub fn set_status(&self, status: u16) {
        match &self.state {
            State::Recorded(record) => record.set_answered(status),
            _ => self.put(|| KeyValue::new(names::HTTP_STATUS, i64::from(status))),
        }
        if status >= 500 {
            self.set_error(&status.to_string());
        }
    }

    /// It failed. `reason` is a class of failure (`connect_refused`, `timeout`), not a message that
    /// may quote data; it becomes Zipkin's `error` tag.
    pub fn set_error(&self, reason: &str) {
        self.put(|| KeyValue::new(names::ERROR_TYPE, reason.to_owned()));
        let status = || Status::error(reason.to_owned());
        match &self.state {
            State::Recorded(record) => record.set_status(status()),
            State::Found { recording: true } => self.base.span().set_status(status()),
            State::Found { recording: false } | State::Unrecorded(_) => {}
        }
    }

    /// What became of an event: `applied`, `duplicate`, `dead_lettered`.
    pub fn set_outcome(&self, outcome: &'static str) {
        self.put(|| KeyValue::new(names::OUTCOME, outcome));
    }

    /// Something that happened at a moment: `retry`, `fall_back`, `breaker_open`, `dead_lettered`,
    /// `replayed`, with its facts.
    pub fn annotate(&self, event: &'static str, facts: &[(&'static str, &str)]) {
        let facts =
            || facts.iter().map(|(name, fact)| KeyValue::new(*name, (*fact).to_owned())).collect();
        match &self.state {
            State::Recorded(record) => {
                record.add_event(Event::new(event, opentelemetry::time::now(), facts(), 0));
            }
            State::Found { recording: true } => self.base.span().add_event(event, facts()),
            State::Found { recording: false } | State::Unrecorded(_) => {}
        }
    }

    /// Has this process's part of the trace exported although it was not sampled, as far as it is
    /// still there.
    pub fn keep(&self) {
        self.put(|| KeyValue::new(names::KEEP, true));
    }

    /// The headers that carry it to the next hop. A proxy takes [`TRACE_HEADERS`] off first.
    pub fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::with_capacity(2);
        self.each_header(|name, value| {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.push((HeaderName::from_static(name), value));
            }
        });
        headers
    }

    /// Puts it into a request's headers, in the place of whatever trace context they have.
    pub fn inject(&self, headers: &mut HeaderMap) {
        for name in &TRACE_HEADERS {
            headers.remove(name);
        }
        headers.extend(self.headers());
    }

    /// Puts it into an event's headers, in the place of whatever trace context they have.
    pub fn inject_event(&self, headers: &mut BTreeMap<String, String>) {
        for name in &TRACE_HEADERS {
            headers.remove(name.as_str());
        }
        self.each_header(|name, value| {
            headers.insert(name.to_owned(), value);
        });
    }

    fn each_header(&self, set: impl FnMut(&'static str, String)) {
        if let Some(origin) = Origin::of(&self.base) {
            self.with_ids(|ids| origin.codec.inject(ids, set));
        }
    }

    /// The value of the answer's `traceresponse` header (W3C Trace Context level 2); `None` for
    /// [`Span::none`].
    pub fn trace_response(&self) -> Option<HeaderValue> {
        let text = self.with_ids(|ids| {
            let sampled = u8::from(ids.is_sampled());
            ids.is_valid().then(|| format!("00-{}-{}-{sampled:02x}", ids.trace_id(), ids.span_id()))
        });
        HeaderValue::try_from(text?).ok()
    }

    /// Ends it now, as dropping it does.
    pub fn end(self) {}
}

impl Drop for Span {
    fn drop(&mut self) {
        // Not left to the context's last clone: a task that outlives the span may hold one.
        if let State::Recorded(record) = &self.state {
            record.end(opentelemetry::time::now());
        }
    }
}

/// The current trace's id as 32 hexadecimal digits.
pub fn current_trace_id() -> Option<String> {
    Context::map_current(|context| trace_id_in(context.span().span_context()))
}

fn trace_id_in(context: &SpanContext) -> Option<String> {
    context.is_valid().then(|| context.trace_id().to_string())
}

#[cfg(test)]
#[path = "span_tests.rs"]
mod tests;
