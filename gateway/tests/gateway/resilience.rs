//! Circuit breakers, shedding and fall-backs.

use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tourin_chassis::telemetry::testing::all_spans;
use tourin_gateway::Settings;
use tourin_testbed::eventually;

use crate::harness::{Mesh, TestGateway, raw};

/// A gateway with these routes.
async fn routed(
    mesh: &Mesh,
    table: &str,
    adjust: impl FnOnce(&mut Settings),
) -> (TestGateway, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.toml");
    std::fs::write(&file, table).unwrap();
    let gateway = mesh
        .starting_gateway(|settings| {
            settings.routes = Some(file);
            adjust(settings);
        })
        .await;
    (gateway, folder)
}

async fn is_up(gateway: &TestGateway, path: &str) {
    eventually("its service is known", || async { gateway.get(path).await.status == 200 }).await;
}

#[track_caller]
fn assert_counted(metrics: &str, line: &str) {
    assert!(metrics.contains(line), "{line} is not in\n{metrics}");
}

const USERS: &str = r#"
[[route]]
path = "/api/users"
service = "core"
methods = { GET = "public", POST = "public" }
"#;
const SPOTS: &str = r#"
[[route]]
path = "/api/tour-spots"
service = "core"
methods = { GET = "public" }
"#;
const SIMILAR: &str = r#"
[[route]]
path = "/api/tour-spots/{id}/similar"
service = "recommendation"
methods = { GET = "public", POST = "public" }

[route.fallback]
body = "[]"
"#;

const FALLBACK: &str = "x-tourin-fallback";

#[tokio::test]
async fn a_route_answers_its_fallback_while_its_service_has_no_instance() {
    all_spans();
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    let (gateway, _table) = routed(&mesh, &format!("{USERS}{SIMILAR}"), |_| {}).await;
    is_up(&gateway, "/api/users").await;

    let path = "/api/tour-spots/7/similar";
    let similar = gateway.get(path).await;
    assert_eq!((similar.status, &similar.body), (200, &serde_json::json!([])));
    assert_eq!(similar.header(FALLBACK), Some("no_instance"));
    assert_eq!(similar.header("content-type"), Some("application/json"));
    assert_eq!(similar.header("cache-control"), Some("no-store"));
    assert!(similar.header("x-request-id").is_some() && similar.header("traceresponse").is_some());
    let trace = similar.header("traceresponse").unwrap().split('-').nth(1).unwrap();
    let spans = || all_spans().trace(trace).unwrap_or_default();
    eventually("its span is there", || async { !spans().is_empty() }).await;
    let span = &spans()[0];
    assert_eq!(span.tags["http.response.status_code"], "200");
    assert_eq!(
        (&*span.tags["error"], &*span.tags["tourin.degraded"]),
        ("no_instance", "no_instance")
    );
    let head = gateway.call("HEAD", path, &[]).await;
    assert_eq!((head.status, head.body.is_null()), (200, true));
    assert_eq!(head.header("content-length"), Some("2"));
    // A write that did not happen does not look as if it had.
    gateway.call("POST", path, &[]).await.assert_refused(503, "unavailable");
    assert_eq!(gateway.get("/api/users").await.header(FALLBACK), None);

    let route = r#"route="/api/tour-spots/{id}/similar""#;
    let lines = [
        format!(r#"tourin_gateway_fallbacks_total{{{route},reason="no_instance"}} 2"#),
        format!(r#"{route},method="GET",status_class="degraded"}} 1"#),
        format!(r#"{route},method="HEAD",status_class="degraded"}} 1"#),
        format!(r#"{route},method="POST",status_class="5xx"}} 1"#),
    ];
    let metrics = eventually("all are counted", || async {
        let metrics = gateway.metrics().await;
        if lines.iter().all(|line| metrics.contains(line)) { Ok(metrics) } else { Err(metrics) }
    })
    .await;
    assert!(
        !metrics.contains(&format!(r#"{route},method="GET",status_class="2xx"}}"#)),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_fallback_stands_for_errors_timeouts_and_lost_connections() {
    let mesh = Mesh::start().await;
    let service = mesh.service("recommendation", "recommendation-1").await;
    let adjust = |settings: &mut Settings| settings.first_byte_timeout_ms = 2_000;
    let (gateway, _table) = routed(&mesh, SIMILAR, adjust).await;
    is_up(&gateway, "/api/tour-spots/7/similar").await;
    eventually("its own response is sent", || async {
        gateway.get("/api/tour-spots/7/similar").await.header(FALLBACK).is_none()
    })
    .await;

    let reason = |query: &'static str| {
        let gateway = &gateway;
        async move {
            let answer = gateway.get(&format!("/api/tour-spots/7/similar?{query}")).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.header(FALLBACK).map(str::to_owned)
        }
    };
    assert_eq!(reason("fail").await.as_deref(), Some("server_error"));
    assert_eq!(reason("hold").await.as_deref(), Some("timeout"));
    service.release();
    assert_eq!(reason("").await, None, "the service's own");
    let failing = gateway.call("POST", "/api/tour-spots/7/similar?fail", &[]).await;
    assert_eq!((failing.status, failing.header(FALLBACK)), (500, None));

    // Nobody listens there any more, and the registry does not know it yet.
    service.stop.begin();
    eventually("it cannot be reached", || async {
        reason("").await.as_deref() == Some("unreachable")
    })
    .await;
    eventually("its breaker is open", || async {
        reason("").await.as_deref() == Some("breaker_open")
    })
    .await;
}

#[tokio::test]
async fn a_breaker_opens_for_its_route_alone_and_closes_again() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let breaker = "[route.breaker]\nopen_ms = 5000\nhalf_open_calls = 2\n";
    let (gateway, _table) = routed(&mesh, &format!("{USERS}{breaker}{SPOTS}"), |_| {}).await;
    is_up(&gateway, "/api/tour-spots").await;

    for _ in 0..5 {
        assert_eq!(gateway.get("/api/users?fail").await.status, 500);
    }
    let before = core.calls();
    let refused = gateway.get("/api/users").await;
    refused.assert_refused(503, "unavailable");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&wait), "what is left, in whole seconds: {wait}");
    assert_eq!(core.calls(), before, "the service was not asked");
    assert_eq!(gateway.get("/api/tour-spots").await.status, 200, "another route");
    let metrics = gateway.metrics().await;
    assert_counted(&metrics, r#"tourin_gateway_breaker_state{route="/api/users"} 2"#);
    assert_counted(&metrics, r#"tourin_gateway_breaker_state{route="/api/tour-spots"} 0"#);
    assert_counted(&metrics, r#"tourin_gateway_breaker_refusals_total{route="/api/users"} 1"#);

    eventually("a probe goes through", || async { gateway.get("/api/users").await.status == 200 })
        .await;
    assert_eq!(gateway.get("/api/users").await.status, 200);
    let metrics = gateway.metrics().await;
    assert_counted(&metrics, r#"tourin_gateway_breaker_state{route="/api/users"} 0"#);
    assert_counted(&metrics, r#"tourin_gateway_breaker_opened_total{route="/api/users"} 1"#);
}

#[tokio::test]
async fn one_failing_instance_among_others_opens_no_breaker() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    mesh.register("core", "core-2", listener.local_addr().unwrap()).await;
    let tls = mesh.tls("core");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Reads a request and hangs up.
            if let Ok(mut stream) = tls.accept(stream).await {
                let _ = stream.read(&mut [0; 4096]).await;
            }
        }
    });
    let (gateway, _table) = routed(&mesh, USERS, |_| {}).await;
    eventually("both are known", || async {
        gateway.call("POST", "/api/users", &[]).await.status == 502
    })
    .await;
    let before = core.calls();
    let mut served = 0;
    for _ in 0..40 {
        // Not repeated, because it may have taken effect.
        let status = gateway.call("POST", "/api/users", &[]).await.status;
        assert!([200, 502].contains(&status), "{status}");
        served += usize::from(status == 200);
    }
    assert!(served >= 20 && core.calls() == before + served, "{served}");
    let metrics = gateway.metrics().await;
    assert_counted(&metrics, r#"tourin_gateway_breaker_state{route="/api/users"} 0"#);
}

#[tokio::test]
async fn calls_of_low_priority_are_shed_first() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let table = format!("{USERS}priority = \"high\"\n{SPOTS}priority = \"low\"\n");
    let (gateway, _table) = routed(&mesh, &table, |settings| {
        settings.adaptive.adaptive_limit_min = 4;
        settings.adaptive.adaptive_limit_initial = 4;
        settings.adaptive.adaptive_limit_max = 4;
    })
    .await;
    is_up(&gateway, "/api/users").await;

    let hold =
        |path: &str| tokio::spawn(gateway.http.get(format!("{}{path}?hold", gateway.url)).send());
    let mut held = vec![hold("/api/tour-spots"), hold("/api/tour-spots"), hold("/api/tour-spots")];
    eventually("three wait", || async { core.held() == 3 }).await;
    let shed = gateway.get("/api/tour-spots").await;
    shed.assert_refused(503, "unavailable");
    let wait: u64 = shed.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    held.push(hold("/api/users"));
    eventually("four wait", || async { core.held() == 4 }).await;
    gateway.get("/api/users").await.assert_refused(503, "unavailable");

    let metrics = gateway.metrics().await;
    for line in [
        r#"tourin_gateway_adaptive_limit{upstream="core"} 4"#,
        r#"tourin_gateway_waiting_requests{upstream="core"} 4"#,
        r#"tourin_gateway_shed_requests_total{upstream="core",priority="low"} 1"#,
        r#"tourin_gateway_shed_requests_total{upstream="core",priority="normal"} 0"#,
        r#"tourin_gateway_shed_requests_total{upstream="core",priority="high"} 1"#,
    ] {
        assert_counted(&metrics, line);
    }
    core.release();
    for call in held {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(gateway.get("/api/tour-spots").await.status, 200);
}

#[tokio::test]
async fn an_upload_takes_no_place_while_its_client_sends_it() {
    const BYTES: usize = 70_000;
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let table = format!("{USERS}body_limit_bytes = 1_000_000\n");
    let (gateway, _table) = routed(&mesh, &table, |settings| {
        settings.adaptive.adaptive_limit_min = 1;
        settings.adaptive.adaptive_limit_initial = 1;
        settings.adaptive.adaptive_limit_max = 1;
    })
    .await;
    is_up(&gateway, "/api/users").await;
    gateway.is_idle().await;

    let mut upload = TcpStream::connect(gateway.addr).await.unwrap();
    let head = format!(
        "POST /api/users?hold HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {BYTES}\r\n\r\nx"
    );
    upload.write_all(head.as_bytes()).await.unwrap();
    eventually("its first bytes are with the service", || async { core.held() == 1 }).await;
    assert_eq!(gateway.get("/api/users").await.status, 200, "no request waits for the service");
    upload.write_all(&[b'x'; BYTES - 1]).await.unwrap();
    eventually("now it waits", || async {
        gateway.metric(r#"tourin_gateway_waiting_requests{upstream="core"}"#).await == 1.0
    })
    .await;
    gateway.get("/api/users").await.assert_refused(503, "unavailable");
    // Nor is another upload begun while the service is at its limit.
    raw(gateway.addr, &head).await.assert_refused(503, "unavailable");
    core.release();
    let mut answer = String::new();
    upload.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    gateway.is_idle().await;
    assert_eq!(gateway.get("/api/users").await.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_opens_no_breaker_and_keeps_no_place() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let (gateway, _table) = routed(&mesh, USERS, |_| {}).await;
    is_up(&gateway, "/api/users").await;
    let before = core.calls();
    for left in 1..=8 {
        let call = gateway.http.get(format!("{}/api/users?hold", gateway.url));
        let call = tokio::spawn(call.send());
        eventually("it waits", || async { core.calls() == before + left }).await;
        call.abort();
        eventually("its client is gone", || async {
            let gone = format!(r#"route="/api/users",method="GET",status_class="gone"}} {left}"#);
            gateway.metrics().await.contains(&gone)
        })
        .await;
    }
    eventually("nobody waits", || async {
        let nobody = r#"tourin_gateway_waiting_requests{upstream="core"} 0"#;
        gateway.metrics().await.contains(nobody)
    })
    .await;
    let metrics = gateway.metrics().await;
    assert_counted(&metrics, r#"tourin_gateway_breaker_state{route="/api/users"} 0"#);
    assert_eq!(gateway.get("/api/users").await.status, 200);
}

#[tokio::test]
async fn a_policy_that_is_not_valid_stops_the_start_with_its_line() {
    let mesh = Mesh::start().await;
    for (policy, expected) in [
        (
            "[route.breaker]\nwindow_calls = 0",
            ["line 7", "breaker.window_calls = 0: from 1 to 100"],
        ),
        (
            "[route.breaker]\nwindow_calls = 4\nminimum_calls = 5",
            ["line 8", "breaker.minimum_calls = 5: at most window_calls, which is 4"],
        ),
        ("[route.breaker]\nwindow = 5", ["line 7", "unknown field `window`"]),
        ("priority = \"highest\"", ["line 6", "unknown variant `highest`"]),
        (
            "[route.fallback]\nbody = \"[\"",
            ["line 7", "fallback.body = \"[\": it is not valid JSON"],
        ),
        (
            "[route.fallback]\nstatus = 204\nbody = \"[]\"",
            ["line 7", "fallback.status = 204: a status that can have a body"],
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("routes.toml");
        std::fs::write(&file, format!("{USERS}{policy}\n")).unwrap();
        let mut settings = mesh.settings();
        settings.routes = Some(file);
        let built = tourin_gateway::Gateway::build(settings, Some(mesh.gateway_identity()));
        let error = tokio::time::timeout(Duration::from_secs(10), built).await.unwrap();
        let error = format!("{:#}", error.err().expect(policy));
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    }
}
