//! The service as in a process: on a port, with a folder, started, stopped, restarted.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod running;
mod server_database;
mod server_redis;

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tourin_core::{Core, Dependencies, Settings};
use tourin_registry::testing::workload_for;
use tourin_testbed::{contains, eventually};

use running::{RECOVERY, Running, alone, hana, read, settings};

#[tokio::test]
async fn a_second_start_finds_the_data_and_the_key_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("made/at/start");
    let first = Running::start(settings(&data, &["--no-demo"])).await;
    assert_eq!(first.get("/readyz").await.0, 200);
    assert_eq!(first.post("/api/auth/signup", hana()).await.0, 201);
    let keys = first.get("/.well-known/jwks.json").await.1;
    assert!(first.stop().await < Duration::from_secs(12));

    let second = Running::start(settings(&data, &["--no-demo"])).await;
    assert_eq!(second.get("/.well-known/jwks.json").await.1, keys);
    let credentials = json!({"id": "hana12345", "password": "sea-breeze1!"});
    assert_eq!(second.post("/api/auth/login", credentials).await.0, 200);
    second.stop().await;
}

#[tokio::test]
async fn the_first_start_loads_the_catalogue_unless_disabled() {
    let dir = tempfile::tempdir().unwrap();
    let with = Running::start(settings(&dir.path().join("with"), &[])).await;
    let spots = with.get("/api/tour-spots").await.1;
    assert_eq!(spots.as_array().unwrap().len(), 10);
    with.stop().await;
    let without = Running::start(settings(&dir.path().join("without"), &["--no-demo"])).await;
    assert_eq!(without.get("/api/tour-spots").await.1, json!([]));
    without.stop().await;
}

async fn metrics(core: &Running) -> String {
    core.client.get(core.url("/metrics")).send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn readiness_and_metrics_tell_of_the_certificate() {
    const LEFT: &str = "tourin_certificate_left_seconds ";
    let left = async |core: &Running| -> f64 {
        let metrics = metrics(core).await;
        let left = metrics.lines().find_map(|line| line.strip_prefix(LEFT)).unwrap();
        left.parse().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let lasting = Running::start(settings(&dir.path().join("a"), &["--no-demo"])).await;
    assert_eq!(lasting.get("/readyz").await.0, 200);
    assert!((3_000.0..=3_600.0).contains(&left(&lasting).await));
    lasting.stop().await;

    // Its registry is away, so nobody renews it.
    let short = Dependencies { workload: Some(workload_for("core", 0)), ..alone() };
    let settings = settings(&dir.path().join("b"), &["--no-demo"]);
    let core = Running::start_with(settings, short).await;
    let reason = eventually("nothing else is missing", async || {
        let (status, report) = core.get("/readyz").await;
        let unready = report["unready"].as_object().cloned().unwrap_or_default();
        let reason = unready.get("certificate").filter(|_| status == 503 && unready.len() == 1);
        reason.and_then(|reason| reason.as_str().map(str::to_owned)).ok_or(report)
    })
    .await;
    assert!(reason.contains("expired"), "{reason}");
    assert_eq!(left(&core).await, 0.0);
    assert_eq!(core.get("/healthz").await.0, 200);
    core.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_those_who_wait_for_news() {
    let dir = tempfile::tempdir().unwrap();
    let core = Running::start(settings(dir.path(), &["--no-demo"])).await;
    let mut followers = Vec::new();
    for _ in 0..2 {
        let url = core.url("/internal/revocations?after=0&wait_ms=20000");
        let request = core.client.get(url).header("connection", "close");
        followers.push(tokio::spawn(request.send()));
    }
    eventually("both are being answered", async || {
        contains(metrics(&core).await, "\ntourin_http_requests_in_flight 2.0\n")
    })
    .await;
    assert!(core.stop().await < Duration::from_secs(12));
    for follower in followers {
        assert_eq!(follower.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_failed_start_prints_its_reason_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let taken = Running::start(settings(&dir.path().join("a"), &["--no-demo"])).await;
    let refused = async |folder: &Path, flags: &[&str]| {
        let error = Core::build(settings(folder, flags), alone()).await.err();
        let text = format!("{:#}", error.expect("the start was to be refused"));
        assert!(!text.contains('\n'), "{text}");
        text
    };
    let address = taken.address.to_string();
    let error = refused(&dir.path().join("b"), &["--listen", &address]).await;
    assert!(error.contains(&address) && error.contains("taken"), "{error}");

    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = refused(&file.join("data"), &[]).await;
    assert!(error.contains("--data-dir") && error.contains("file/data"), "{error}");

    let error = refused(dir.path(), &["--signing-key", file.to_str().unwrap()]).await;
    assert!(error.contains("--signing-key") && error.contains("PKCS#8"), "{error}");

    let no_bus = Dependencies { publisher: None, ..alone() };
    let error = Core::build(settings(dir.path(), &[]), no_bus).await.err().unwrap().to_string();
    assert!(error.contains("--amqp-url (TOURIN_AMQP_URL) is missing"), "{error}");
    assert!(error.contains("deploy/testbed.sh run"), "{error}");

    let error = refused(dir.path(), &["--registry-url", "nonsense"]).await;
    assert!(error.contains("--registry-url") && error.contains("nonsense"), "{error}");

    let error =
        refused(dir.path(), &["--password-memory-kib", "8", "--password-parallelism", "4"]).await;
    assert!(error.contains("--password-memory-kib 8"), "{error}");
    taken.stop().await;
}
