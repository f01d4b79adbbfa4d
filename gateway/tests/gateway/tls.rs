//! TLS towards clients.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tourin_gateway::Gateway;
use tourin_testbed::eventually;

use crate::harness::raw::parse;
use crate::harness::{Mesh, Site};

#[tokio::test]
async fn requests_over_tls_are_https_to_services_and_browsers() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let site = Site::new(&["tourin.example"]);
    let gateway = mesh
        .tls_gateway(&site, |settings| {
            settings.response_headers.fields = vec!["X-Frame-Options: DENY".parse().unwrap()];
        })
        .await;
    let answer = gateway.get("/api/users").await;
    assert_eq!(answer.asked()["headers"]["x-forwarded-proto"], "https");
    assert_eq!(answer.asked()["headers"]["x-forwarded-for"], "127.0.0.1");
    assert_eq!(answer.header("strict-transport-security"), Some("max-age=31536000"));
    assert_eq!(answer.header("x-frame-options"), Some("DENY"));
    // The session cookies are Secure, with names of their own, also for an address of this machine.
    let token = core.issuer.token("member01", "s1");
    let plain = format!("access_token={token}");
    gateway
        .call("GET", "/api/auth/me", &[("cookie", &plain)])
        .await
        .assert_refused(401, "unauthenticated");
    let secure = format!("__Host-access_token={token}");
    let answer = gateway.call("GET", "/api/auth/me", &[("cookie", &secure)]).await;
    assert_eq!(answer.asked()["subject"]["id"], "member01");
    let refused = gateway.get("/nowhere").await;
    refused.assert_refused(404, "not_found");
    assert_eq!(refused.header("strict-transport-security"), Some("max-age=31536000"));
    assert_eq!(refused.header("x-frame-options"), Some("DENY"));
    let mut unreadable = site.connect(gateway.addr, "tourin.example", &[]).await.unwrap();
    unreadable.write_all(b"what?\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    unreadable.read_to_end(&mut answer).await.unwrap();
    let refused = parse(&answer);
    refused.assert_refused(400, "malformed");
    assert_eq!(refused.header("strict-transport-security"), Some("max-age=31536000"));
    assert_eq!(refused.header("x-frame-options"), Some("DENY"));

    // Without TLS there is neither.
    let plain = mesh.gateway(|_| {}).await;
    let answer = plain.get("/api/users").await;
    assert_eq!(answer.asked()["headers"]["x-forwarded-proto"], "http");
    assert_eq!(answer.header("strict-transport-security"), None);
}

#[tokio::test]
async fn certificates_are_chosen_by_name_and_reload_while_connections_go_on() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let site = Site::new(&["tourin.example", "other.example"]);
    let gateway = mesh
        .tls_gateway(&site, |settings| {
            settings.watch_interval_ms = 100;
            // A connection stays open without a request until the certificates have been reloaded.
            settings.client_first_byte_ms = 600_000;
        })
        .await;
    let first = site.certificate(gateway.addr, "tourin.example").await;
    let other = site.certificate(gateway.addr, "other.example").await;
    assert_ne!(first, other);

    let mut open = site.connect(gateway.addr, "tourin.example", &[]).await.unwrap();
    let (certificate, key) = site.issue("tourin.example");
    site.write_certificate("tourin.example", &certificate);
    // Its key is still the old one, so it is refused and the old pair stays.
    let refused = r#"tourin_gateway_reloads_total{what="tls",result="refused"}"#;
    eventually("the half of a pair is refused", || async { gateway.metric(refused).await >= 1.0 })
        .await;
    assert_eq!(site.certificate(gateway.addr, "tourin.example").await, first);
    site.write_key("tourin.example", &key);
    eventually("the new certificate is in use", || async {
        site.certificate(gateway.addr, "tourin.example").await != first
    })
    .await;
    assert_eq!(site.certificate(gateway.addr, "other.example").await, other);
    let applied = r#"tourin_gateway_reloads_total{what="tls",result="applied"}"#;
    eventually("it is counted once", || async { gateway.metric(applied).await == 1.0 }).await;

    // The old connection still serves.
    let ask = "GET /healthz HTTP/1.1\r\nHost: tourin.example\r\nConnection: close\r\n\r\n";
    open.write_all(ask.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    open.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_hang_up_reloads_certificates_at_once() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let site = Site::new(&["tourin.example"]);
    let gateway = mesh.tls_gateway(&site, |settings| settings.watch_interval_ms = 60_000).await;
    let before = site.certificate(gateway.addr, "tourin.example").await;
    let (certificate, key) = site.issue("tourin.example");
    site.write_key("tourin.example", &key);
    site.write_certificate("tourin.example", &certificate);
    let process = rustix::process::getpid();
    rustix::process::kill_process(process, rustix::process::Signal::HUP).unwrap();
    eventually("the new certificate is in use", || async {
        site.certificate(gateway.addr, "tourin.example").await != before
    })
    .await;
}

#[tokio::test]
async fn what_is_no_handshake_is_closed_in_time_and_holds_nobody_up() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let site = Site::new(&["tourin.example"]);
    let gateway = mesh.tls_gateway(&site, |settings| settings.header_read_timeout_ms = 2_000).await;
    let failed = gateway.metric("tourin_gateway_tls_handshakes_failed_total").await;
    let mut silent = TcpStream::connect(gateway.addr).await.unwrap();
    let mut plain = TcpStream::connect(gateway.addr).await.unwrap();
    plain.write_all(b"GET /api/users HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    assert_eq!(gateway.get("/api/users").await.status, 200, "others are served meanwhile");
    for stream in [&mut silent, &mut plain] {
        let mut answer = Vec::new();
        let closed = stream.read_to_end(&mut answer);
        // A reset closes it too.
        let _ = tokio::time::timeout(Duration::from_secs(10), closed).await.expect("closed");
        assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    }
    eventually("both are counted", || async {
        gateway.metric("tourin_gateway_tls_handshakes_failed_total").await - failed == 2.0
    })
    .await;
}

#[tokio::test]
async fn a_bad_certificate_stops_the_start() {
    let mesh = Mesh::start().await;
    let site = Site::new(&["tourin.example"]);
    site.write_key("tourin.example", &site.issue("tourin.example").1);
    let mut settings = mesh.settings();
    settings.tls = site.settings();
    let error = Gateway::build(settings, None).await.err().expect("the start is refused");
    assert!(format!("{error:#}").contains("--tls-certificate"), "{error:#}");
}
