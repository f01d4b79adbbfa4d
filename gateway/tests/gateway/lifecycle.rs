//! Starting and stopping.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tourin_testbed::eventually;

use crate::harness::Mesh;
use tourin_gateway::Gateway;

async fn refusal(settings: tourin_gateway::Settings) -> String {
    let error = Gateway::build(settings, None).await.err().expect("the start is refused");
    format!("{error:#}")
}

#[tokio::test]
async fn a_failed_start_names_its_reason() {
    let mesh = Mesh::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = mesh.settings();
    settings.listen = taken.local_addr().unwrap();
    let error = refusal(settings).await;
    assert!(
        error.contains(&taken.local_addr().unwrap().to_string()) && error.contains("taken"),
        "{error}"
    );

    let folder = tempfile::tempdir().unwrap();
    let routes = folder.path().join("routes.toml");
    let mut settings = mesh.settings();
    settings.routes = Some(routes.clone());
    assert!(refusal(settings.clone()).await.contains("routes.toml"));
    std::fs::write(
        &routes,
        "[[route]]\npath = \"/a\"\nservice = \"core\"\nmethods = { GET = \"all\" }\n",
    )
    .unwrap();
    let error = refusal(settings).await;
    assert!(
        error.contains("line 4") && error.contains("methods.GET") && error.contains("\"all\""),
        "{error}"
    );

    let mut settings = mesh.settings();
    settings.mesh.access.registry_url = "nonsense".to_owned();
    assert!(refusal(settings).await.contains("--registry-url"));
    let mut settings = mesh.settings();
    settings.mesh.instance_id = Some("a/b".to_owned());
    assert!(refusal(settings).await.contains("--instance-id"));
}

#[tokio::test]
async fn a_gateway_serves_without_the_registry_and_reports_it_missing() {
    let (mesh, _core, gateway) = Mesh::complete().await;
    let ready = gateway.get("/readyz").await;
    assert_eq!(ready.body["missed"], serde_json::Value::Null, "{ready:?}");
    mesh.registry_stop.begin();
    eventually("the registry is missed", || async {
        gateway.get("/readyz").await.body["missed"]["registry"].is_string()
    })
    .await;
    let ready = gateway.get("/readyz").await;
    assert_eq!((ready.status, &ready.body["status"]), (200, &"ready".into()));
    assert_eq!(gateway.get("/api/users").await.status, 200);
}

#[tokio::test]
async fn a_gateway_is_in_the_registry_while_it_runs() {
    let (mesh, _core, mut gateway) = Mesh::complete().await;
    let registered = || async {
        let known = mesh.registry.list(Some("gateway")).await.unwrap();
        known.instances.iter().map(|instance| instance.address).collect::<Vec<_>>()
    };
    eventually("the gateway is registered", || async { registered().await == [gateway.addr] })
        .await;
    gateway.stop.begin();
    (&mut gateway.running).await.unwrap().unwrap();
    assert!(registered().await.is_empty());
}

#[tokio::test]
async fn a_stop_lets_requests_in_flight_finish_and_nothing_else() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let mut gateway = mesh
        .gateway(|settings| {
            settings.drain_timeout_ms = 60_000;
            settings.client_first_byte_ms = 600_000;
        })
        .await;
    let mut idle = TcpStream::connect(gateway.addr).await.unwrap();
    let call = tokio::spawn(gateway.http.get(format!("{}/api/users?hold", gateway.url)).send());
    eventually("the request is in progress", || async { core.held() == 1 }).await;

    gateway.stop.begin();
    // Idle connections are closed at once, and new ones are refused.
    let mut nothing = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), idle.read_to_end(&mut nothing))
        .await
        .expect("closed")
        .unwrap();
    eventually("the listener is closed", || async {
        TcpStream::connect(gateway.addr).await.is_err()
    })
    .await;
    assert!(!gateway.running.is_finished());
    // The operators' listener still answers, and readiness has the reason.
    let ready = gateway.http.get(format!("http://{}/readyz", gateway.admin)).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    let report: serde_json::Value = ready.json().await.unwrap();
    assert_eq!(report["unready"]["gateway"], "stopping");

    core.release();
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["connection"], "close");
    assert!(answer.bytes().await.unwrap().len() > 2);
    (&mut gateway.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let (mesh, core, _gateway) = Mesh::complete().await;
    let mut gateway = mesh.gateway(|settings| settings.drain_timeout_ms = 60_000).await;
    let start = Instant::now();
    gateway.stop.begin();
    (&mut gateway.running).await.unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_secs(30), "nothing in flight: {:?}", start.elapsed());

    // Long before the client gives up.
    let mut gateway = mesh.gateway(|settings| settings.drain_timeout_ms = 1_000).await;
    let call = tokio::spawn(gateway.http.get(format!("{}/api/users?hold", gateway.url)).send());
    eventually("the request is in progress", || async { core.held() == 1 }).await;
    let start = Instant::now();
    gateway.stop.begin();
    (&mut gateway.running).await.unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(call.await.unwrap().is_err(), "cut, not answered with half a body");
}
