//! The service as a whole: built, run and stopped.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

#[path = "../mesh/mod.rs"]
mod mesh;
mod servers;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tourin_chassis::clock::SystemClock;
use tourin_recommendation::{Dependencies, Recommendation, open_stores, subscriptions};
use tourin_shared_events::bus::Publisher as _;
use tourin_shared_events::bus::in_process::InProcessBus;
use tourin_shared_events::events::{BookmarkTourspot, Outgoing};
use tourin_testbed::{equal, eventually};

use mesh::*;
use tourin_recommendation::SERVICE;
use tourin_registry::testing::workload;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_what_was_counted_and_events_of_the_meantime_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = FakeMesh::start(catalogue(9, 1)).await;
    let bus = bus();
    let service = Running::start(settings(folder.path(), mesh.url()), on(&bus)).await;
    eventually("the service is ready", async || {
        equal(service.status("/readyz").await, StatusCode::OK)
    })
    .await;
    eventually("the service is registered", async || {
        equal(mesh.state.lock().unwrap().registered.len(), 1)
    })
    .await;
    assert_eq!(service.ids("/api/recommendations/personalized?k=100", "member01").await.len(), 9);
    assert!(service.trend().await.is_empty());

    assert_eq!(bus.publish(vec![view("anon:abcd", 3)]).await, [Ok(())]);
    assert_eq!(service.trend().await, ["3"]);
    service.stop().await;
    assert!(mesh.state.lock().unwrap().registered.is_empty());

    let meantime = tokio::spawn({
        let (bus, events) = (bus.clone(), vec![view("anon:abcd", 4), view("anon:bbbb", 4)]);
        async move { bus.publish(events).await }
    });
    let again = Running::start(settings(folder.path(), mesh.url()), on(&bus)).await;
    eventually("the trend is kept", async || equal(again.trend().await, ["4", "3"])).await;
    assert!(meantime.await.unwrap().iter().all(Result::is_ok));
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_core_comes_back_with_other_data_the_replica_follows() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = FakeMesh::start(catalogue(9, 7)).await;
    let service = Running::start(settings(folder.path(), mesh.url()), on(&bus())).await;
    let all = "/api/recommendations/personalized?k=100";
    eventually("the service is ready", async || {
        equal(service.status("/readyz").await, StatusCode::OK)
    })
    .await;
    assert_eq!(service.ids(all, "member01").await.len(), 9);
    {
        let mut state = mesh.state.lock().unwrap();
        state.log_id = "log-2".into();
        state.spots = catalogue(2, 1);
        state.core = 1;
    }
    eventually("the history is there", async || {
        equal(service.ids(all, "member01").await, ["1", "2"])
    })
    .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_on_one_bus_and_one_store_soon_answer_alike() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = FakeMesh::start(catalogue(9, 1)).await;
    let clock = Arc::new(SystemClock);
    let settings = settings(folder.path(), mesh.url());
    let stores = open_stores(&settings, clock.clone()).await.unwrap();
    let bus = InProcessBus::new(stores.dead_letters.clone());
    for subscription in subscriptions() {
        bus.declare(subscription).unwrap();
    }
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let dependencies = Dependencies {
            events: Some(Arc::new(bus.clone())),
            workload: Some(workload(SERVICE)),
            stores: Some(stores.clone()),
            clock: clock.clone(),
        };
        replicas.push(Running::start(settings.clone(), dependencies).await);
    }
    for replica in &replicas {
        eventually("the replica is ready", async || {
            equal(replica.status("/readyz").await, StatusCode::OK)
        })
        .await;
    }
    let bookmark = BookmarkTourspot { user_id: "member01".into(), tourspot_id: "5".into() };
    let mut events = vec![Outgoing::new(&bookmark, chrono::Utc::now())];
    events.extend((0..50).map(|n| view(&format!("member{n:02}"), 7)));
    let published = Instant::now();
    assert!(bus.publish(events).await.into_iter().all(|result| result.is_ok()));
    for replica in &replicas {
        eventually("the replica has the trend", async || equal(replica.trend().await, ["7", "5"]))
            .await;
        let personal = replica.ids("/api/recommendations/personalized?k=9", "member01").await;
        assert_eq!(personal.len(), 7);
        assert!(!personal.contains(&"5".to_owned()) && !personal.contains(&"7".to_owned()));
    }
    // Within a second, and far later on a busy machine.
    assert!(published.elapsed() < Duration::from_secs(10), "took {:?}", published.elapsed());
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test]
async fn the_data_folder_is_readable_by_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder.path().join("data"), "https://127.0.0.1:1".to_owned());
    let _stores = open_stores(&settings, Arc::new(SystemClock)).await.unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&settings.data_dir), 0o700);
    assert_eq!(mode(&settings.file()), 0o600);
}

#[tokio::test]
async fn invalid_settings_are_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a file");
    std::fs::write(&file, "not a folder").unwrap();
    let unusable = settings(&file, "https://127.0.0.1:1".to_owned());
    let bus = bus();
    let error = Recommendation::build(unusable, on(&bus)).await.err().unwrap();
    assert!(format!("{error:#}").contains("--data-dir"), "{error:#}");

    let no_url = settings(folder.path(), "not a url".to_owned());
    let error = Recommendation::build(no_url, on(&bus)).await.err().unwrap();
    assert!(format!("{error:#}").contains("--registry-url"), "{error:#}");

    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut in_use = settings(folder.path(), "https://127.0.0.1:1".to_owned());
    in_use.listen = taken.local_addr().unwrap();
    let error = Recommendation::build(in_use, on(&bus)).await.err().unwrap();
    assert!(format!("{error:#}").contains("taken"), "{error:#}");

    let no_bus = settings(folder.path(), "https://127.0.0.1:1".to_owned());
    let dependencies = Dependencies::new(Arc::new(SystemClock));
    let error = Recommendation::build(no_bus, dependencies).await.err().unwrap().to_string();
    assert!(error.contains("--amqp-url (TOURIN_AMQP_URL) is missing"), "{error}");
}
