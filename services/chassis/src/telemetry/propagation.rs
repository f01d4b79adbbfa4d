//! Trace context in headers: W3C Trace Context by the SDK's propagator, B3 by `opentelemetry-zipkin`'s.
//!
//! This module adds what they lack: several formats at once, in the order W3C, B3 single, B3 multi,
//! of which the first valid one counts; a decision without ids and ids without a decision; several
//! lines of `tracestate`, of which only the invalid members are dropped; and strict ids.

#![allow(deprecated, reason = "decision 9 says until when the crate is used")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use clap::ValueEnum;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::text_map_propagator::FieldIter;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceFlags, TraceState};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_zipkin::{B3Encoding, Propagator as B3Propagator};

use super::ids::traceparent;

/// Longest `tracestate` that is passed on, in bytes; W3C asks for at least 512.
const MAX_TRACESTATE_BYTES: usize = 512;
/// Most of its members; W3C's own bound.
const MAX_TRACESTATE_MEMBERS: usize = 32;
/// When there are too many, members longer than this (bytes) are dropped first, as W3C asks.
const LONG_TRACESTATE_MEMBER_BYTES: usize = 128;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const B3: &str = "b3";
const B3_TRACE: &str = "x-b3-traceid";
const B3_SPAN: &str = "x-b3-spanid";
const B3_PARENT: &str = "x-b3-parentspanid";
const B3_SAMPLED: &str = "x-b3-sampled";
const B3_FLAGS: &str = "x-b3-flags";
const NAMES: [&str; 8] =
    [TRACEPARENT, TRACESTATE, B3, B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS];

/// The crate's flags of a B3 context without a decision, and of one with the debug flag.
const DEFERRED: TraceFlags = TraceFlags::new(0x02);
const DEBUG: TraceFlags = TraceFlags::new(0x04);

/// Every header of every format: what a proxy takes off before it puts its own on.
pub static TRACE_HEADERS: LazyLock<[HeaderName; 8]> =
    LazyLock::new(|| NAMES.map(HeaderName::from_static));

/// A format of trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Propagation {
    /// `traceparent` and `tracestate` (W3C Trace Context)
    W3c,
    /// `b3` in one header
    B3Single,
    /// `X-B3-*` in many headers
    B3,
}

impl Propagation {
    fn propagator(self) -> Box<dyn TextMapPropagator + Send + Sync> {
        match self {
            Self::W3c => Box::new(TraceContextPropagator::new()),
            Self::B3Single => Box::new(B3Propagator::with_encoding(B3Encoding::SingleHeader)),
            Self::B3 => Box::new(B3Propagator::with_encoding(B3Encoding::MultipleHeader)),
        }
    }

    /// A caller's decision without ids.
    fn decision(self, headers: &Incoming<'_>) -> Option<bool> {
        match self {
            Self::W3c => None,
            Self::B3Single => decision(headers.get(B3)?),
            Self::B3 if headers.get(B3_TRACE).is_some() || headers.get(B3_SPAN).is_some() => None,
            Self::B3 if headers.get(B3_FLAGS).is_some() => Some(true),
            Self::B3 => decision(headers.get(B3_SAMPLED)?),
        }
    }
}

fn decision(state: &str) -> Option<bool> {
    match state {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// A sampling decision in a context, where the flag of its span cannot express it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadDecision {
    /// By the caller: B3 with ids and without a decision, which this process makes.
    Deferred,
    /// By the caller: B3 without ids, a decision for the trace that starts here.
    ForNewTrace(bool),
    /// By this process: its ratio decides, because a trace starts here or its sender is not trusted.
    ByRatio,
    /// By this process: the work is not worth a trace of its own.
    Unsampled,
}

/// One format's reader and writer.
#[derive(Debug)]
struct Format {
    is: Propagation,
    by: Box<dyn TextMapPropagator + Send + Sync>,
}

/// Reads and writes trace context. Also OpenTelemetry's global propagator of the process.
#[derive(Debug)]
pub struct Propagator {
    accepted: Vec<Format>,
    sent: Vec<Format>,
}

impl Default for Propagator {
    fn default() -> Self {
        Self::new(&[Propagation::W3c, Propagation::B3Single, Propagation::B3], &[Propagation::W3c])
    }
}

impl Propagator {
    /// Accepts `accepted` and sends `sent`.
    pub fn new(accepted: &[Propagation], sent: &[Propagation]) -> Self {
        let of = |chosen: &[Propagation]| {
            let mut chosen = chosen.to_vec();
            chosen.sort_unstable();
            chosen.dedup();
            chosen.into_iter().map(|is| Format { is, by: is.propagator() }).collect()
        };
        Self { accepted: of(accepted), sent: of(sent) }
    }

    /// `base` with a request's trace context, or `base` itself if the request has none.
    pub(super) fn extract_headers(&self, base: &Context, headers: &HeaderMap) -> Context {
        if !headers.keys().any(|name| TRACE_HEADERS.contains(name)) {
            return base.clone();
        }
        let state = joined_tracestate(headers);
        self.extract_by(base, |name| match name {
            TRACESTATE => state.as_deref(),
            _ => single(headers, name),
        })
    }

    fn extract_by<'a>(&self, base: &Context, get: impl Fn(&str) -> Option<&'a str>) -> Context {
        let headers = Incoming::read(get);
        if headers.0.is_empty() {
            return base.clone();
        }
        for format in &self.accepted {
            let read = format.by.extract_with_context(&Context::new(), &headers.of(format.is));
            if read.has_active_span() {
                return with_caller(base, read.span().span_context());
            }
            if let Some(sampled) = format.is.decision(&headers) {
                return base.with_value(HeadDecision::ForNewTrace(sampled));
            }
        }
        base.clone()
    }

    /// The headers that carry a span of this process to the next hop.
    pub(super) fn headers_of(&self, ids: SpanContext) -> Vec<(HeaderName, HeaderValue)> {
        let is_plain = ids.is_valid() && ids.trace_state().header().is_empty();
        if is_plain && matches!(self.sent[..], [Format { is: Propagation::W3c, .. }]) {
            return vec![(HeaderName::from_static(TRACEPARENT), traceparent(&ids))];
        }
        self.headers(&Context::new().with_remote_span_context(ids))
    }

    /// The headers that carry `context` to the next hop.
    pub(super) fn headers(&self, context: &Context) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Outgoing(Vec::with_capacity(2));
        self.inject_context(context, &mut headers);
        headers.0
    }
}

/// `base` with the caller's span.
fn with_caller(base: &Context, span: &SpanContext) -> Context {
    let flags = span.trace_flags();
    let flag = |flag| flags & flag == flag;
    let context = base.with_remote_span_context(SpanContext::new(
        span.trace_id(),
        span.span_id(),
        TraceFlags::default().with_sampled(span.is_sampled() || flag(DEBUG)),
        true,
        span.trace_state().clone(),
    ));
    if flag(DEFERRED) { context.with_value(HeadDecision::Deferred) } else { context }
}

/// For code that uses only OpenTelemetry's API: it carries the same formats.
impl TextMapPropagator for Propagator {
    fn inject_context(&self, context: &Context, injector: &mut dyn Injector) {
        if !context.span().span_context().is_valid() {
            return;
        }
        for format in &self.sent {
            format.by.inject_context(context, &mut Filled(injector));
        }
    }

    fn extract_with_context(&self, context: &Context, extractor: &dyn Extractor) -> Context {
        self.extract_by(context, |name| extractor.get(name))
    }

    fn fields(&self) -> FieldIter<'_> {
        static FIELDS: LazyLock<[String; 8]> = LazyLock::new(|| NAMES.map(str::to_owned));
        FieldIter::new(&*FIELDS)
    }
}

/// Leaves out empty values: the SDK writes an empty `tracestate` too.
struct Filled<'a>(&'a mut dyn Injector);

impl Injector for Filled<'_> {
    fn set(&mut self, name: &str, value: String) {
        if !value.is_empty() {
            self.0.set(name, value);
        }
    }
}

struct Outgoing(Vec<(HeaderName, HeaderValue)>);

impl Injector for Outgoing {
    fn set(&mut self, name: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            self.0.push((name, value));
        }
    }
}

/// The valid ones among the headers [`NAMES`].
struct Incoming<'a>(BTreeMap<&'static str, Cow<'a, str>>);

impl<'a> Incoming<'a> {
    fn read(get: impl Fn(&str) -> Option<&'a str>) -> Self {
        let headers = NAMES.into_iter().filter_map(|name| {
            let value = get(name)?.trim();
            let value = match name {
                TRACESTATE => Cow::Owned(well_formed_tracestate(value)),
                // Any other value is ignored.
                B3_FLAGS if value != "1" => return None,
                B3_SAMPLED if decision(value).is_none() => return None,
                TRACEPARENT if !is_traceparent(value) => return None,
                B3 | B3_TRACE | B3_SPAN | B3_PARENT if !is_hex_and_dashes(value) => return None,
                _ => Cow::Borrowed(value),
            };
            Some((name, value))
        });
        Self(headers.collect())
    }

    /// The headers of one format: the B3 propagator reads both of its formats.
    fn of(&self, format: Propagation) -> OfFormat<'_> {
        OfFormat { headers: self, format }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(Cow::as_ref)
    }
}

struct OfFormat<'a> {
    headers: &'a Incoming<'a>,
    format: Propagation,
}

impl Extractor for OfFormat<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let format = match name {
            TRACEPARENT | TRACESTATE => Propagation::W3c,
            B3 => Propagation::B3Single,
            _ => Propagation::B3,
        };
        self.headers.get(name).filter(|_| format == self.format)
    }

    fn keys(&self) -> Vec<&str> {
        self.headers.0.keys().copied().filter(|name| self.get(name).is_some()).collect()
    }
}

fn is_hex_and_dashes(value: &str) -> bool {
    value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'))
        && !value.ends_with('-')
}

/// `VERSION-TRACE-SPAN-FLAGS`, to which a later version may add fields.
fn is_traceparent(value: &str) -> bool {
    let Some((ours, more)) = value.split_at_checked(55) else { return false };
    is_hex_and_dashes(ours)
        && ours.bytes().enumerate().all(|(at, byte)| (byte == b'-') == matches!(at, 2 | 35 | 52))
        && (more.is_empty() || (more.starts_with('-') && !ours.starts_with("00")))
}

/// A header's only value. Two different values contradict each other and count as absent.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

/// `tracestate`, the only list among these headers, over all its lines.
fn joined_tracestate(headers: &HeaderMap) -> Option<String> {
    let mut lines = headers.get_all(TRACESTATE).iter().peekable();
    lines.peek()?;
    let members = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let readable: Vec<_> = members.filter_map(|member| std::str::from_utf8(member).ok()).collect();
    Some(readable.join(","))
}

/// The valid members, up to the limits. Of two with one key the first counts.
fn well_formed_tracestate(text: &str) -> String {
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
    let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}={value}")).collect();
    members.join(",")
}

#[cfg(test)]
mod tests;
