use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
use serde_json::{Value, json};

use super::super::memory::MemoryLimits;
use super::super::privacy;
use super::*;

/// A span with more than may leave the process.
pub(in super::super) fn with_extra_attributes() -> SpanData {
    let start = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
    let mut events = SpanEvents::default();
    let facts = vec![KeyValue::new("reason", "no member mina@example.com")];
    events.events.push(Event::new("retry", start, facts, 0));
    SpanData {
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
    }
}

#[tokio::test]
async fn zipkin_is_sent_what_is_on_the_list_and_clean() {
    let store = MemoryStore::new(MemoryLimits::default());
    let exporter = ZipkinExporter::new(Receiver::Memory(store.clone())).unwrap();
    let mut span = with_extra_attributes();
    privacy::clean_span(&mut span);
    exporter.export(vec![span]).await.unwrap();
    let spans = store.trace("abcd").unwrap();
    assert_eq!(
        serde_json::to_value(&spans).unwrap(),
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
    let again: Value = serde_json::to_value(&spans).unwrap();
    assert_eq!(serde_json::from_value::<Vec<ZipkinSpan>>(again).unwrap(), spans);
}
