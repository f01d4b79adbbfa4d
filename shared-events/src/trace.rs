//! The trace of an event.
//!
//! An event is part of the trace of its change:
//!
//! | where | what |
//! |---|---|
//! | appending to the outbox | the row's headers keep the current context |
//! | the relay | a producer span below that, until the event is confirmed or dead-lettered; the event carries this span's context |
//! | a consumer | a consumer span below the producer's for each attempt, until its outcome is settled |
//! | a consumer whose dependency is down | the first attempts, then those after 8, 16, 32 waits and so on, and the last one; the others start with `tourin.repeat`, end without `tourin.keep`, and the tracer may drop them |
//! | a dead letter and its replay | keep the producer's context: the next attempts are part of the same trace |
//! | events of a bulk, beyond what a trace can show ([`rest_of_bulk`]) | carry its trace's id and the mark [`BULK`]; their spans are exported only when the event is dead-lettered |
//! | commands, requests, replies | a producer span below the context of their headers, or the current one |
//!
//! Only OpenTelemetry's API is used. The process's tracer and propagator decide the formats of headers, the sampling
//! and the destination of spans. Without them, headers pass unchanged.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry::context::{FutureExt as _, WithContext};
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{
    SpanContext, SpanKind, Status, TraceContextExt as _, TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, ContextGuard, KeyValue, Value, global};

use crate::bus::{Delivery, MessagingSystem, PublishError, Publisher};
use crate::events::Outgoing;

/// The attribute names of event spans: OpenTelemetry's, and some of Tourin's.
mod names {
    pub(super) const SYSTEM: &str = "messaging.system";
    pub(super) const OPERATION: &str = "messaging.operation.name";
    pub(super) const DESTINATION: &str = "messaging.destination.name";
    pub(super) const MESSAGE_ID: &str = "messaging.message.id";
    pub(super) const ROUTING_KEY: &str = "messaging.rabbitmq.destination.routing_key";
    pub(super) const PEER: &str = "peer.service";
    pub(super) const SERVER: &str = "server.address";
    pub(super) const PORT: &str = "server.port";
    pub(super) const ATTEMPT: &str = "tourin.attempt";
    pub(super) const OUTCOME: &str = "tourin.outcome";
    pub(super) const WAITS: &str = "tourin.waits";
    pub(super) const AGE: &str = "tourin.age_ms";
    pub(super) const REPEAT: &str = "tourin.repeat";
    pub(super) const KEEP: &str = "tourin.keep";
    pub(super) const ERROR: &str = "error.type";
}

/// An event's headers: the transport's metadata.
type Headers = BTreeMap<String, String>;

struct Reading<'a>(&'a Headers);

impl Extractor for Reading<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

struct Writing<'a>(&'a mut Headers);

impl Injector for Writing<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }
}

/// A header that marks one of so many events that its spans would be of no use.
pub const BULK: &str = "x-tourin-bulk";

/// Marks the context of the rest of a bulk.
struct RestOfBulk;

/// Runs the rest of work that makes more events than a trace can show, such as the later batches of an import. Its
/// events carry the trace's id, and have no spans unless an event is dead-lettered.
pub fn rest_of_bulk<F: Future>(work: F) -> WithContext<F> {
    let context = Context::current();
    let here = context.span().span_context().clone();
    // Not remote: the work is part of a span that is not recorded.
    let unsampled = SpanContext::new(
        here.trace_id(),
        here.span_id(),
        here.trace_flags().with_sampled(false),
        false,
        here.trace_state().clone(),
    );
    work.with_context(context.with_remote_span_context(unsampled).with_value(RestOfBulk))
}

/// The current context as headers, for an event that is recorded later than its change. Empty when nothing is traced.
pub fn current() -> BTreeMap<String, String> {
    let mut headers = Headers::new();
    inject(&Context::current(), &mut headers);
    headers
}

/// An event's headers, with the current context unless they have one.
pub(crate) fn with_current(headers: &Headers) -> Cow<'_, Headers> {
    let context = Context::current();
    if !context.span().span_context().is_valid() || is_in(headers) {
        return Cow::Borrowed(headers);
    }
    let mut headers = headers.clone();
    inject(&context, &mut headers);
    Cow::Owned(headers)
}

/// Whether headers carry a context, in any of the process's formats.
fn is_in(headers: &Headers) -> bool {
    global::get_text_map_propagator(|format| format.fields().any(|name| headers.contains_key(name)))
}

/// The current context with the one that the headers carry, if any.
pub(crate) fn extract(headers: &Headers) -> Context {
    global::get_text_map_propagator(|format| format.extract(&Reading(headers)))
}

/// Replaces the context in the headers. Without its `tracestate`: that is up to 512 bytes of the client's
/// choice, and would be stored with every event.
fn inject(context: &Context, headers: &mut Headers) {
    if !context.span().span_context().is_valid() {
        return;
    }
    let span = context.span();
    let here = span.span_context();
    let goes_on_sampled =
        context.get::<Sampled>().is_some_and(|Sampled(trace)| *trace == here.trace_id());
    let flags = here.trace_flags();
    let flags = if goes_on_sampled { flags.with_sampled(true) } else { flags };
    let state = TraceState::default();
    let plain = SpanContext::new(here.trace_id(), here.span_id(), flags, true, state);
    let context = context.with_remote_span_context(plain);
    global::get_text_map_propagator(|format| {
        for name in format.fields() {
            headers.remove(name);
        }
        format.inject_context(&context, &mut Writing(headers));
    });
    if context.get::<RestOfBulk>().is_some() {
        headers.insert(BULK.to_owned(), "1".to_owned());
    }
}

/// In the context of an attempt whose span may be left out: this trace is sampled, and an event that continues it must
/// say so.
struct Sampled(TraceId);

/// A span of an event, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct EventSpan {
    context: Context,
    recording: bool,
    /// It repeats earlier spans, as far as is known.
    repeats: bool,
    /// It belongs to one event of a bulk.
    of_bulk: bool,
}

/// The first waits for a dependency that have a span each. Later, only waits whose number is a power of two have one.
/// An outage of an hour is about three thousand waits.
const WAITS_SEEN: u32 = 4;

impl EventSpan {
    /// Starts a span with attributes by which the tracer decides what to do with it.
    fn start_with(
        attributes: Vec<KeyValue>,
        parent: &Context,
        kind: SpanKind,
        operation: &'static str,
        at: &str,
    ) -> Self {
        let tracer = global::tracer("tourin");
        let builder = tracer.span_builder(operation).with_kind(kind).with_attributes(attributes);
        let span = builder.start_with_context(&tracer, parent);
        let recording = opentelemetry::trace::Span::is_recording(&span);
        let this =
            Self { context: parent.with_span(span), recording, repeats: false, of_bulk: false };
        if recording {
            this.context.span().update_name(format!("{operation} {at}"));
            this.set(names::OPERATION, operation);
            this.set(names::DESTINATION, at.to_owned());
        }
        this
    }

    /// A producer span, below the context that the event's headers carry.
    pub(crate) fn producer(event: &Outgoing, messaging_system: &MessagingSystem) -> Self {
        Self::producer_below(&extract(&event.headers), event, messaging_system)
    }

    /// A producer span below a known context.
    pub(crate) fn producer_below(
        parent: &Context,
        event: &Outgoing,
        messaging_system: &MessagingSystem,
    ) -> Self {
        let of_bulk = event.headers.contains_key(BULK);
        let repeats = of_bulk.then(|| KeyValue::new(names::REPEAT, true));
        let attributes = repeats.into_iter().collect();
        let mut span =
            Self::start_with(attributes, parent, SpanKind::Producer, "send", &event.exchange);
        span.of_bulk = of_bulk;
        span.describe(messaging_system, &event.routing_key);
        span.identify(&event.envelope.id);
        span
    }

    /// A delivery's attempt by the consumer of `queue`.
    pub(crate) fn consumer(
        delivery: &Delivery,
        messaging_system: &MessagingSystem,
        queue: &str,
    ) -> Self {
        let Delivery { headers, routing_key, attempt, waits, .. } = delivery;
        let repeats = *waits > WAITS_SEEN && !waits.is_power_of_two();
        let of_bulk = headers.contains_key(BULK);
        let mut parent = extract(headers);
        let mut attributes = Vec::new();
        if repeats || of_bulk {
            attributes.push(KeyValue::new(names::REPEAT, true));
            let above = parent.span().span_context().clone();
            if above.is_sampled() {
                parent = parent.with_value(Sampled(above.trace_id()));
            }
        }
        let mut span = Self::start_with(attributes, &parent, SpanKind::Consumer, "process", queue);
        span.repeats = repeats;
        span.of_bulk = of_bulk;
        span.describe(messaging_system, routing_key);
        span.set(names::ATTEMPT, i64::from(*attempt));
        if *waits > 0 {
            span.set(names::WAITS, i64::from(*waits));
        }
        span
    }

    /// The event is dead-lettered, which is worth a span even in a bulk.
    pub(crate) fn keep_dead_letter(&self) {
        if self.of_bulk {
            self.set(names::KEEP, true);
        }
    }

    /// The event keeps waiting. Any other end of an attempt is worth a span.
    pub(crate) fn end_while_waiting(mut self) {
        if self.recording {
            self.context.span().end();
            self.recording = false;
        }
    }

    fn describe(&self, messaging_system: &MessagingSystem, routing_key: &str) {
        if self.recording {
            self.set(names::SYSTEM, messaging_system.system);
            self.set(names::PEER, messaging_system.peer);
            self.set(names::ROUTING_KEY, routing_key.to_owned());
            if let Some((host, port)) = &messaging_system.server {
                self.set(names::SERVER, host.clone());
                self.set(names::PORT, i64::from(*port));
            }
        }
    }

    /// Sets the event's id.
    pub(crate) fn identify(&self, event: &uuid::Uuid) {
        if self.recording {
            self.set(names::MESSAGE_ID, event.to_string());
        }
    }

    /// Sets the event's age at this attempt, which includes its wait for others of its key.
    pub(crate) fn age(&self, age: Duration) {
        self.set(names::AGE, i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    }

    fn set(&self, name: &'static str, value: impl Into<Value>) {
        if self.recording {
            self.context.span().set_attribute(KeyValue::new(name, value));
        }
    }

    /// Sets the outcome, a fixed word.
    pub(crate) fn outcome(&self, outcome: &'static str) {
        self.set(names::OUTCOME, outcome);
    }

    /// Marks a failure. `class` is a class of failure, never a message, which may quote data.
    pub(crate) fn fail(&self, class: &'static str) {
        if self.recording {
            self.set(names::ERROR, class);
            self.context.span().set_status(Status::error(class));
        }
    }

    /// Adds an annotation with a fact.
    pub(crate) fn annotate(&self, event: &'static str, fact: &'static str, value: impl ToString) {
        if self.recording {
            let fact = KeyValue::new(fact, value.to_string());
            self.context.span().add_event(event, vec![fact]);
        }
    }

    /// Annotates a retry: its delay, and a fixed word as its reason.
    pub(crate) fn retry(&self, reason: &'static str, after: Duration) {
        if self.recording {
            let after = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
            let facts = vec![KeyValue::new("reason", reason), KeyValue::new("after_ms", after)];
            self.context.span().add_event("retry", facts);
        }
    }

    /// The context for work within the span.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// Makes it current on this thread for code without an await, such as a log line.
    pub(crate) fn enter(&self) -> ContextGuard {
        self.context.clone().attach()
    }

    /// Puts this span into the event's headers.
    pub(crate) fn carry(&self, event: &mut Outgoing) {
        inject(&self.context, &mut event.headers);
    }
}

impl Drop for EventSpan {
    fn drop(&mut self) {
        // Do not leave the end to the context's last clone: spawned work may outlive the attempt.
        if self.recording {
            if self.repeats && !self.of_bulk {
                self.set(names::KEEP, true);
            }
            self.context.span().end();
        }
    }
}

/// The class of a failed publish.
pub(crate) fn class_of(error: &PublishError) -> &'static str {
    match error {
        PublishError::Unroutable => "unroutable",
        PublishError::Rejected(_) => "rejected",
        PublishError::Invalid(_) => "invalid",
        PublishError::Unavailable(_) => "unavailable",
    }
}

/// Publishes one event without an outbox, within a producer span below `parent`.
pub(crate) async fn send_below(
    parent: &Context,
    publisher: &dyn Publisher,
    mut event: Outgoing,
) -> Result<(), PublishError> {
    let span = EventSpan::producer_below(parent, &event, &publisher.messaging_system());
    span.carry(&mut event);
    let missing = || Err(PublishError::Unavailable("the bus gave no result".to_owned()));
    let results = publisher.publish(vec![event]).await;
    let result = results.into_iter().next().unwrap_or_else(missing);
    if let Err(error) = &result {
        span.fail(class_of(error));
    }
    result
}

/// Like [`send_below`], below the context in the event's headers, or the current one.
pub(crate) async fn send(publisher: &dyn Publisher, event: Outgoing) -> Result<(), PublishError> {
    send_below(&extract(&event.headers), publisher, event).await
}
