//! Spans, trace ids and metrics of requests.

use std::time::Duration;

use tourin_chassis::telemetry::ZipkinSpan;
use tourin_chassis::telemetry::testing::all_spans;
use tourin_gateway::Settings;
use tourin_testbed::{eventually, free_address};

use crate::harness::{Mesh, Response, raw};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A trace id that no other test uses.
fn new_trace() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn traceparent(trace: &str) -> String {
    format!("00-{trace}-{CALLER}-01")
}

/// The spans of a trace, once there are `count`, and the request's own.
async fn spans(trace: &str, count: usize) -> Vec<ZipkinSpan> {
    let mut spans = eventually("the spans are there", || async {
        let found = all_spans().trace(trace).unwrap_or_default();
        let is_whole = found.len() >= count && found.iter().any(|span| kind(span) == "SERVER");
        if is_whole { Ok(found) } else { Err(found) }
    })
    .await;
    spans.sort_by_key(|span| (span.timestamp, span.duration.map(|took| u64::MAX - took)));
    spans
}

fn kind(span: &ZipkinSpan) -> &str {
    span.kind.as_deref().unwrap_or("INTERNAL")
}

/// No health check finds a dead instance before a request does.
fn without_checks(settings: &mut Settings) {
    settings.health_checks.health_check_interval_ms = 0;
    settings.health_checks.health_check_failures = u32::MAX;
}

/// The trace that an answer names.
fn trace_of(answer: &Response) -> String {
    answer.header("traceresponse").unwrap().split('-').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn a_callers_trace_goes_through_the_gateway_to_the_service() {
    all_spans();
    let (_mesh, _core, gateway) = Mesh::complete().await;
    let trace = new_trace();
    let path = "/api/tour-spots?query=%ED%95%9C%EC%98%A5";
    let claims = [("traceparent", traceparent(&trace)), ("b3", format!("{TRACE}-{CALLER}-0"))];
    let claims: Vec<_> = claims.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let answer = gateway.call("GET", path, &claims).await;
    let spans = spans(&trace, 2).await;
    let [server, client] = &spans[..] else { panic!("{spans:#?}") };

    assert_eq!((kind(server), server.parent_id.as_deref()), ("SERVER", Some(CALLER)));
    assert_eq!(server.name.as_deref(), Some("get /api/tour-spots"));
    assert_eq!(server.local_endpoint.as_ref().unwrap().service_name.as_deref(), Some("gateway"));
    assert_eq!(kind(client), "CLIENT");
    assert_eq!(client.parent_id.as_ref(), Some(&server.id));
    assert_eq!(client.remote_endpoint.as_ref().unwrap().service_name.as_deref(), Some("core"));
    assert_eq!(client.tags["tourin.instance"], "core-1");
    for span in [server, client] {
        assert_eq!(span.tags["http.response.status_code"], "200");
        assert!(!span.tags.contains_key("error"));
    }
    assert!(!format!("{spans:?}").contains("%ED"), "a person's query is in a span: {spans:?}");

    let asked = &answer.asked()["headers"];
    assert_eq!(asked["traceparent"], format!("00-{trace}-{}-01", client.id));
    assert!(asked.get("b3").is_none(), "{asked}");
    assert_eq!(answer.header("traceresponse").unwrap(), format!("00-{trace}-{}-01", server.id));
    assert_eq!(answer.header("x-request-id"), Some(trace.as_str()));
}

#[tokio::test]
async fn b3_is_taken_too() {
    all_spans();
    let (_mesh, _core, gateway) = Mesh::complete().await;
    for single in [true, false] {
        let trace = new_trace();
        let one = format!("{trace}-{CALLER}-1");
        let headers = if single {
            vec![("b3", one.as_str())]
        } else {
            vec![("x-b3-traceid", &*trace), ("x-b3-spanid", CALLER), ("x-b3-sampled", "1")]
        };
        let answer = gateway.call("GET", "/api/users", &headers).await;
        let spans = spans(&trace, 2).await;
        assert_eq!(spans[0].parent_id.as_deref(), Some(CALLER));
        let asked = &answer.asked()["headers"];
        assert_eq!(asked["traceparent"], format!("00-{trace}-{}-01", spans[1].id));
        assert!(asked.get("x-b3-traceid").is_none(), "{asked}");
    }
}

#[tokio::test]
async fn every_refusal_names_its_trace() {
    all_spans();
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    let gateway = mesh.starting_gateway(|settings| settings.body_limit_bytes = 10).await;
    eventually("core is known", || async { gateway.get("/api/users").await.status == 200 }).await;
    let long = format!("/{}", "a".repeat(9 << 10));
    let bearer = [("authorization", "Bearer made.up.token")];
    let large = gateway.http.post(format!("{}/api/auth/login", gateway.url)).body("x".repeat(11));
    for (answer, status, error) in [
        (gateway.get("/nothing").await, 404, "not_found"),
        (gateway.get("/a%zz").await, 400, "malformed"),
        (gateway.get(&long).await, 414, "too_large"),
        (gateway.call("PATCH", "/api/users", &[]).await, 405, "method_not_allowed"),
        (gateway.get("/api/auth/me").await, 401, "unauthenticated"),
        (gateway.call("GET", "/api/auth/me", &bearer).await, 401, "unauthenticated"),
        (gateway.get("/api/tour-spots/7/similar").await, 503, "unavailable"),
        (gateway.send(large).await, 413, "too_large"),
    ] {
        answer.assert_refused(status, error);
        let trace = trace_of(&answer);
        assert_eq!(answer.body["traceId"], trace, "{answer:?}");
        assert_eq!(answer.header("x-request-id"), Some(trace.as_str()));
        let spans = spans(&trace, 1).await;
        let said: Vec<_> = spans[0].annotations.iter().map(|note| &*note.value).collect();
        let refused = format!("refused error={error}");
        assert!(said.iter().any(|note| note.starts_with(&refused)), "{spans:?}");
        assert_eq!(spans[0].tags.contains_key("error"), status >= 500, "{spans:?}");
        assert!(!format!("{spans:?}").contains("made.up"));
        if answer.header("www-authenticate").is_some_and(|said| said.contains("invalid_token")) {
            assert!(said.contains(&"token_refused reason=invalid"), "{spans:?}");
        }
    }
}

/// Malformed requests do not reach the proxy, and are logged and counted all the same.
#[tokio::test]
async fn malformed_requests_are_logged_and_counted() {
    all_spans();
    let mesh = Mesh::start().await;
    let gateway = mesh.starting_gateway(|settings| settings.header_limit_bytes = 4_000).await;
    let long = format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "a".repeat(5_000));
    for (request, status, error) in [
        ("rubbish\r\n\r\n", 400, "malformed"),
        ("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 405, "method_not_allowed"),
        (&long, 431, "too_large"),
    ] {
        let answer = raw(gateway.addr, request).await;
        answer.assert_refused(status, error);
        let trace = answer.body["traceId"].as_str().expect("a trace id");
        assert_eq!(answer.header("x-request-id"), Some(trace), "{answer:?}");
        assert!(answer.header("traceresponse").is_some_and(|value| value.contains(trace)));
        let span = &spans(trace, 1).await[0];
        assert_eq!((kind(span), span.tags["http.route"].as_str()), ("SERVER", "malformed"));
        assert_eq!(span.tags["http.response.status_code"], status.to_string());
        assert_eq!(span.annotations[0].value, format!("refused error={error}"));
    }
    let metrics = gateway.metrics().await;
    let counted = "route=\"malformed\",method=\"_OTHER\",status_class=\"4xx\"} 3";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn a_retry_is_seen_as_two_calls_and_a_note() {
    all_spans();
    let mesh = Mesh::start().await;
    let alive = mesh.service("core", "core-alive").await;
    mesh.service("recommendation", "recommendation-1").await;
    let dead = free_address();
    mesh.register("core", "core-dead", dead).await;
    let gateway = mesh.gateway(without_checks).await;
    // Round robin: one of two calls is sent to the dead instance first.
    let mut retried = Vec::new();
    for _ in 0..2 {
        let trace = new_trace();
        let caller = traceparent(&trace);
        let answer = gateway.call("GET", "/api/users", &[("traceparent", &caller)]).await;
        assert_eq!(answer.asked()["instance"], "core-alive");
        let spans = spans(&trace, 2).await;
        if !spans[0].annotations.is_empty() {
            retried = self::spans(&trace, 3).await;
        }
    }
    let [server, failed, second] = &retried[..] else { panic!("{retried:#?}") };
    assert_eq!(server.annotations[0].value, "retry reason=connect_refused failed=core-dead");
    assert!(!server.tags.contains_key("error"), "the client got its answer: {server:?}");
    assert_eq!(failed.tags["error"], "connect_refused");
    assert_eq!(failed.remote_endpoint.as_ref().unwrap().port, Some(dead.port()));
    assert_eq!(second.tags["http.request.resend_count"], "1");
    assert_eq!(second.remote_endpoint.as_ref().unwrap().port, Some(alive.address.port()));
    assert!(!second.tags.contains_key("error"));
    assert_eq!([failed, second].map(|span| span.parent_id.as_ref()), [Some(&server.id); 2]);

    let metrics = gateway.metrics().await;
    for line in [
        r#"tourin_gateway_upstream_requests_total{upstream="core",outcome="connect_failed"} 1"#,
        r#"tourin_gateway_upstream_requests_total{upstream="core",outcome="2xx"} 2"#,
        r#"tourin_gateway_upstream_retries_total{upstream="core"} 1"#,
        r#"tourin_gateway_upstream_duration_seconds_count{upstream="core"} 2"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn an_abandoned_attempt_records_its_reason() {
    all_spans();
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    let gateway = mesh
        .starting_gateway(|settings| {
            // Bodies that pass through as they come.
            settings.body_limit_bytes = 70_000;
            settings.client_stall_ms = 1_500;
        })
        .await;
    eventually("core is known", || async { gateway.get("/api/users").await.status == 200 }).await;
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    for (rest, status, error, reason) in [
        (format!("{chunked}zzz\r\n"), 400, "malformed", "malformed"),
        (
            format!("{chunked}11171\r\n{}\r\n0\r\n\r\n", "x".repeat(70_001)),
            413,
            "too_large",
            "too_large",
        ),
        ("Content-Length: 70000\r\n\r\nab".to_owned(), 408, "timeout", "client_too_slow"),
    ] {
        let request = format!("POST /api/auth/login HTTP/1.1\r\nHost: h\r\n{rest}");
        let answer = raw(gateway.addr, request).await;
        answer.assert_refused(status, error);
        let spans = spans(answer.body["traceId"].as_str().unwrap(), 2).await;
        let abandoned = format!("abandoned reason={reason}");
        assert!(spans[1].annotations.iter().any(|note| *note.value == abandoned), "{spans:#?}");
        assert!(!spans[1].tags.contains_key("error"), "the instance did nothing wrong");
    }
}

#[tokio::test]
async fn of_unsampled_requests_only_failed_ones_are_exported() {
    all_spans();
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    for instance in ["recommendation-1", "recommendation-2"] {
        mesh.register("recommendation", instance, free_address()).await;
    }
    let stranger = mesh.gateway(|_| {}).await;
    let gateway = mesh
        .gateway(|settings| {
            settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
            without_checks(settings);
        })
        .await;
    let unsampled = |trace: &str| format!("00-{trace}-{CALLER}-00");
    let well = new_trace();
    let answer = gateway.call("GET", "/api/users", &[("traceparent", &unsampled(&well))]).await;
    let asked = answer.asked()["headers"]["traceparent"].as_str().unwrap().to_owned();
    assert!(asked.starts_with(&format!("00-{well}-")) && asked.ends_with("-00"), "{asked}");

    // A stranger's decision does not count: all traces are sampled here.
    let decided = new_trace();
    let asked = stranger.call("GET", "/api/users", &[("traceparent", &unsampled(&decided))]).await;
    let asked = asked.asked()["headers"]["traceparent"].as_str().unwrap().to_owned();
    assert!(asked.starts_with(&format!("00-{decided}-")) && asked.ends_with("-01"), "{asked}");

    let failed = new_trace();
    let path = "/api/tour-spots/7/similar";
    let answer = gateway.call("GET", path, &[("traceparent", &unsampled(&failed))]).await;
    answer.assert_refused(503, "unavailable");
    let spans = spans(&failed, 3).await;
    let [server, tries @ ..] = &spans[..] else { panic!("{spans:#?}") };
    assert_eq!(answer.header("traceresponse").unwrap(), format!("00-{failed}-{}-00", server.id));
    assert_eq!(server.tags["http.response.status_code"], "503");
    assert_eq!(server.tags["error"], "503");
    assert_eq!(server.tags["tourin.kept_for"], "failed");
    let said: Vec<_> = server.annotations.iter().map(|note| &*note.value).collect();
    assert!(said[0].starts_with("retry reason=connect_refused"), "{said:?}");
    assert!(said.contains(&"refused error=unavailable reason=unreachable"), "{said:?}");
    assert_eq!(tries.len(), 2, "{tries:#?}");
    for one in tries {
        assert_eq!(one.parent_id.as_ref(), Some(&server.id));
        assert_eq!(one.tags["error"], "connect_refused");
    }
    assert!(all_spans().trace(&well).is_none(), "it went well before the one that failed");
}

#[tokio::test]
async fn an_instance_that_is_too_slow_has_the_failure() {
    all_spans();
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|settings| settings.first_byte_timeout_ms = 100).await;
    let answer = gateway.get("/api/users?hold=1").await;
    core.release();
    answer.assert_refused(504, "timeout");
    let spans = spans(&trace_of(&answer), 2).await;
    assert_eq!(spans[0].tags["error"], "504");
    assert_eq!(spans[1].tags["error"], "timeout");
    eventually("it is counted", || async {
        let line =
            r#"tourin_gateway_upstream_requests_total{upstream="core",outcome="timed_out"} 1"#;
        gateway.metrics().await.contains(line)
    })
    .await;
}

#[tokio::test]
async fn operators_have_a_listener_of_their_own() {
    let (mesh, _core, gateway) = Mesh::complete().await;
    for path in ["/metrics", "/internal/log-filter"] {
        gateway.get(path).await.assert_refused(404, "not_found");
    }
    gateway.get("/api/users").await.asked();
    eventually("the request is counted", || async {
        let line = r#"tourin_http_requests_total{service="gateway",route="/api/users",method="GET",status_class="2xx"} 1"#;
        gateway.metrics().await.contains(line)
    })
    .await;
    let text = gateway.metrics().await;
    for line in [
        r#"tourin_gateway_upstream_instances{upstream="core"} 1"#,
        "tourin_gateway_connections ",
        "tourin_gateway_requests_in_flight ",
        "tourin_gateway_token_keys_age_seconds ",
        "tourin_gateway_revocations_age_seconds ",
        "tourin_gateway_revoked_sessions ",
        r#"tourin_gateway_refusals_total{error="not_found"} 2"#,
        "tourin_panics_total ",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }

    let admin = format!("http://{}", gateway.admin);
    let ready = gateway.send(gateway.http.get(format!("{admin}/readyz"))).await;
    assert_eq!((ready.status, ready.body["status"].as_str()), (200, Some("ready")));
    let filter = format!("{admin}/internal/log-filter");
    let stranger = gateway.send(gateway.http.get(&filter)).await;
    stranger.assert_refused_without_id(403, "forbidden");
    let operator = mesh.authority.workload("operator", "tracing").unwrap();
    let tls = operator.client_config("gateway").unwrap();
    let operator = tourin_chassis::http_client::mesh_client(tls, None).unwrap();
    let filter = filter.replace("http://", "https://");
    let put = |text: &'static str| {
        let request = operator.put(&filter);
        request.body(text).timeout(Duration::from_secs(20)).send()
    };
    all_spans(); // Starts logging too.
    let answer = put("warn,tourin_gateway=error").await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().contains("tourin_gateway=error"));
    assert_eq!(put("info,=nonsense=").await.unwrap().status(), 422);

    // Prometheus finds its address in the registry.
    let known = eventually("the gateway is registered", || async {
        let known = mesh.registry.list(Some("gateway")).await.unwrap().instances;
        known.into_iter().next().ok_or("not yet")
    })
    .await;
    assert_eq!(known.metadata["admin"], gateway.admin.to_string());
}
