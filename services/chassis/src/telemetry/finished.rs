//! A span that has ended, as exporters read it: borrowed from what was recorded, so that no span data is
//! made of it on the way to the bytes that are sent.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;

use super::{names, privacy};

/// See the module.
#[derive(Debug)]
pub(super) struct Finished<'a> {
    pub frame: Frame<'a>,
    /// Whose span it is.
    pub service: Option<Cow<'a, str>>,
    /// Where that listens.
    pub local: Option<SocketAddr>,
    /// Who is on the other side.
    pub peer: Option<Cow<'a, str>>,
    /// The engine or the broker, where a foreign span names that and no peer.
    pub system: Option<Cow<'a, str>>,
    pub peer_ip: Option<IpAddr>,
    pub peer_port: Option<u16>,
    /// What leaves the process of its attributes, each name once.
    pub tags: Vec<(&'a str, TagValue<'a>)>,
}

/// What every span has, whatever it stands for.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub context: &'a SpanContext,
    /// Invalid for a root.
    pub parent: SpanId,
    pub kind: &'a SpanKind,
    pub name: Cow<'a, str>,
    pub start: SystemTime,
    pub end: SystemTime,
    pub events: &'a [Event],
    pub status: &'a Status,
}

impl Frame<'_> {
    /// `None` for a root.
    pub fn parent(&self) -> Option<SpanId> {
        Some(self.parent).filter(|parent| *parent != SpanId::INVALID)
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<&str> {
        match self.status {
            Status::Error { description } if description.is_empty() => Some("failed"),
            Status::Error { description } => Some(description),
            _ => None,
        }
    }
}

/// The value of a tag, not yet cleaned by [`privacy::clean`].
#[derive(Debug)]
pub(super) enum TagValue<'a> {
    Text(Cow<'a, str>),
    Number(i64),
    Ip(IpAddr),
}

/// What goes out.
impl fmt::Display for TagValue<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => to.write_str(&privacy::clean(text)),
            Self::Number(number) => number.fmt(to),
            Self::Ip(ip) => ip.fmt(to),
        }
    }
}

impl<'a> Finished<'a> {
    /// Of code that knows OpenTelemetry's API alone.
    pub fn of_foreign(data: &'a SpanData) -> Self {
        let mut span = Self::new(Frame {
            context: &data.span_context,
            parent: data.parent_span_id,
            kind: &data.span_kind,
            name: Cow::Borrowed(&data.name),
            start: data.start_time,
            end: data.end_time,
            events: &data.events.events,
            status: &data.status,
        });
        span.attributes(&data.attributes);
        span
    }

    /// A span about which nothing more is known yet.
    pub fn new(frame: Frame<'a>) -> Self {
        Self {
            frame,
            service: None,
            local: None,
            peer: None,
            system: None,
            peer_ip: None,
            peer_port: None,
            // A subject has eight at most, and little is said besides.
            tags: Vec::with_capacity(12),
        }
    }

    /// Takes in what was set on it.
    pub fn attributes(&mut self, attributes: &'a [KeyValue]) {
        for KeyValue { key, value, .. } in attributes {
            let text = || value.as_str();
            match key.as_str() {
                names::SERVICE => self.service = Some(text()),
                names::LOCAL => self.local = text().parse().ok(),
                names::PEER_SERVICE => self.peer = Some(text()),
                names::SERVER_ADDRESS => self.peer_ip = text().parse().ok(),
                names::SERVER_PORT => self.peer_port = text().parse().ok(),
                names::DB_SYSTEM | names::MESSAGING_SYSTEM => self.system = Some(text()),
                _ => {}
            }
            let value = match value {
                Value::I64(number) => TagValue::Number(*number),
                _ => TagValue::Text(text()),
            };
            self.tag(key.as_str(), value);
        }
    }

    /// Takes it in if it may leave the process. The last one of a name counts.
    fn tag(&mut self, name: &'a str, value: TagValue<'a>) {
        if !privacy::is_exported(name) {
            return;
        }
        match self.tags.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.tags.push((name, value)),
        }
    }

    pub fn word(&mut self, name: &'static str, word: &'a str) {
        self.tag(name, TagValue::Text(Cow::Borrowed(word)));
    }

    pub fn text(&mut self, name: &'static str, text: Option<&'a str>) {
        if let Some(text) = text {
            self.word(name, text);
        }
    }

    pub fn number(&mut self, name: &'static str, number: Option<i64>) {
        if let Some(number) = number {
            self.tag(name, TagValue::Number(number));
        }
    }

    /// None is not worth a tag.
    pub fn count(&mut self, name: &'static str, count: u32) {
        self.number(name, Some(i64::from(count)).filter(|count| *count > 0));
    }

    pub fn peer_address(&mut self, address: Option<SocketAddr>) {
        if let Some(address) = address {
            self.peer_ip = Some(address.ip());
            self.peer_port = Some(address.port());
            self.tag(names::SERVER_ADDRESS, TagValue::Ip(address.ip()));
            self.tag(names::SERVER_PORT, TagValue::Number(i64::from(address.port())));
        }
    }
}
