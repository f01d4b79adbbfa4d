//! OTLP over HTTP, as JSON. Own code for the same reason that there is a choice at all: with
//! `opentelemetry-otlp` come prost and a tree of generated types for one POST.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use serde_json::{Value, json};

use super::zipkin::exported;
use super::{Failure, collector_url, http_client, post_json};
use crate::telemetry::{names, privacy};

/// Sends spans to an OpenTelemetry collector.
#[derive(Debug)]
pub(crate) struct OtlpExporter {
    url: String,
    client: reqwest::Client,
}

impl OtlpExporter {
    /// To the collector at `url`: its base or its `/v1/traces`.
    ///
    /// # Errors
    /// A sentence, when that is no URL of a server that can be reached without TLS.
    pub fn new(url: &str, timeout: Duration) -> Result<Self, String> {
        Ok(Self {
            url: collector_url("otlp-url", url, "/v1/traces")?,
            client: http_client(timeout)?,
        })
    }

    pub async fn send(&self, batch: &[SpanData]) -> Result<(), Failure> {
        let body = serde_json::to_vec(&request(batch))
            .map_err(|error| Failure { what: error.to_string(), transient: false })?;
        post_json(&self.client, &self.url, body).await
    }
}

impl SpanExporter for OtlpExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.send(&batch).await.map_err(|failure| OTelSdkError::InternalFailure(failure.what))
    }
}

/// One resource for each service: a process may run several.
fn request(batch: &[SpanData]) -> Value {
    let mut services: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for data in batch {
        let service = data.attributes.iter().rev().find(|p| p.key.as_str() == names::SERVICE);
        let service = service.map_or_else(|| "unknown".into(), |pair| pair.value.to_string());
        services.entry(service).or_default().push(span(data));
    }
    let resources: Vec<Value> = services
        .into_iter()
        .map(|(service, spans)| {
            json!({
                "resource": {"attributes": [text(names::SERVICE, &service)]},
                "scopeSpans": [{"scope": {"name": "tourin"}, "spans": spans}],
            })
        })
        .collect();
    json!({"resourceSpans": resources})
}

fn text(name: &str, value: &str) -> Value {
    json!({"key": name, "value": {"stringValue": value}})
}

/// 64-bit numbers are strings in protobuf's JSON.
fn nanos(time: SystemTime) -> String {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn span(data: &SpanData) -> Value {
    let mut attributes: Vec<Value> = exported(&data.attributes)
        .iter()
        .map(|(name, value)| match value.parse::<i64>() {
            Ok(number) if is_number(name) => {
                json!({"key": name, "value": {"intValue": number.to_string()}})
            }
            _ => text(name, value),
        })
        .collect();
    let peer = data.attributes.iter().rev().find(|p| p.key.as_str() == names::PEER_SERVICE);
    if let Some(peer) = peer {
        attributes.push(text(names::PEER_SERVICE, &privacy::clean(&peer.value.as_str())));
    }
    let events: Vec<Value> = data
        .events
        .iter()
        .map(|event| {
            let facts = event.attributes.iter();
            let facts: Vec<Value> = facts
                .map(|pair| text(pair.key.as_str(), &privacy::clean(&pair.value.as_str())))
                .collect();
            json!({"timeUnixNano": nanos(event.timestamp), "name": event.name, "attributes": facts})
        })
        .collect();
    let mut span = json!({
        "traceId": data.span_context.trace_id().to_string(),
        "spanId": data.span_context.span_id().to_string(),
        "name": privacy::clean(&data.name),
        "kind": match data.span_kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
            SpanKind::Producer => 4,
            SpanKind::Consumer => 5,
        },
        "startTimeUnixNano": nanos(data.start_time),
        "endTimeUnixNano": nanos(data.end_time),
        "attributes": attributes,
        "events": events,
    });
    if data.parent_span_id != SpanId::INVALID {
        span["parentSpanId"] = data.parent_span_id.to_string().into();
    }
    if let Status::Error { description } = &data.status {
        span["status"] = json!({"code": 2, "message": privacy::clean(description)});
    }
    span
}

fn is_number(name: &str) -> bool {
    [
        names::SERVER_PORT,
        names::HTTP_STATUS,
        names::HTTP_RESEND,
        names::ATTEMPT,
        names::MESSAGING_BATCH,
    ]
    .contains(&name)
}
