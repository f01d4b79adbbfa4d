//! Spans as our own functions record them, from their start until they are exported or let go.
//!
//! `opentelemetry_sdk` builds a span's name and attributes as they are set, and moves it about by value;
//! for an unsampled request, whose spans are let go unless it failed or was slow, that was most of what
//! tracing cost the gateway (docs/decisions/0009-zipkin-reporter.md). A [`Record`] stays where it is until
//! the last that holds it is gone: a handle, a context, the processor or a queue. It keeps what was said,
//! and is read where it lies ([`Finished`]). [`ApiSpan`] makes it a span to OpenTelemetry's API, for whoever
//! finds it in the context.
//!
//! The way of a request that went well is short, and what only others need lies apart: the gateway's
//! processor waits for instructions more than for data (docs/benchmarks.md).

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use opentelemetry::trace::{Event, Span, SpanContext, SpanId, SpanKind, Status, TraceFlags};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SamplingDecision};

use super::calls::Text;
use super::codec::Above;
use super::finished::{Finished, Frame};
use super::names;
use super::processor::{Ended, Ending, Processor, Unsampled, Verdict};
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

    /// Starts a span of `origin`'s.
    pub fn start(
        origin: &Arc<Origin>,
        above: Above<'_>,
        start: &Start<'_>,
        subject: impl FnOnce() -> Subject,
    ) -> Started {
        let (recorder, span) = (&origin.recorder, above.span);
        let trace = span.map_or_else(|| recorder.ids.new_trace_id(), SpanContext::trace_id);
        let route = || start.route.map(Text::as_str);
        let decision = recorder.sampler.decide(above, trace, route);
        let context = SpanContext::new(
            trace,
            recorder.ids.new_span_id(),
            span.map_or(TraceFlags::default(), SpanContext::trace_flags)
                .with_sampled(decision == SamplingDecision::RecordAndSample),
            false,
            span.map_or_else(Default::default, |above| above.trace_state().clone()),
        );
        let processor = recorder.processor.as_ref();
        let Some(processor) = processor.filter(|_| decision != SamplingDecision::Drop) else {
            return Started::Unrecorded(context);
        };
        let is_entry = span.is_none_or(SpanContext::is_remote);
        if is_entry && !context.is_sampled() {
            processor.enter(trace);
        }
        Started::Recorded(Arc::new(Record {
            context,
            parent: span.map_or(SpanId::INVALID, SpanContext::span_id),
            is_entry,
            origin: origin.clone(),
            facts: Mutex::new(Facts {
                kind: start.kind.clone(),
                subject: subject(),
                started: start.started.unwrap_or_else(opentelemetry::time::now),
                ended: None,
                answered: None,
                is_wanted: false,
                details: None,
            }),
        }))
    }
}

/// What a start gives.
pub(super) enum Started {
    /// Ids to pass on.
    Unrecorded(SpanContext),
    Recorded(Arc<Record>),
}

/// A span, from its start.
pub(super) struct Record {
    pub context: SpanContext,
    pub parent: SpanId,
    /// Whether its parent, if it has one, is elsewhere.
    is_entry: bool,
    pub origin: Arc<Origin>,
    facts: Mutex<Facts>,
}

/// Without its origin, whose processor holds spans itself.
impl fmt::Debug for Record {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Record").field("context", &self.context).finish_non_exhaustive()
    }
}

/// What is known of a span.
struct Facts {
    kind: SpanKind,
    subject: Subject,
    started: SystemTime,
    /// From then on nothing changes.
    ended: Option<SystemTime>,
    /// The answer's status.
    answered: Option<u16>,
    /// Somebody asked to have it exported ([`names::KEEP`]).
    is_wanted: bool,
    /// Nearly every span has what is above and nothing else.
    details: Option<Box<Details>>,
}

#[derive(Default)]
struct Details {
    /// In the place of its subject's.
    name: Option<Cow<'static, str>>,
    attributes: Vec<KeyValue>,
    events: Vec<Event>,
    status: Status,
}

impl Facts {
    fn details(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }
}

impl Record {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells it something, unless it has ended.
    fn tell(&self, something: impl FnOnce(&mut Facts)) {
        let mut facts = self.facts();
        if facts.ended.is_none() {
            something(&mut facts);
        }
    }

    /// Has `reader` read it as exporters do, once it has ended. It is locked meanwhile: `reader` neither
    /// waits nor asks it anything.
    pub fn read<R>(&self, reader: impl FnOnce(&Finished<'_>) -> R) -> R {
        let facts = self.facts();
        let details = facts.details.as_deref();
        let name = details.and_then(|details| details.name.as_deref());
        let mut span = Finished::new(Frame {
            context: &self.context,
            parent: self.parent,
            kind: &facts.kind,
            name: name.map_or_else(|| facts.subject.name(), Cow::Borrowed),
            start: facts.started,
            end: facts.ended.unwrap_or(facts.started),
            events: details.map_or(&[], |details| &details.events),
            status: details.map_or(&Status::Unset, |details| &details.status),
        });
        span.service = Some(Cow::Borrowed(self.origin.service));
        span.local = self.origin.local;
        facts.subject.describe(&mut span);
        span.number(names::HTTP_STATUS, facts.answered.map(i64::from));
        span.attributes(details.map_or(&[], |details| &details.attributes));
        reader(&span)
    }

    pub fn set_answered(&self, status: u16) {
        self.tell(|facts| facts.answered = Some(status));
    }

    pub fn set_attribute(&self, attribute: KeyValue) {
        self.tell(|facts| match (attribute.key.as_str(), &attribute.value) {
            (names::KEEP, _) => facts.is_wanted = true,
            (names::HTTP_STATUS, Value::I64(status)) => {
                facts.answered = u16::try_from(*status).ok().or(facts.answered);
            }
            _ => {
                let attributes = &mut facts.details().attributes;
                if attributes.len() < MAX_ATTRIBUTES {
                    attributes.push(attribute);
                }
            }
        });
    }

    pub fn set_status(&self, status: Status) {
        self.tell(|facts| {
            let known = &mut facts.details().status;
            if status > *known {
                *known = status;
            }
        });
    }

    pub fn add_event(&self, event: Event) {
        self.tell(|facts| {
            let events = &mut facts.details().events;
            if events.len() < MAX_EVENTS {
                events.push(event);
            }
        });
    }

    /// Ends it, once.
    pub fn end(self: &Arc<Self>, at: SystemTime) {
        let Some(processor) = &self.origin.recorder.processor else { return };
        let mut facts = self.facts();
        if facts.ended.is_some() {
            return;
        }
        facts.ended = Some(at);
        if self.context.is_sampled() {
            drop(facts);
            return processor.queue(Ended::Own(self.clone()));
        }
        let verdict = processor.keep.verdict(&Ending {
            is_entry: self.is_entry,
            is_wanted: facts.is_wanted,
            repeats: false,
            status: facts.details.as_ref().map_or(&Status::Unset, |details| &details.status),
            start: facts.started,
            end: at,
        });
        if let Verdict::Keep(reason) = verdict {
            facts.details().attributes.push(reason.tag());
        }
        drop(facts);
        let ended = Unsampled {
            trace: self.context.trace_id(),
            id: self.context.span_id(),
            is_entry: self.is_entry,
            verdict,
        };
        processor.settle(ended, || Ended::Own(self.clone()));
    }
}

/// A record as a span of OpenTelemetry's API.
#[derive(Debug)]
pub(super) struct ApiSpan(pub Arc<Record>);

impl Span for ApiSpan {
    fn add_event_with_timestamp<T>(
        &mut self,
        name: T,
        timestamp: SystemTime,
        attributes: Vec<KeyValue>,
    ) where
        T: Into<Cow<'static, str>>,
    {
        self.0.add_event(Event::new(name, timestamp, attributes, 0));
    }

    fn span_context(&self) -> &SpanContext {
        &self.0.context
    }

    fn is_recording(&self) -> bool {
        self.0.facts().ended.is_none()
    }

    fn set_attribute(&mut self, attribute: KeyValue) {
        self.0.set_attribute(attribute);
    }

    fn set_status(&mut self, status: Status) {
        self.0.set_status(status);
    }

    fn update_name<T>(&mut self, new_name: T)
    where
        T: Into<Cow<'static, str>>,
    {
        self.0.tell(|facts| facts.details().name = Some(new_name.into()));
    }

    /// Nobody here links spans, and Zipkin has no place for it.
    fn add_link(&mut self, _: SpanContext, _: Vec<KeyValue>) {}

    fn end_with_timestamp(&mut self, timestamp: SystemTime) {
        self.0.end(timestamp);
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
