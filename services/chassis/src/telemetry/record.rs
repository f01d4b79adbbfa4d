//! Spans under way, as our own functions record them.
//!
//! `opentelemetry_sdk` builds a span's name and attributes as they are set, and moves it about by
//! value; for an unsampled request, whose spans are let go unless it failed or was slow, that was
//! most of what tracing cost the gateway (docs/decisions/0009-zipkin-reporter.md). A [`Record`]
//! keeps what was said, and exporters read it there ([`Finished`]). It is a span to OpenTelemetry's
//! API, so that whoever finds it in the context can use it as any other.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::trace::{
    Event, Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SamplingDecision};

use super::calls::Text;
use super::finished::{Finished, Frame};
use super::names;
use super::processor::{Keep, Processor};
use super::sampler::Sampler;
use super::span::Origin;
use super::subject::Subject;

/// Attributes that are kept of one span, besides those of its subject.
pub(super) const MAX_ATTRIBUTES: usize = 32;
/// Annotations that are kept of one span.
pub(super) const MAX_EVENTS: usize = 64;

/// What a span starts with.
pub(super) struct Start<'a> {
    pub kind: SpanKind,
    /// For sampling by route.
    pub route: Option<Text<'a>>,
    /// When it began, if not now.
    pub started: Option<SystemTime>,
}

impl Start<'_> {
    /// Now, and not on a route.
    pub fn of(kind: SpanKind) -> Self {
        Self { kind, route: None, started: None }
    }
}

/// Makes spans.
#[derive(Debug)]
pub(super) struct Recorder {
    sampler: Sampler,
    ids: RandomIdGenerator,
    /// `None` where nothing is exported: then there are ids and no records.
    processor: Option<Arc<Processor>>,
}

impl Recorder {
    pub fn new(sampler: Sampler, processor: Option<Arc<Processor>>) -> Self {
        Self { sampler, ids: RandomIdGenerator::default(), processor }
    }

    /// `parent` with a new span of `origin`'s, and whether it is recorded.
    pub fn start(
        &self,
        (parent, origin): (&Context, &Origin),
        start: &Start<'_>,
        subject: impl FnOnce() -> Subject,
    ) -> (Context, bool) {
        let above = parent.span();
        let above = Some(above.span_context()).filter(|above| above.is_valid());
        let trace = above.map_or_else(|| self.ids.new_trace_id(), SpanContext::trace_id);
        let decision = self.sampler.decide(parent, trace, || start.route.map(Text::as_str));
        let context = SpanContext::new(
            trace,
            self.ids.new_span_id(),
            above
                .map_or(TraceFlags::default(), SpanContext::trace_flags)
                .with_sampled(decision == SamplingDecision::RecordAndSample),
            false,
            above.map_or_else(Default::default, |above| above.trace_state().clone()),
        );
        let processor = self.processor.as_ref().filter(|_| decision != SamplingDecision::Drop);
        let Some(processor) = processor else {
            return (parent.with_remote_span_context(context), false);
        };
        let is_entry = above.is_none_or(SpanContext::is_remote);
        if is_entry && !context.is_sampled() {
            processor.enter(trace);
        }
        let facts = Facts {
            context: context.clone(),
            parent: above.map_or(SpanId::INVALID, SpanContext::span_id),
            is_entry,
            kind: start.kind.clone(),
            service: origin.service,
            local: origin.local,
            subject: subject(),
            name: None,
            started: start.started.unwrap_or_else(opentelemetry::time::now),
            ended: None,
            answered: None,
            attributes: Vec::new(),
            events: Vec::new(),
            status: Status::Unset,
        };
        let processor = processor.clone();
        (parent.with_span(Record { context, facts: Some(Box::new(facts)), processor }), true)
    }
}

/// A span under way.
#[derive(Debug)]
pub(super) struct Record {
    context: SpanContext,
    /// `None` once it has ended.
    facts: Option<Box<Facts>>,
    processor: Arc<Processor>,
}

/// What is known of a span.
#[derive(Debug)]
pub(super) struct Facts {
    pub context: SpanContext,
    pub parent: SpanId,
    /// Whether its parent, if it has one, is elsewhere.
    pub is_entry: bool,
    kind: SpanKind,
    service: &'static str,
    local: Option<SocketAddr>,
    subject: Subject,
    /// In the place of its subject's.
    name: Option<Cow<'static, str>>,
    started: SystemTime,
    ended: Option<SystemTime>,
    /// The answer's status. Nearly every span has it and most have nothing else: it needs no list.
    answered: Option<i64>,
    pub attributes: Vec<KeyValue>,
    events: Vec<Event>,
    status: Status,
}

impl Facts {
    /// Why it is exported although it was not sampled, by how it ended.
    pub fn reason_to_keep(&self, keep: Keep) -> Option<&'static str> {
        keep.reason(&self.status, self.started, self.ended.unwrap_or(self.started))
    }

    /// As exporters read it.
    pub fn finished(&self) -> Finished<'_> {
        let mut span = Finished::new(Frame {
            context: &self.context,
            parent: self.parent,
            kind: &self.kind,
            name: self.name.as_deref().map_or_else(|| self.subject.name(), Cow::Borrowed),
            start: self.started,
            end: self.ended.unwrap_or(self.started),
            events: &self.events,
            status: &self.status,
        });
        span.service = Some(Cow::Borrowed(self.service));
        span.local = self.local;
        self.subject.describe(&mut span);
        span.number(names::HTTP_STATUS, self.answered);
        span.attributes(&self.attributes);
        span
    }
}

impl Span for Record {
    fn add_event_with_timestamp<T>(
        &mut self,
        name: T,
        timestamp: SystemTime,
        attributes: Vec<KeyValue>,
    ) where
        T: Into<Cow<'static, str>>,
    {
        if let Some(facts) = &mut self.facts
            && facts.events.len() < MAX_EVENTS
        {
            facts.events.push(Event::new(name, timestamp, attributes, 0));
        }
    }

    fn span_context(&self) -> &SpanContext {
        &self.context
    }

    fn is_recording(&self) -> bool {
        self.facts.is_some()
    }

    fn set_attribute(&mut self, attribute: KeyValue) {
        let Some(facts) = &mut self.facts else { return };
        match attribute.value {
            Value::I64(status) if attribute.key.as_str() == names::HTTP_STATUS => {
                facts.answered = Some(status);
            }
            _ if facts.attributes.len() < MAX_ATTRIBUTES => facts.attributes.push(attribute),
            _ => {}
        }
    }

    fn set_status(&mut self, status: Status) {
        if let Some(facts) = &mut self.facts
            && status > facts.status
        {
            facts.status = status;
        }
    }

    fn update_name<T>(&mut self, new_name: T)
    where
        T: Into<Cow<'static, str>>,
    {
        if let Some(facts) = &mut self.facts {
            facts.name = Some(new_name.into());
        }
    }

    /// Nobody here links spans, and Zipkin has no place for it.
    fn add_link(&mut self, _: SpanContext, _: Vec<KeyValue>) {}

    fn end_with_timestamp(&mut self, timestamp: SystemTime) {
        if let Some(mut facts) = self.facts.take() {
            facts.ended = Some(timestamp);
            self.processor.ended(facts);
        }
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
