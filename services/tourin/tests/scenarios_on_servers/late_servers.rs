//! A mesh that is started before its servers.

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tourin::mesh::Mesh;
use tourin::up::UpSettings;
use tourin_chassis::shutdown::Shutdown;
use tourin_testbed::{eventually, free_address};

use crate::backends::{Backends, TIMEOUT};
use crate::world::World;

/// Status, headers and body. Not `World::get`, which tries again where a store is slow.
async fn ask_at(world: &World, path: &str) -> Result<(u16, HeaderMap, Value), String> {
    let asked = world.request(Method::GET, path).send().await;
    let answer = asked.map_err(|error| error.to_string())?;
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = answer.json().await.map_err(|error| error.to_string())?;
    Ok((status, headers, body))
}

async fn core_waits_for_mysql(operators: &World) {
    eventually("core says what it waits for", || async {
        let (status, _, parts) = ask_at(operators, "/readyz").await?;
        let reason = parts["core"]["unready"]["database"].as_str().unwrap_or_default();
        let is_said = status == 503 && reason.starts_with("waiting for mysql at 127.0.0.1");
        if is_said { Ok(()) } else { Err(parts.to_string()) }
    })
    .await;
}

/// Without MySQL clients get 503 with `Retry-After` and a trace id, and operators the missing dependency.
#[tokio::test(flavor = "multi_thread")]
async fn requests_before_the_database_is_open_are_answered_503() {
    let mut settings = UpSettings::ephemeral();
    let backends = Backends::create(&mut settings).await;
    let proxy = backends.unreachable_database(&mut settings);
    settings.parts.gateway.listen = free_address();
    settings.operator.operator_listen = free_address();
    let world = World::at(format!("http://{}", settings.parts.gateway.listen));
    let operators = World::at(format!("http://{}", settings.operator.operator_listen));
    let starting = tokio::spawn(Mesh::start(settings, Shutdown::new()));

    let ask = async |path: &str| ask_at(&world, path).await;
    assert_eq!(eventually("the gateway is alive", || async { ask("/healthz").await }).await.0, 200);
    let (status, _, unready) = ask("/readyz").await.unwrap();
    assert_eq!(status, 503);
    assert!(unready["unready"]["core"].is_string(), "{unready}");
    let (status, headers, refused) = ask("/api/tour-spots").await.unwrap();
    assert_eq!((status, &refused["error"]), (503, &json!("unavailable")));
    assert_eq!(headers["retry-after"], "1");
    let trace = refused["traceId"].as_str().expect("a trace id");
    assert!(headers["traceresponse"].to_str().unwrap().contains(trace));
    core_waits_for_mysql(&operators).await;
    assert!(!starting.is_finished(), "it waits");

    proxy.open().await;
    let mesh = tokio::time::timeout(TIMEOUT, starting).await.unwrap().unwrap().unwrap();
    world.get("/api/tour-spots").await.expect(200);
    mesh.stop().await.unwrap();
}

/// A mesh stops cleanly while it waits for a server.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_waits_for_its_database_can_be_stopped() {
    let mut settings = UpSettings::ephemeral();
    let backends = Backends::create(&mut settings).await;
    let _proxy = backends.unreachable_database(&mut settings);
    settings.operator.operator_listen = free_address();
    let operators = World::at(format!("http://{}", settings.operator.operator_listen));
    let stop = Shutdown::new();
    let starting = tokio::spawn(Mesh::start(settings, stop.clone()));
    core_waits_for_mysql(&operators).await;
    assert!(!starting.is_finished(), "it waits");
    stop.begin();
    let mesh = tokio::time::timeout(TIMEOUT, starting).await.unwrap().unwrap().unwrap();
    mesh.stop().await.unwrap();
}
