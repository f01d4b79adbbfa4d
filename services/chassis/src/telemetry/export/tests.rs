use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::trace::{
    Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use serde_json::{Value, json};

use super::super::names;
use super::super::processor::Ended;
use super::{otlp, zipkin};

/// Of code that knows OpenTelemetry's API alone, and says more than may go out.
fn foreign() -> Ended {
    let start = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_500);
    let mut events = SpanEvents::default();
    events.events.push(Event::new(
        "retry",
        start,
        vec![KeyValue::new("reason", "no member mina@example.com")],
        0,
    ));
    Ended::Foreign(Arc::new(SpanData {
        span_context: SpanContext::new(
            TraceId::from(0xabcd_u128),
            SpanId::from(0x12_u64),
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        ),
        parent_span_id: SpanId::from(0x34_u64),
        parent_span_is_remote: true,
        span_kind: SpanKind::Client,
        name: "Look for mina@example.com".into(),
        start_time: start,
        end_time: start,
        attributes: vec![
            KeyValue::new(names::SERVICE, "Core"),
            KeyValue::new(names::LOCAL, "0.0.0.0:8081"),
            KeyValue::new(names::DB_SYSTEM, "mysql"),
            KeyValue::new(names::SERVER_ADDRESS, "127.0.0.1"),
            KeyValue::new(names::SERVER_PORT, 3_306),
            KeyValue::new(names::OUTCOME, "applied"),
            KeyValue::new(names::OUTCOME, "password=hunter2"),
            KeyValue::new("db.query.text", "SELECT 1"),
        ],
        dropped_attributes_count: 0,
        events,
        links: SpanLinks::default(),
        status: Status::error(""),
        instrumentation_scope: InstrumentationScope::default(),
    }))
}

#[test]
fn zipkin_is_sent_what_is_on_the_list_and_clean() {
    let body = zipkin::body(&[foreign()]).unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&body).unwrap(),
        json!([{
            "traceId": "0000000000000000000000000000abcd",
            "parentId": "0000000000000034",
            "id": "0000000000000012",
            "kind": "CLIENT",
            "name": "look for [removed]",
            "timestamp": 1_500_000,
            "duration": 1,
            "localEndpoint": {"serviceName": "core", "port": 8081},
            "remoteEndpoint": {"serviceName": "mysql", "ipv4": "127.0.0.1", "port": 3306},
            "annotations": [{"timestamp": 1_500_000, "value": "retry reason=no member [removed]"}],
            "tags": {
                "db.system.name": "mysql",
                "server.address": "127.0.0.1",
                "server.port": "3306",
                "tourin.outcome": "[removed]",
                "error": "failed",
            },
        }])
    );
    assert_eq!(serde_json::from_slice::<Vec<zipkin::ZipkinSpan>>(&body).unwrap().len(), 1);
}

#[test]
fn otlp_is_sent_the_same_with_numbers_as_numbers() {
    let body = otlp::body(&[foreign()]).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let of_service = &body["resourceSpans"][0];
    assert_eq!(of_service["resource"]["attributes"][0]["value"]["stringValue"], "Core");
    let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    assert_eq!(
        of_service["scopeSpans"][0]["spans"],
        json!([{
            "traceId": "0000000000000000000000000000abcd",
            "parentSpanId": "0000000000000034",
            "spanId": "0000000000000012",
            "kind": 3,
            "name": "Look for [removed]",
            "startTimeUnixNano": "1500000000",
            "endTimeUnixNano": "1500000000",
            "attributes": [
                text("db.system.name", "mysql"),
                text("server.address", "127.0.0.1"),
                {"key": "server.port", "value": {"intValue": "3306"}},
                text("tourin.outcome", "[removed]"),
            ],
            "events": [{
                "timeUnixNano": "1500000000",
                "name": "retry",
                "attributes": [text("reason", "no member [removed]")],
            }],
            "status": {"code": 2, "message": "failed"},
        }])
    );
}
