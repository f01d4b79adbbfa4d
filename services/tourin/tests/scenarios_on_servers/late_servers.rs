//! A mesh that is started before its servers.

use std::net::TcpListener;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tourin::mesh::Mesh;
use tourin::up::UpSettings;
use tourin_chassis::shutdown::Shutdown;
use tourin_testbed::Proxy;

use crate::corner::{Corner, PATIENCE};
use crate::world::{World, eventually};

/// MySQL is away: clients are told so under a trace id, and operators what is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_before_the_database_is_told_so() {
    let mut settings = UpSettings::ephemeral();
    let corner = Corner::take(&mut settings).await;
    let way = corner.database_behind_a_closed_door(&mut settings);
    // One that was free a moment ago.
    settings.listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let world = World::at(format!("http://{}", settings.listen));
    let stop = Shutdown::new();
    let starting = tokio::spawn(Mesh::start(settings, stop.clone()));

    // Not `World::get`, which tries again where a store is slow.
    let ask = async |path: &str| {
        let asked = world.request(Method::GET, path).send().await;
        let answer = asked.map_err(|error| error.to_string())?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body: Value = answer.json().await.map_err(|error| error.to_string())?;
        Ok::<_, String>((status, headers, body))
    };
    assert_eq!(eventually(|| async { ask("/healthz").await }).await.0, 200);
    let (status, _, unready) = ask("/readyz").await.unwrap();
    assert_eq!(status, 503);
    assert!(unready["unready"]["core"].is_string(), "{unready}");
    let (status, headers, refused) = ask("/api/tour-spots").await.unwrap();
    assert_eq!((status, &refused["error"]), (503, &json!("unavailable")));
    assert_eq!(headers["retry-after"], "1");
    let trace = refused["traceId"].as_str().expect("a trace id");
    assert!(headers["traceresponse"].to_str().unwrap().contains(trace));
    assert!(!starting.is_finished(), "it waits");

    way.open().await;
    let mesh = tokio::time::timeout(PATIENCE, starting).await.unwrap().unwrap().unwrap();
    world.get("/api/tour-spots").await.expect(200);
    mesh.stop().await.unwrap();
}

/// A stop while it waits is a stop like another.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_waits_for_its_database_can_be_stopped() {
    let mut settings = UpSettings::ephemeral();
    let corner = Corner::take(&mut settings).await;
    let _way: Proxy = corner.database_behind_a_closed_door(&mut settings);
    let stop = Shutdown::new();
    let starting = tokio::spawn(Mesh::start(settings, stop.clone()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!starting.is_finished(), "it waits");
    stop.begin();
    let mesh = tokio::time::timeout(PATIENCE, starting).await.unwrap().unwrap().unwrap();
    mesh.stop().await.unwrap();
}
