//! The span handle of Tourin's code.

use std::collections::BTreeMap;
use std::future::Future;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::context::{FutureExt, WithContext};
use opentelemetry::trace::{SpanContext, Status, TraceContextExt, Tracer as _};
use opentelemetry::{Context, ContextGuard, KeyValue};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::calls::{DbCall, HttpCall};
use super::ids::{trace_text, traceparent};
use super::scope::Scope;
use super::{TRACE_HEADERS, names};

/// A handle on a span. It can be sent and kept, has children, and ends when dropped. [`Span::run`]
/// makes it current for a future: [`Span::current`] finds it there, `tracing`'s spans and those of
/// OpenTelemetry's API have it as their parent, and log lines carry its trace id. A span that is
/// not recorded costs its ids only.
#[derive(Debug)]
pub struct Span {
    context: Context,
    end: End,
}

/// What dropping the handle ends.
#[derive(Debug)]
enum End {
    /// Nothing: an additional handle.
    Nothing,
    /// The context's span, which OpenTelemetry's API began.
    Own,
    /// The context's span, which is `tracing`'s.
    Inner(tracing::Span),
}

impl Span {
    pub(super) fn found(context: Context) -> Self {
        Self { context, end: End::Nothing }
    }

    pub(super) fn own(context: Context) -> Self {
        Self { context, end: End::Own }
    }

    /// No span, as in tests without a request. Its children are empty too.
    pub fn none() -> Self {
        Self::found(Context::new())
    }

    /// The current span, for children and annotations. Dropping it ends nothing.
    pub fn current() -> Self {
        Self::found(Context::current())
    }

    /// An additional handle. Dropping it ends nothing.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self::found(self.context.clone())
    }

    /// A `tracing` span below this one. Without a subscriber, this span's ids are passed on.
    fn below(&self, span: impl FnOnce() -> tracing::Span) -> Self {
        if !self.is_recording() {
            return Self::found(self.context.clone());
        }
        let span = span();
        match span.set_parent(self.context.clone()) {
            Ok(()) => Self { context: span.context(), end: End::Inner(span) },
            // There is no layer for spans: the process did not call `telemetry::init`.
            Err(_) => {
                let ids = self.context.span().span_context().clone();
                Self::found(self.context.with_remote_span_context(ids))
            }
        }
    }

    /// A call to another service.
    pub fn http_client(&self, call: &HttpCall<'_>) -> Self {
        self.below(|| call.span())
    }

    /// A call to a database or a cache. Nearly every request makes one, so that this span is made by
    /// OpenTelemetry's SDK itself, at a fifth of the cost of one of `tracing`.
    pub fn db(&self, call: &DbCall<'_>) -> Self {
        let scope = Scope::of(&self.context).filter(|_| self.is_recording());
        let Some(scope) = scope else { return self.handle() };
        let span = scope.tracer.build_with_context(call.builder(), &self.context);
        Self::own(self.context.with_span(span))
    }

    /// A piece of work with its own line in the waterfall.
    pub fn child(&self, name: &'static str) -> Self {
        self.below(|| tracing::info_span!(parent: None, "part", otel.name = name))
    }

    /// Whether the span is recorded.
    pub fn is_recording(&self) -> bool {
        self.context.span().is_recording()
    }

    /// The trace's id as 32 hexadecimal digits; `None` for [`Span::none`].
    pub fn trace_id(&self) -> Option<String> {
        trace_id_in(self.context.span().span_context())
    }

    /// Its context, for code that uses OpenTelemetry's API.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Runs a future with this span current.
    pub fn run<F: Future>(&self, future: F) -> WithContext<F> {
        future.with_context(self.context.clone())
    }

    /// Makes it current on this thread until the guard is dropped: for code without an `await`,
    /// such as one of Pingora's callbacks that logs.
    #[must_use = "it is current as long as the guard lives"]
    pub fn enter(&self) -> ContextGuard {
        self.context.clone().attach()
    }

    /// Sets the response's status. 500 and above is a failure. 4xx on a call is not: the gateway
    /// passes on 401 and 404 regularly. A caller that treats it as a failure calls
    /// [`Span::set_error`].
    pub fn set_status(&self, status: u16) {
        self.set(names::HTTP_STATUS, i64::from(status));
        if status >= 500 {
            self.set_error(&status.to_string());
        }
    }

    /// Marks a failure. `reason` is a class of failure (`connect_refused`, `timeout`), not a
    /// message, which may quote data. It becomes Zipkin's `error` tag.
    pub fn set_error(&self, reason: &str) {
        self.set(names::ERROR_TYPE, reason.to_owned());
        self.context.span().set_status(Status::error(reason.to_owned()));
    }

    fn set(&self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        self.context.span().set_attribute(KeyValue::new(name, value));
    }

    /// Adds an annotation with its attributes: `retry`, `fall_back`, `breaker_open`,
    /// `dead_lettered`, `replayed`.
    pub fn annotate(&self, event: &'static str, facts: &[(&'static str, &str)]) {
        let facts = facts.iter().map(|(name, fact)| KeyValue::new(*name, (*fact).to_owned()));
        self.context.span().add_event(event, facts.collect());
    }

    /// The headers that carry it to the next hop. A proxy removes [`TRACE_HEADERS`] first.
    pub fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        Scope::of(&self.context)
            .map_or_else(Vec::new, |scope| scope.propagator.headers(&self.context))
    }

    /// Replaces the trace context in a request's headers.
    pub fn inject(&self, headers: &mut HeaderMap) {
        for name in TRACE_HEADERS.iter() {
            headers.remove(name);
        }
        headers.extend(self.headers());
    }

    /// Replaces the trace context in an event's headers.
    pub fn inject_event(&self, headers: &mut BTreeMap<String, String>) {
        for name in TRACE_HEADERS.iter() {
            headers.remove(name.as_str());
        }
        for (name, value) in self.headers() {
            if let Ok(value) = value.to_str() {
                headers.insert(name.to_string(), value.to_owned());
            }
        }
    }

    /// The value of the response's `traceresponse` header (W3C Trace Context level 2); `None` for
    /// [`Span::none`].
    pub fn trace_response(&self) -> Option<HeaderValue> {
        let span = self.context.span();
        let ids = span.span_context();
        if !ids.is_valid() {
            return None;
        }
        Some(traceparent(ids))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // A task that outlives the span may hold its context.
        match &self.end {
            End::Nothing => {}
            End::Own => self.context.span().end(),
            End::Inner(_closes_when_dropped) => {}
        }
    }
}

/// Runs an operation of a database or a cache within a client span. `class` returns a failure's
/// class as a fixed word.
///
/// The span is not current within the operation: an event that the operation puts into the outbox
/// belongs to the caller's span, not to the call's.
pub async fn db_call<T, E>(
    call: DbCall<'_>,
    class: impl FnOnce(&E) -> &'static str,
    operation: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    if !Context::map_current(|context| context.span().is_recording()) {
        return operation.await;
    }
    let span = Span::current().db(&call);
    let result = operation.await;
    if let Err(error) = &result {
        span.set_error(class(error));
    }
    result
}

/// The current trace's id as 32 hexadecimal digits.
pub fn current_trace_id() -> Option<String> {
    Context::map_current(|context| trace_id_in(context.span().span_context()))
}

fn trace_id_in(context: &SpanContext) -> Option<String> {
    context.is_valid().then(|| trace_text(context.trace_id()))
}

#[cfg(test)]
mod tests;
