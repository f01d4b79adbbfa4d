//! Zipkin's v2 JSON, from OpenTelemetry's span data.
//!
//! Written here because `opentelemetry-zipkin` has no service name in the local endpoint, no remote
//! endpoint, a parent of zeros on every root, and exports every attribute that anybody sets
//! (docs/decisions/0009-zipkin-reporter.md).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use serde::{Deserialize, Serialize};

use super::{Failure, collector_url, http_client, post_json};
use crate::telemetry::{names, privacy};

/// A span as Zipkin reads and shows it.
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
    pub kind: Option<Cow<'static, str>>,
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

impl Endpoint {
    fn new(service: Option<&str>, ip: Option<IpAddr>, port: Option<u16>) -> Option<Self> {
        let endpoint = Self {
            service_name: service.map(str::to_lowercase),
            ipv4: ip.filter(IpAddr::is_ipv4).map(|ip| ip.to_string()),
            ipv6: ip.filter(IpAddr::is_ipv6).map(|ip| ip.to_string()),
            port: port.filter(|port| *port > 0),
        };
        (endpoint != Self::default()).then_some(endpoint)
    }
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn find<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a Value> {
    // The last one set counts.
    attributes.iter().rev().find(|pair| pair.key.as_str() == name).map(|pair| &pair.value)
}

fn local(attributes: &[KeyValue]) -> Option<Endpoint> {
    let service = find(attributes, names::SERVICE).map(Value::as_str);
    let address = find(attributes, names::LOCAL)
        .and_then(|address| address.as_str().parse::<SocketAddr>().ok());
    Endpoint::new(
        service.as_deref(),
        // "All addresses" is not one.
        address.map(|address| address.ip()).filter(|ip| !ip.is_unspecified()),
        address.map(|address| address.port()),
    )
}

fn remote(attributes: &[KeyValue]) -> Option<Endpoint> {
    let service = [names::PEER_SERVICE, names::DB_SYSTEM, names::MESSAGING_SYSTEM]
        .into_iter()
        .find_map(|name| find(attributes, name))
        .map(Value::as_str);
    let ip = find(attributes, names::SERVER_ADDRESS).and_then(|ip| ip.as_str().parse().ok());
    let port = find(attributes, names::SERVER_PORT)
        .and_then(|port| port.as_str().parse().ok())
        .filter(|_| ip.is_some());
    Endpoint::new(service.as_deref(), ip, port)
}

/// An event as one line of text: `retry attempt=2 reason=connect_refused`.
pub(crate) fn annotation_text(name: &str, attributes: &[KeyValue]) -> String {
    let mut text = privacy::clean(name).into_owned();
    for pair in attributes {
        let value = pair.value.as_str();
        text.push_str(&format!(" {}={}", pair.key, privacy::clean(&value)));
    }
    text
}

/// The tags that leave the process, `error` not among them.
pub(crate) fn exported(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes
        .iter()
        .filter(|pair| privacy::is_exported(pair.key.as_str()))
        .map(|pair| (pair.key.to_string(), privacy::clean(&pair.value.as_str()).into_owned()))
        .collect()
}

impl From<&SpanData> for ZipkinSpan {
    fn from(span: &SpanData) -> Self {
        let mut tags = exported(&span.attributes);
        if let Status::Error { description } = &span.status {
            let reason = if description.is_empty() { "failed" } else { description };
            tags.insert("error".to_owned(), privacy::clean(reason).into_owned());
        }
        let took = span.end_time.duration_since(span.start_time).unwrap_or_default();
        Self {
            trace_id: span.span_context.trace_id().to_string(),
            parent_id: (span.parent_span_id != SpanId::INVALID)
                .then(|| span.parent_span_id.to_string()),
            id: span.span_context.span_id().to_string(),
            kind: match span.span_kind {
                SpanKind::Client => Some("CLIENT".into()),
                SpanKind::Server => Some("SERVER".into()),
                SpanKind::Producer => Some("PRODUCER".into()),
                SpanKind::Consumer => Some("CONSUMER".into()),
                SpanKind::Internal => None,
            },
            name: Some(privacy::clean(&span.name).to_lowercase()),
            timestamp: Some(micros(span.start_time)),
            duration: Some(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1)),
            local_endpoint: local(&span.attributes),
            remote_endpoint: remote(&span.attributes),
            annotations: span
                .events
                .iter()
                .map(|event| Annotation {
                    timestamp: micros(event.timestamp),
                    value: annotation_text(&event.name, &event.attributes),
                })
                .collect(),
            tags,
        }
    }
}

/// Sends spans to a Zipkin server.
#[derive(Debug)]
pub(crate) struct ZipkinExporter {
    url: String,
    client: reqwest::Client,
}

impl ZipkinExporter {
    /// To the server at `url`: its base or its `/api/v2/spans`.
    ///
    /// # Errors
    /// A sentence, when that is no URL of a server that can be reached without TLS.
    pub fn new(url: &str, timeout: Duration) -> Result<Self, String> {
        Ok(Self {
            url: collector_url("zipkin-url", url, "/api/v2/spans")?,
            client: http_client(timeout)?,
        })
    }

    pub async fn send(&self, batch: &[SpanData]) -> Result<(), Failure> {
        let spans: Vec<ZipkinSpan> = batch.iter().map(ZipkinSpan::from).collect();
        let body = serde_json::to_vec(&spans)
            .map_err(|error| Failure { what: error.to_string(), transient: false })?;
        post_json(&self.client, &self.url, body).await
    }
}

impl SpanExporter for ZipkinExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.send(&batch).await.map_err(|failure| OTelSdkError::InternalFailure(failure.what))
    }
}
