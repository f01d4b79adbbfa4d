//! Zipkin's v2 JSON.
//!
//! Written here because `opentelemetry-zipkin` has no service name in the local endpoint, no remote
//! endpoint, a parent of zeros on every root, and exports every attribute that anybody sets
//! (docs/decisions/0009-zipkin-reporter.md).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use opentelemetry::trace::{Event, SpanKind};
use serde::ser::{SerializeMap as _, SerializeSeq};
use serde::{Deserialize, Serialize, Serializer};

use super::super::finished::{Finished, TagValue};
use super::super::privacy;
use super::super::processor::Ended;

/// Tag of a failure's reason; there if and only if the span failed.
const ERROR: &str = "error";

/// A span as Zipkin keeps and shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZipkinSpan {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits; absent for a root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<String>,
    /// 16 hexadecimal digits.
    pub id: String,
    /// `CLIENT`, `SERVER`, `PRODUCER` or `CONSUMER`; absent for work within a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What was done, in lower case as Zipkin keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Start in microseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    /// In microseconds, 1 at least: Zipkin takes 0 for unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<u64>,
    /// Whose span it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_endpoint: Option<Endpoint>,
    /// Who is on the other side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_endpoint: Option<Endpoint>,
    /// What happened on the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<Annotation>,
    /// Attributes; `error` if and only if it failed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

/// A place in the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// In lower case, as Zipkin keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    /// TCP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A moment in a span.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotation {
    /// Microseconds since 1970.
    pub timestamp: u64,
    /// What happened.
    pub value: String,
}

/// The body by which a server is sent `spans`.
pub(super) fn body(spans: &[Ended]) -> serde_json::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(16 << 10);
    let mut json = serde_json::Serializer::new(&mut body);
    let mut list = json.serialize_seq(None)?;
    for span in spans {
        span.read(|finished| list.serialize_element(&Sent::from(finished)))?;
    }
    SerializeSeq::end(list)?;
    Ok(body)
}

/// A [`ZipkinSpan`] as it is written, from where it lies.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sent<'a> {
    trace_id: Shown<opentelemetry::TraceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<Shown<opentelemetry::SpanId>>,
    id: Shown<opentelemetry::SpanId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    name: Lower<'a>,
    timestamp: u64,
    duration: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_endpoint: Option<SentEndpoint<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_endpoint: Option<SentEndpoint<'a>>,
    #[serde(skip_serializing_if = "Annotations::is_empty")]
    annotations: Annotations<'a>,
    #[serde(skip_serializing_if = "Tags::is_empty")]
    tags: Tags<'a>,
}

impl<'a> From<&'a Finished<'a>> for Sent<'a> {
    fn from(span: &'a Finished<'a>) -> Self {
        let took = span.frame.end.duration_since(span.frame.start).unwrap_or_default();
        // "All addresses" is not one.
        let local = span.local.filter(|address| !address.ip().is_unspecified());
        Self {
            trace_id: Shown(span.frame.context.trace_id()),
            parent_id: span.frame.parent().map(Shown),
            id: Shown(span.frame.context.span_id()),
            kind: match span.frame.kind {
                SpanKind::Client => Some("CLIENT"),
                SpanKind::Server => Some("SERVER"),
                SpanKind::Producer => Some("PRODUCER"),
                SpanKind::Consumer => Some("CONSUMER"),
                SpanKind::Internal => None,
            },
            name: Lower(&span.frame.name),
            timestamp: micros(span.frame.start),
            duration: u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1),
            local_endpoint: SentEndpoint::new(
                span.service.as_deref(),
                local.map(|local| local.ip()),
                span.local.map(|local| local.port()),
            ),
            remote_endpoint: SentEndpoint::new(
                span.peer.as_deref().or(span.system.as_deref()),
                span.peer_ip,
                span.peer_port.filter(|_| span.peer_ip.is_some()),
            ),
            annotations: Annotations(span.frame.events),
            tags: Tags { tags: &span.tags, failure: span.frame.failure() },
        }
    }
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SentEndpoint<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    service_name: Option<Lower<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<Shown<IpAddr>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<Shown<IpAddr>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

impl<'a> SentEndpoint<'a> {
    fn new(service: Option<&'a str>, ip: Option<IpAddr>, port: Option<u16>) -> Option<Self> {
        let port = port.filter(|port| *port > 0);
        (service.is_some() || ip.is_some() || port.is_some()).then(|| Self {
            service_name: service.map(Lower),
            ipv4: ip.filter(IpAddr::is_ipv4).map(Shown),
            ipv6: ip.filter(IpAddr::is_ipv6).map(Shown),
            port,
        })
    }
}

/// By its `Display`, straight into the body.
struct Shown<T>(T);

impl<T: fmt::Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

/// Clean, and in lower case as Zipkin keeps names.
struct Lower<'a>(&'a str);

impl Serialize for Lower<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let clean = privacy::clean(self.0);
        if clean.bytes().any(|byte| byte.is_ascii_uppercase() || !byte.is_ascii()) {
            to.serialize_str(&clean.to_lowercase())
        } else {
            to.serialize_str(&clean)
        }
    }
}

struct Tags<'a> {
    tags: &'a [(&'a str, TagValue<'a>)],
    failure: Option<&'a str>,
}

impl Tags<'_> {
    fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.failure.is_none()
    }
}

impl Serialize for Tags<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        for (name, value) in self.tags {
            map.serialize_entry(name, &Shown(value))?;
        }
        if let Some(reason) = self.failure {
            map.serialize_entry(ERROR, &privacy::clean(reason))?;
        }
        map.end()
    }
}

struct Annotations<'a>(&'a [Event]);

impl Annotations<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Annotations<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter().map(|event| Annotation {
            timestamp: micros(event.timestamp),
            value: annotation_text(event),
        }))
    }
}

/// An event as one line of text: `retry attempt=2 reason=connect_refused`.
fn annotation_text(event: &Event) -> String {
    let mut text = privacy::clean(&event.name).into_owned();
    for pair in &event.attributes {
        let value = pair.value.as_str();
        text.push_str(&format!(" {}={}", pair.key, privacy::clean(&value)));
    }
    text
}
