//! One trace through the mesh on real servers, read back from a real Zipkin, or from a collector in this
//! process if the test bed has no Zipkin. The run prints which.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]
#![allow(dead_code, reason = "a part of what the scenarios share is used here")]

#[path = "../scenarios_on_servers/backends.rs"]
mod backends;
#[path = "../journey/read_back.rs"]
mod read_back;
#[path = "../scenarios/virtual_host.rs"]
mod virtual_host;
#[path = "../scenarios/world.rs"]
mod world;

use std::io::Write as _;

use tourin_chassis::config::{LogFormat, LogSettings};
use tourin_chassis::http_client;
use tourin_chassis::telemetry::memory::{MemoryLimits, MemoryStore};
use tourin_chassis::telemetry::{self, TelemetrySettings, TraceSettings};
use tourin_chassis::trace_viewer;
use tourin_testbed::eventually;

use crate::read_back::{Engines, Journey, Zipkin, check};
use crate::world::World;

/// The URL of a collector with Zipkin's read API.
async fn collector() -> String {
    let given = std::env::var("TOURIN_ZIPKIN_URL").ok().filter(|url| !url.trim().is_empty());
    let (url, said) = match given {
        Some(url) => (url, "the Zipkin server"),
        None => {
            let store = MemoryStore::new(MemoryLimits::default());
            let router =
                trace_viewer::router(store.clone()).merge(trace_viewer::collector(store.clone()));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(axum::serve(listener, router).into_future());
            (url, "a collector of this test's own")
        }
    };
    // Not by a macro, whose output the test harness captures.
    let mut uncaptured = std::io::stderr().lock();
    writeln!(uncaptured, "traces go to and are read from {said} at {url}").unwrap();
    url
}

/// Waits until recommendation has handled an event of every spot. Before, the bed's MongoDB-protocol server
/// may answer more slowly than recommendation's time-out allows.
async fn catalogue_is_taken_in(world: &World) {
    let page = world.get("/api/tour-spots").await;
    let spots: f64 = page.header("x-pagination-total-item").parse().unwrap();
    let url = format!("{}/metrics/recommendation-1", world.operator_url());
    let client = http_client::client(None).unwrap();
    eventually("the spots are handled", || async {
        let answer = client.get(&url).send().await.map_err(|error| error.to_string())?;
        let text = answer.text().await.map_err(|error| error.to_string())?;
        let handled: f64 = text
            .lines()
            .filter(|line| {
                line.starts_with(r#"tourin_consumer_events_total{queue="recommendation.spots""#)
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum();
        if handled >= spots { Ok(()) } else { Err(format!("{handled} of {spots} spots")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bookmark_is_one_trace_to_the_trend() {
    let url = collector().await;
    let traces = TraceSettings {
        zipkin_url: Some(url.clone()),
        trace_ratio: 1.0,
        trace_flush_interval_ms: 100,
        ..TraceSettings::default()
    };
    let log = LogSettings { log_format: LogFormat::Text, log: "warn".to_owned() };
    telemetry::init(TelemetrySettings { log, traces }).unwrap();
    let world = World::start().await;
    catalogue_is_taken_in(&world).await;
    let journey = Journey::play(&world).await;
    let engines =
        Engines { broker: "rabbitmq", of_core: "mysql", of_recommendation: &["redis", "mongodb"] };
    check(&Zipkin::at(&url), &journey, &engines).await;
}
