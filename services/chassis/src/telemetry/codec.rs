//! Trace context on the wire: W3C Trace Context and B3, single and multi.
//!
//! Everything that is configured to be accepted is read, in the order W3C, B3 single, B3 multi; what
//! is not well-formed is as if it were not there. What is sent is chosen apart from that.

use std::borrow::Cow;

use clap::ValueEnum;
use http::{HeaderMap, HeaderName};
use opentelemetry::Context;
use opentelemetry::propagation::text_map_propagator::FieldIter;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};

/// Longest `tracestate` that is passed on, in bytes; W3C asks for at least 512.
const MAX_TRACESTATE_BYTES: usize = 512;
/// Most of its members; W3C's own bound.
const MAX_TRACESTATE_MEMBERS: usize = 32;
/// Where there is too much of it, members longer than this (bytes) go first, as W3C asks.
const LONG_TRACESTATE_MEMBER_BYTES: usize = 128;

const TRACEPARENT: &str = "traceparent";
pub(super) const TRACESTATE: &str = "tracestate";
const B3: &str = "b3";
const B3_TRACE: &str = "x-b3-traceid";
const B3_SPAN: &str = "x-b3-spanid";
const B3_PARENT: &str = "x-b3-parentspanid";
const B3_SAMPLED: &str = "x-b3-sampled";
const B3_FLAGS: &str = "x-b3-flags";
const NAMES: [&str; 8] =
    [TRACEPARENT, TRACESTATE, B3, B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS];

/// Every header of every format: what a proxy takes off before it puts its own on.
pub const TRACE_HEADERS: [HeaderName; 8] = [
    HeaderName::from_static(TRACEPARENT),
    HeaderName::from_static(TRACESTATE),
    HeaderName::from_static(B3),
    HeaderName::from_static(B3_TRACE),
    HeaderName::from_static(B3_SPAN),
    HeaderName::from_static(B3_PARENT),
    HeaderName::from_static(B3_SAMPLED),
    HeaderName::from_static(B3_FLAGS),
];

/// A format of trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Propagation {
    /// `traceparent` and `tracestate` (W3C Trace Context)
    W3c,
    /// `b3` in one header
    B3Single,
    /// `X-B3-*` in many headers
    B3,
}

/// What the caller decided about sampling, where the flag in the trace context cannot say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallersDecision {
    /// B3 with ids and without a decision: ours to take.
    Deferred,
    /// B3 without ids: a decision for the trace that starts here.
    ForNewTrace(bool),
    /// Not the caller's but ours: what starts here is not worth a trace of its own.
    Unwatched,
}

/// Who calls, as far as traces go.
#[derive(Debug, Default)]
pub(super) struct Caller {
    /// The span that it calls from.
    pub context: Option<SpanContext>,
    /// What it says beyond that.
    pub decision: Option<CallersDecision>,
}

impl Caller {
    pub fn above(&self) -> Above<'_> {
        Above { span: self.context.as_ref(), decision: self.decision }
    }
}

/// What a span starts below.
#[derive(Debug, Clone, Copy)]
pub(super) struct Above<'a> {
    /// A valid one, here or elsewhere; `None` where a trace starts.
    pub span: Option<&'a SpanContext>,
    /// What a caller decided and `span` cannot say.
    pub decision: Option<CallersDecision>,
}

#[derive(Debug, PartialEq)]
enum Parsed {
    Parent { context: SpanContext, deferred: bool },
    Decision(bool),
}

/// Reads and writes trace context; also OpenTelemetry's global propagator of the process.
#[derive(Debug, Clone)]
pub struct Codec {
    accepted: Vec<Propagation>,
    sent: Vec<Propagation>,
}

impl Default for Codec {
    fn default() -> Self {
        Self::new(&[Propagation::W3c, Propagation::B3Single, Propagation::B3], &[Propagation::W3c])
    }
}

impl Codec {
    /// Accepts `accepted` and sends `sent`.
    pub fn new(accepted: &[Propagation], sent: &[Propagation]) -> Self {
        let order = [Propagation::W3c, Propagation::B3Single, Propagation::B3];
        let of = |chosen: &[Propagation]| {
            order.into_iter().filter(|format| chosen.contains(format)).collect()
        };
        Self { accepted: of(accepted), sent: of(sent) }
    }

    /// What the caller says of its trace.
    pub(super) fn caller<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> Caller {
        let parsed = self.accepted.iter().find_map(|format| match format {
            Propagation::W3c => w3c(get(TRACEPARENT)?, get(TRACESTATE)),
            Propagation::B3Single => b3_single(get(B3)?),
            Propagation::B3 => b3_multi(&get),
        });
        match parsed {
            Some(Parsed::Parent { context, deferred }) => Caller {
                context: Some(context),
                decision: deferred.then_some(CallersDecision::Deferred),
            },
            Some(Parsed::Decision(sampled)) => {
                Caller { context: None, decision: Some(CallersDecision::ForNewTrace(sampled)) }
            }
            None => Caller::default(),
        }
    }

    /// `base` with the caller's trace context, or `base` itself when there is none to read.
    pub fn extract<'a>(&self, base: &Context, get: impl Fn(&str) -> Option<&'a str>) -> Context {
        let Caller { context, decision } = self.caller(get);
        let base = match context {
            Some(above) => base.with_remote_span_context(above),
            None => base.clone(),
        };
        match decision {
            Some(decision) => base.with_value(decision),
            None => base,
        }
    }

    /// Puts `context` down in the formats that are sent.
    pub fn inject(&self, context: &SpanContext, mut set: impl FnMut(&'static str, String)) {
        if !context.is_valid() {
            return;
        }
        let (trace, span) = (context.trace_id(), context.span_id());
        let sampled = u8::from(context.is_sampled());
        for format in &self.sent {
            match format {
                Propagation::W3c => {
                    set(TRACEPARENT, format!("00-{trace:032x}-{span:016x}-{sampled:02x}"));
                    let state = context.trace_state().header();
                    if !state.is_empty() {
                        set(TRACESTATE, state);
                    }
                }
                Propagation::B3Single => set(B3, format!("{trace:032x}-{span:016x}-{sampled}")),
                Propagation::B3 => {
                    set(B3_TRACE, format!("{trace:032x}"));
                    set(B3_SPAN, format!("{span:016x}"));
                    set(B3_SAMPLED, sampled.to_string());
                }
            }
        }
    }
}

/// One value of a header. Two that differ contradict each other and count as none.
pub(crate) fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

/// `tracestate`, the one of these headers that is a list, over all its lines.
pub(crate) fn tracestate(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    let mut lines = headers.get_all(TRACESTATE).iter();
    let first = lines.next()?;
    if let (None, Ok(only)) = (lines.next(), first.to_str()) {
        return Some(only.into());
    }
    let lines = headers.get_all(TRACESTATE).iter();
    let members = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let readable: Vec<_> = members.filter_map(|member| std::str::from_utf8(member).ok()).collect();
    Some(readable.join(",").into())
}

/// The members that are well-formed, as many as are passed on. Of two with one key the first counts.
fn trace_state(text: &str) -> TraceState {
    let mut members: Vec<(&str, &str)> = Vec::new();
    for member in text.split(',').map(str::trim) {
        let Some((key, value)) = member.split_once('=') else { continue };
        let is_known = members.iter().any(|(known, _)| *known == key);
        let is_plain = !key.is_empty() && value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if !is_known && is_plain && TraceState::from_key_value([(key, value)]).is_ok() {
            members.push((key, value));
        }
        if members.len() == MAX_TRACESTATE_MEMBERS {
            break;
        }
    }
    let is_too_long = |members: &[(&str, &str)]| {
        // With `=` and a comma each; the last one has no comma.
        let length: usize = members.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
        length > MAX_TRACESTATE_BYTES + 1
    };
    if is_too_long(&members) {
        members.retain(|(key, value)| key.len() + value.len() < LONG_TRACESTATE_MEMBER_BYTES);
    }
    while is_too_long(&members) {
        members.pop();
    }
    TraceState::from_key_value(members).unwrap_or_default()
}

fn hex(text: &str, digits: &[usize]) -> Option<u128> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !digits.contains(&text.len()) || !text.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

fn ids(trace: &str, trace_digits: &[usize], span: &str) -> Option<(TraceId, SpanId)> {
    let trace = TraceId::from(hex(trace, trace_digits)?);
    let span = SpanId::from(u64::try_from(hex(span, &[16])?).ok()?);
    (trace != TraceId::INVALID && span != SpanId::INVALID).then_some((trace, span))
}

fn parent((trace, span): (TraceId, SpanId), sampled: Option<bool>, state: TraceState) -> Parsed {
    let flags = TraceFlags::default().with_sampled(sampled.unwrap_or_default());
    Parsed::Parent {
        context: SpanContext::new(trace, span, flags, true, state),
        deferred: sampled.is_none(),
    }
}

fn w3c(traceparent: &str, tracestate: Option<&str>) -> Option<Parsed> {
    let mut parts = traceparent.trim().split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let version = hex(version, &[2])?;
    // A later version may have more parts; ours has not, and 255 is none.
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let sampled = hex(flags, &[2])? & 1 == 1;
    let state = tracestate.map(trace_state).unwrap_or_default();
    Some(parent(ids(trace, &[32], span)?, Some(sampled), state))
}

fn b3_decision(state: &str) -> Option<bool> {
    match state {
        "1" | "d" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

fn b3_single(value: &str) -> Option<Parsed> {
    let value = value.trim();
    if let Some(sampled) = b3_decision(value) {
        return Some(Parsed::Decision(sampled));
    }
    let mut parts = value.split('-');
    let ids = ids(parts.next()?, &[16, 32], parts.next()?)?;
    let sampled = match parts.next() {
        Some(state) => Some(b3_decision(state)?),
        None => None,
    };
    if let Some(parent) = parts.next() {
        hex(parent, &[16])?;
    }
    parts.next().is_none().then(|| parent(ids, sampled, TraceState::default()))
}

fn b3_multi<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Option<Parsed> {
    let sampled = match (get(B3_FLAGS), get(B3_SAMPLED)) {
        (Some("1"), _) => Some(true),
        (_, Some("1" | "true")) => Some(true),
        (_, Some("0" | "false")) => Some(false),
        _ => None,
    };
    match (get(B3_TRACE), get(B3_SPAN)) {
        (Some(trace), Some(span)) => {
            Some(parent(ids(trace, &[16, 32], span)?, sampled, TraceState::default()))
        }
        (None, None) => sampled.map(Parsed::Decision),
        _ => None,
    }
}

/// So that code which knows only OpenTelemetry's API carries the same formats.
impl TextMapPropagator for Codec {
    fn inject_context(&self, cx: &Context, injector: &mut dyn Injector) {
        self.inject(cx.span().span_context(), |name, value| injector.set(name, value));
    }

    fn extract_with_context(&self, cx: &Context, extractor: &dyn Extractor) -> Context {
        self.extract(cx, |name| extractor.get(name))
    }

    fn fields(&self) -> FieldIter<'_> {
        static FIELDS: std::sync::LazyLock<[String; 8]> =
            std::sync::LazyLock::new(|| NAMES.map(str::to_owned));
        FieldIter::new(&*FIELDS)
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
