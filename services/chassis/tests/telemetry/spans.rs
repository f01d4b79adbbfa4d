//! One suite for every place that shows traces.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanKind, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use serde_json::{Value, json};
use tourin_chassis::telemetry::{
    DbCall, HttpCall, HttpRequest, Pipeline, Propagator, Service, Span, names,
};

use crate::readers::{Reader, in_memory, real, through_a_collector};

/// A span of an event, made by OpenTelemetry's API alone.
fn event(
    pipeline: &Pipeline,
    service: &Service,
    headers: &BTreeMap<String, String>,
    kind: SpanKind,
    name: &'static str,
    attributes: Vec<KeyValue>,
) -> Context {
    let headers: HashMap<String, String> = headers.clone().into_iter().collect();
    let parent = Propagator::default().extract_with_context(&service.context(), &headers);
    let tracer = pipeline.provider().tracer("events");
    let builder = tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
    let span = builder.start_with_context(&tracer, &parent);
    parent.with_span(span)
}

/// A journey as the mesh makes it: client, gateway, core, its database, the outbox, RabbitMQ,
/// recommendation, Redis. Returns the trace's id.
async fn journey(pipeline: &Pipeline, suffix: &'static str) -> String {
    let _spans = pipeline.enter();
    let name = |service: &str| -> &'static str { format!("{service}{suffix}").leak() };
    let gateway = pipeline.service(name("gateway")).listening("127.0.0.1:8080".parse().unwrap());
    let core = pipeline.service(name("core")).listening("127.0.0.1:8081".parse().unwrap());
    let recommendation = pipeline.service(name("recommendation"));
    let broker: &'static str = name("rabbitmq");
    let route = "/api/bookmarks/{id}";
    let post = Method::POST;

    let asked = HttpRequest::new(&post, Some(route));
    let mut arrived = gateway.deferred(&HeaderMap::new(), &asked, SystemTime::now());
    let at_gateway = arrived.handle().handle();
    let trace = at_gateway.trace_id().unwrap();
    let call = HttpCall {
        method: &post,
        route,
        service: name("core"),
        instance: None,
        address: Some("127.0.0.1:8081".parse().unwrap()),
        resend_count: 0,
    };
    let refused = at_gateway.http_client(&call);
    refused.set_error("connect_refused");
    drop(refused);
    at_gateway.annotate("retry", &[("reason", "connect_refused"), ("attempt", "2")]);
    let calling = at_gateway.http_client(&HttpCall { resend_count: 1, ..call });
    let mut headers = HeaderMap::new();
    calling.inject(&mut headers);

    let mut passed_on = core.deferred(&headers, &asked, SystemTime::now());
    let at_core = passed_on.handle().handle();
    assert_eq!(at_core.trace_id().as_ref(), Some(&trace));
    let mut row = BTreeMap::new();
    at_core
        .run(async {
            let span = Span::current();
            let database = span.db(&DbCall::new("mysql", "insert", "bookmarks"));
            tokio::time::sleep(Duration::from_millis(2)).await;
            drop(database);
            span.inject_event(&mut row);
        })
        .await;
    passed_on.finish(&asked, Some(204));
    calling.set_status(204);
    drop(calling);
    arrived.finish(&asked, Some(204));

    let broker = |destination: &str, attributes: &[KeyValue]| {
        let of_broker = [
            KeyValue::new(names::MESSAGING_SYSTEM, "rabbitmq"),
            KeyValue::new(names::PEER_SERVICE, broker),
            KeyValue::new(names::MESSAGING_DESTINATION, destination.to_owned()),
            KeyValue::new(names::SERVER_ADDRESS, "127.0.0.1"),
            KeyValue::new(names::SERVER_PORT, 5672),
        ];
        [&of_broker, attributes].concat()
    };
    let exchange = broker("event.user.ex", &[]);
    let sent = event(pipeline, &core, &row, SpanKind::Producer, "send event.user.ex", exchange);
    let mut on_the_wire = HashMap::new();
    Propagator::default().inject_context(&sent, &mut on_the_wire);
    sent.span().end();
    let queue = "recommendation.trend.q";
    let queue = broker(queue, &[KeyValue::new(names::OUTCOME, "applied")]);
    let on_the_wire = on_the_wire.into_iter().collect();
    let name = "process recommendation.trend.q";
    let received = event(pipeline, &recommendation, &on_the_wire, SpanKind::Consumer, name, queue);
    let handled = received.clone().attach();
    let redis = Span::current().db(&DbCall::new("redis", "zincrby", "trend"));
    drop(handled);
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(redis);
    received.span().end();
    pipeline.flush(Duration::from_secs(10)).await;
    trace
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or("")
}

fn find<'a>(spans: &'a [Value], service: &str, kind: &str) -> Vec<&'a Value> {
    spans
        .iter()
        .filter(|span| text(span, "/localEndpoint/serviceName") == service)
        .filter(|span| text(span, "/kind") == kind)
        .collect()
}

async fn shows_the_journey(pipeline: Pipeline, reader: Reader, suffix: &'static str) {
    let trace = journey(&pipeline, suffix).await;
    let spans = reader.trace(&trace, 8).await;
    assert_eq!(spans.len(), 8, "{spans:#?}");
    let named = |service: &str| format!("{service}{suffix}");

    // One trace; every parent is there, and one span has none.
    let ids: BTreeSet<&str> = spans.iter().map(|span| text(span, "/id")).collect();
    assert!(spans.iter().all(|span| text(span, "/traceId") == trace));
    let roots: Vec<_> = spans.iter().filter(|span| span.get("parentId").is_none()).collect();
    assert_eq!(roots.len(), 1);
    assert_eq!(text(roots[0], "/localEndpoint/serviceName"), named("gateway"));
    for span in spans.iter().filter(|span| span.get("parentId").is_some()) {
        assert!(ids.contains(text(span, "/parentId")), "no parent: {span:#}");
        assert!(span["duration"].as_u64().unwrap() >= 1);
        assert!(!span["shared"].as_bool().unwrap_or_default());
    }

    // Kinds, and both ends by name.
    let gateway = named("gateway");
    let [server] = find(&spans, &gateway, "SERVER")[..] else { panic!("{spans:#?}") };
    assert_eq!(text(server, "/name"), "post /api/bookmarks/{id}");
    assert_eq!(server["localEndpoint"]["ipv4"], "127.0.0.1");
    assert_eq!(server["localEndpoint"]["port"], 8080);
    let calls = find(&spans, &gateway, "CLIENT");
    assert_eq!(calls.len(), 2);
    for call in &calls {
        assert_eq!(text(call, "/remoteEndpoint/serviceName"), named("core"));
        assert_eq!(call["remoteEndpoint"]["port"], 8081);
        assert_eq!(text(call, "/tags/http.request.method"), "POST");
    }
    let core = named("core");
    let [served] = find(&spans, &core, "SERVER")[..] else { panic!("{spans:#?}") };
    assert!(calls.iter().any(|call| text(call, "/id") == text(served, "/parentId")));
    let [database] = find(&spans, &core, "CLIENT")[..] else { panic!("{spans:#?}") };
    assert_eq!(text(database, "/remoteEndpoint/serviceName"), "mysql");
    assert_eq!(text(database, "/tags/db.collection.name"), "bookmarks");
    let [sent] = find(&spans, &core, "PRODUCER")[..] else { panic!("{spans:#?}") };
    assert_eq!(text(sent, "/parentId"), text(served, "/id"));
    assert_eq!(text(sent, "/remoteEndpoint/serviceName"), named("rabbitmq"));
    let [received] = find(&spans, &named("recommendation"), "CONSUMER")[..] else {
        panic!("{spans:#?}")
    };
    assert_eq!(text(received, "/parentId"), text(sent, "/id"));
    assert!(received["duration"].as_u64().unwrap() >= 1_000, "the work is inside it");
    assert_eq!(text(received, "/tags/messaging.destination.name"), "recommendation.trend.q");
    assert_eq!(text(received, "/tags/tourin.outcome"), "applied");

    // Only a failed span has `error`; a retry is an annotation.
    let failed: Vec<_> =
        spans.iter().filter(|span| span.pointer("/tags/error").is_some()).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(text(failed[0], "/tags/error"), "connect_refused");
    assert_eq!(text(server, "/annotations/0/value"), "retry reason=connect_refused attempt=2");

    // Only tags on the list of names.
    for span in &spans {
        for tag in span["tags"].as_object().into_iter().flatten().map(|(name, _)| name) {
            let known = names::EXPORTED.contains(&tag.as_str());
            assert!(known || tag == "error", "{tag} went out");
        }
    }
    finds_the_journey(&reader, &trace, suffix).await;
}

async fn finds_the_journey(reader: &Reader, trace: &str, suffix: &str) {
    let core = format!("core{suffix}");
    let (_, services) = reader.get("/api/v2/services").await;
    for service in ["gateway", "core", "recommendation"] {
        let service = json!(format!("{service}{suffix}"));
        assert!(services.as_array().unwrap().contains(&service), "{service} not in {services}");
    }
    let (_, names) = reader.get(&format!("/api/v2/spans?serviceName={core}")).await;
    assert_eq!(
        names,
        json!(["insert bookmarks", "post /api/bookmarks/{id}", "send event.user.ex"])
    );
    let (_, remotes) = reader.get(&format!("/api/v2/remoteServices?serviceName={core}")).await;
    assert_eq!(remotes, json!(["mysql", format!("rabbitmq{suffix}")]));

    let found = |answer: (u16, Value)| -> BTreeSet<String> {
        let traces = answer.1.as_array().cloned().unwrap_or_default();
        traces.iter().map(|spans| text(&spans[0], "/traceId").to_owned()).collect()
    };
    for (query, expected) in [
        (format!("serviceName={core}&limit=5"), true),
        (format!("serviceName={core}&annotationQuery=db.collection.name%3Dbookmarks"), true),
        (format!("serviceName={core}&annotationQuery=error"), false),
        (format!("serviceName=gateway{suffix}&annotationQuery=error"), true),
        (format!("serviceName={core}&spanName=insert%20bookmarks"), true),
        (format!("serviceName={core}&remoteServiceName=redis"), false),
        (format!("serviceName={core}&minDuration=60000000"), false),
        (format!("serviceName={core}&endTs=1000000&lookback=1000"), false),
    ] {
        let traces = found(reader.get(&format!("/api/v2/traces?{query}")).await);
        assert_eq!(traces.contains(trace), expected, "{query}: {traces:?}");
    }

    let now = chrono::Utc::now().timestamp_millis();
    let (_, links) =
        reader.get(&format!("/api/v2/dependencies?endTs={now}&lookback=3600000")).await;
    let links: BTreeSet<(String, String, u64)> = links
        .as_array()
        .unwrap()
        .iter()
        .map(|link| {
            let name = |end: &str| text(link, end).to_owned();
            (name("/parent"), name("/child"), link["callCount"].as_u64().unwrap())
        })
        .filter(|(parent, child, _)| parent.ends_with(suffix) || child.ends_with(suffix))
        .collect();
    let link = |parent: &str, child: &str, count| (parent.to_owned(), child.to_owned(), count);
    let own = |name: &str| format!("{name}{suffix}");
    assert_eq!(
        links,
        BTreeSet::from([
            link(&own("gateway"), &own("core"), 2),
            link(&own("core"), "mysql", 1),
            link(&own("core"), &own("rabbitmq"), 1),
            link(&own("rabbitmq"), &own("recommendation"), 1),
            link(&own("recommendation"), "redis", 1),
        ])
    );
    assert_eq!(reader.get(&format!("/api/v2/trace/{}", "ab".repeat(16))).await.0, 404);
}

/// A suffix of its own, so that runs on one Zipkin server do not meet.
fn suffix() -> &'static str {
    format!("-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]).leak()
}

#[tokio::test]
async fn a_real_zipkin_shows_the_journey() {
    let (pipeline, reader) = real().await;
    shows_the_journey(pipeline, reader, suffix()).await;
}

#[tokio::test]
async fn the_store_in_memory_shows_the_journey_as_zipkin_does() {
    let (pipeline, reader) = in_memory().await;
    shows_the_journey(pipeline, reader, suffix()).await;
}

#[tokio::test]
async fn the_in_memory_collector_gets_the_same_spans() {
    let (pipeline, reader) = through_a_collector().await;
    shows_the_journey(pipeline, reader, suffix()).await;
}
