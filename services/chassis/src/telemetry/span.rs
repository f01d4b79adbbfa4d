//! Spans as Tourin makes them: by small functions that know OpenTelemetry's names.
//!
//! A [`Span`] is a handle: it can be sent and kept (in the gateway's request context, say), has
//! children, and ends when dropped. [`Span::run`] makes it current for a future, so that what is
//! deep below finds it by [`Span::current`], and log lines carry its trace id. A span that is not
//! recorded costs its ids; every call on it returns at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::context::{FutureExt, WithContext};
use opentelemetry::trace::{SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, ContextGuard, KeyValue, Value};

use super::calls::{DbCall, HttpCall, HttpRequest, Message};
use super::codec::{CallersDecision, Codec, TRACE_HEADERS, single};
use super::names;
use super::record::{Recorder, Start};
use super::subject::Subject;

/// Whose spans they are and how they are made; travels in the context, so that a child needs neither.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub service: &'static str,
    pub local: Option<SocketAddr>,
    pub recorder: Arc<Recorder>,
    pub codec: Arc<Codec>,
}

/// A service (of which one process may run several) as the start of spans.
#[derive(Debug, Clone)]
pub struct Service {
    base: Context,
}

impl Service {
    /// The service `name`, with the process's pipeline; see [`super::init`].
    pub fn new(name: &'static str) -> Self {
        super::pipeline().service(name)
    }

    pub(super) fn of(origin: Origin) -> Self {
        Self { base: Context::new().with_value(origin) }
    }

    /// The same with the address that it listens on, for Zipkin's local endpoint.
    #[must_use]
    pub fn listening(&self, address: SocketAddr) -> Self {
        Self::of(Origin { local: Some(address), ..self.origin().clone() })
    }

    fn origin(&self) -> &Origin {
        self.base.get::<Origin>().expect("set when it was made")
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.origin().service
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
        let parent = self.origin().codec.extract(&self.base, |name| single(headers, name));
        let parent = if request.unwatched && !parent.span().span_context().is_valid() {
            parent.with_value(CallersDecision::Unwatched)
        } else {
            parent
        };
        let start =
            Start { kind: SpanKind::Server, route: request.route, started: request.started };
        Span::start(&parent, &start, || request.subject())
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
        let get = |name: &str| headers.get(name).map(String::as_str);
        let parent = self.origin().codec.extract(&self.base, get);
        Span::start(&parent, &Start::of(kind), || message.subject(operation))
    }

    /// A trace that starts within: a timer's or an operator's work. `name` says what, in a few
    /// fixed words.
    pub fn work(&self, name: &'static str) -> Span {
        Span::start(&self.base, &Start::of(SpanKind::Internal), || Subject::Work(name))
    }
}

/// A span: see the module.
#[derive(Debug)]
pub struct Span {
    context: Context,
    recording: bool,
    /// Whether it is a span of its own, or stands in its unrecorded parent's place.
    own: bool,
}

impl Span {
    fn start(parent: &Context, start: &Start<'_>, subject: impl FnOnce() -> Subject) -> Self {
        let above = parent.span();
        if above.span_context().is_valid()
            && !above.span_context().is_remote()
            && !above.is_recording()
        {
            return Self { context: parent.clone(), recording: false, own: false };
        }
        let Some(origin) = parent.get::<Origin>() else {
            return Self { context: parent.clone(), recording: false, own: false };
        };
        let (context, recording) = origin.recorder.start((parent, origin), start, subject);
        Self { context, recording, own: true }
    }

    /// No span: where there is no request, as in tests. Its children are none either.
    pub fn none() -> Self {
        Self { context: Context::new(), recording: false, own: false }
    }

    /// What is current here, for children and annotations; dropping it ends nothing.
    pub fn current() -> Self {
        let context = Context::current();
        let recording = context.span().is_recording();
        Self { context, recording, own: false }
    }

    /// Whether anything set on it is kept.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// The trace's id as 32 hexadecimal digits; `None` for [`Span::none`].
    pub fn trace_id(&self) -> Option<String> {
        trace_id_of(&self.context)
    }

    /// Its context, for code that works with OpenTelemetry's API itself.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Runs a future with this span current.
    pub fn run<F: Future>(&self, future: F) -> WithContext<F> {
        future.with_context(self.context.clone())
    }

    /// Makes it current on this thread until the guard is dropped: for a stretch of code without
    /// an `await`, such as one of Pingora's callbacks that logs.
    #[must_use = "it is current as long as the guard lives"]
    pub fn enter(&self) -> ContextGuard {
        self.context.clone().attach()
    }

    /// A call to another service.
    pub fn http_client(&self, call: &HttpCall<'_>) -> Self {
        Self::start(&self.context, &Start::of(SpanKind::Client), || call.subject())
    }

    /// A call to a database or a cache.
    pub fn db(&self, call: &DbCall<'_>) -> Self {
        Self::start(&self.context, &Start::of(SpanKind::Client), || call.subject())
    }

    /// An event that is published within this span, without an outbox between.
    pub fn producer(&self, message: &Message<'_>) -> Self {
        Self::start(&self.context, &Start::of(SpanKind::Producer), || message.subject("send"))
    }

    /// A piece of work worth a line of its own in the waterfall.
    pub fn child(&self, name: &'static str) -> Self {
        Self::start(&self.context, &Start::of(SpanKind::Internal), || Subject::Work(name))
    }

    fn put(&self, name: &'static str, value: impl Into<Value>) {
        if self.recording {
            self.context.span().set_attribute(KeyValue::new(name, value));
        }
    }

    /// The answer's status. From 500 on it is a failure. A call that was answered 4xx has been answered:
    /// the gateway passes 401 and 404 on all day. A caller to whom it is a failure says so by
    /// [`Span::set_error`].
    pub fn set_status(&self, status: u16) {
        self.put(names::HTTP_STATUS, i64::from(status));
        if status >= 500 {
            self.set_error(&status.to_string());
        }
    }

    /// It failed. `reason` is a class of failure (`connect_refused`, `timeout`), not a message that
    /// may quote data; it becomes Zipkin's `error` tag.
    pub fn set_error(&self, reason: &str) {
        if self.recording {
            self.put(names::ERROR_TYPE, reason.to_owned());
            self.context.span().set_status(Status::error(reason.to_owned()));
        }
    }

    /// What became of an event: `applied`, `duplicate`, `dead_lettered`.
    pub fn set_outcome(&self, outcome: &'static str) {
        self.put(names::OUTCOME, outcome);
    }

    /// Something that happened at a moment: `retry`, `fall_back`, `breaker_open`, `dead_lettered`,
    /// `replayed`, with its facts.
    pub fn annotate(&self, event: &'static str, facts: &[(&'static str, &str)]) {
        if self.recording {
            let facts = facts.iter().map(|(name, value)| KeyValue::new(*name, (*value).to_owned()));
            self.context.span().add_event(event, facts.collect());
        }
    }

    /// Has this process's part of the trace exported although it was not sampled, as far as it is
    /// still there.
    pub fn keep(&self) {
        self.put(names::KEEP, true);
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
        if let Some(origin) = self.context.get::<Origin>() {
            origin.codec.inject(self.context.span().span_context(), set);
        }
    }

    /// The value of the answer's `traceresponse` header (W3C Trace Context level 2); `None` for
    /// [`Span::none`].
    pub fn trace_response(&self) -> Option<HeaderValue> {
        let span = self.context.span();
        let context = span.span_context();
        let text = format!(
            "00-{}-{}-{:02x}",
            context.trace_id(),
            context.span_id(),
            u8::from(context.is_sampled())
        );
        context.is_valid().then(|| HeaderValue::try_from(text).ok()).flatten()
    }

    /// Ends it now, as dropping it does.
    pub fn end(self) {}
}

impl Drop for Span {
    fn drop(&mut self) {
        // Not left to the context's last clone: a task that outlives the span may hold one.
        if self.own && self.recording {
            self.context.span().end();
        }
    }
}

/// The current trace's id as 32 hexadecimal digits.
pub fn current_trace_id() -> Option<String> {
    Context::map_current(trace_id_of)
}

fn trace_id_of(context: &Context) -> Option<String> {
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| context.trace_id().to_string())
}

#[cfg(test)]
#[path = "span_tests.rs"]
mod tests;
