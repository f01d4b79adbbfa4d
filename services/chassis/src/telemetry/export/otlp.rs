//! OTLP over HTTP, as JSON. Own code for the same reason that there is a choice at all: with
//! `opentelemetry-otlp` come prost and a tree of generated types for one POST.

use std::collections::BTreeMap;
use std::time::SystemTime;

use opentelemetry::trace::{Event, SpanKind};
use serde_json::{Value, json};

use super::super::finished::{Finished, TagValue};
use super::super::processor::Ended;
use super::super::{names, privacy};

/// The body by which a collector is sent `spans`. One resource for each service: a process may run
/// several.
pub(super) fn body(spans: &[Ended]) -> serde_json::Result<Vec<u8>> {
    let mut services: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for ended in spans {
        ended.read(|finished| {
            let service = finished.service.as_deref().unwrap_or("unknown").to_owned();
            services.entry(service).or_default().push(span(finished));
        });
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
    serde_json::to_vec(&json!({"resourceSpans": resources}))
}

fn text(name: &str, value: &str) -> Value {
    json!({"key": name, "value": {"stringValue": value}})
}

/// 64-bit numbers are strings in protobuf's JSON.
fn nanos(time: SystemTime) -> String {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn event(event: &Event) -> Value {
    let facts = event.attributes.iter();
    let facts: Vec<Value> =
        facts.map(|pair| text(pair.key.as_str(), &privacy::clean(&pair.value.as_str()))).collect();
    json!({"timeUnixNano": nanos(event.timestamp), "name": event.name, "attributes": facts})
}

fn span(span: &Finished<'_>) -> Value {
    let tags = span.tags.iter().map(|(name, value)| match value {
        TagValue::Number(_) => json!({"key": name, "value": {"intValue": value.to_string()}}),
        TagValue::Text(_) | TagValue::Ip(_) => text(name, &value.to_string()),
    });
    let peer = span.peer.as_deref();
    let peer = peer.map(|peer| text(names::PEER_SERVICE, &privacy::clean(peer)));
    let attributes: Vec<Value> = tags.chain(peer).collect();
    let events: Vec<Value> = span.frame.events.iter().map(event).collect();
    let mut sent = json!({
        "traceId": span.frame.context.trace_id().to_string(),
        "spanId": span.frame.context.span_id().to_string(),
        "name": privacy::clean(&span.frame.name),
        "kind": match span.frame.kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
            SpanKind::Producer => 4,
            SpanKind::Consumer => 5,
        },
        "startTimeUnixNano": nanos(span.frame.start),
        "endTimeUnixNano": nanos(span.frame.end),
        "attributes": attributes,
        "events": events,
    });
    if let Some(parent) = span.frame.parent() {
        sent["parentSpanId"] = parent.to_string().into();
    }
    if let Some(reason) = span.frame.failure() {
        sent["status"] = json!({"code": 2, "message": privacy::clean(reason)});
    }
    sent
}
