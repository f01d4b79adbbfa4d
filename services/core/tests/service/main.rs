//! The service as in a process: on a port, with a folder, started, stopped, restarted.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod running;
mod server_database;
mod server_redis;

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tourin_chassis::identity::{IDENTITY_HEADER, IdentitySigner, Subject};
use tourin_chassis::secret::Secret;
use tourin_core::{Core, Dependencies, Settings};

use running::{RECOVERY, Running, SECRET, alone, hana, read, settings};

#[tokio::test]
async fn a_second_start_finds_the_data_and_the_key_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("made/at/start");
    let first = Running::start(settings(&data, &["--no-demo"])).await;
    assert_eq!(first.get("/readyz").await.0, 200);
    assert_eq!(first.post("/api/auth/signup", hana()).await.0, 201);
    let keys = first.get("/.well-known/jwks.json").await.1;
    assert!(first.stop().await < Duration::from_secs(4));

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

#[tokio::test]
async fn a_stop_does_not_wait_for_those_who_wait_for_news() {
    let dir = tempfile::tempdir().unwrap();
    let core = Running::start(settings(dir.path(), &["--no-demo"])).await;
    let signer = IdentitySigner::new(&SECRET.parse::<Secret>().unwrap());
    let gateway = Subject::Service { name: "gateway".to_owned() };
    let mut followers = Vec::new();
    for _ in 0..2 {
        let identity = signer.sign(&gateway, "core");
        let request = format!(
            "GET /internal/revocations?after=0&wait_ms=20000 HTTP/1.1\r\nhost: core\r\nconnection: close\r\n\
             {IDENTITY_HEADER}: {}\r\n\r\n",
            identity.to_str().unwrap()
        );
        let mut stream = TcpStream::connect(core.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        followers.push(stream);
    }
    // Connections are accepted in order: after this response, those of the followers are accepted.
    assert_eq!(core.get("/healthz").await.0, 200);
    assert!(core.stop().await < Duration::from_secs(4));
    for mut follower in followers {
        let mut answer = String::new();
        follower.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
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
    assert!(error.contains("--registry-url nonsense"), "{error}");

    let error =
        refused(dir.path(), &["--password-memory-kib", "8", "--password-parallelism", "4"]).await;
    assert!(error.contains("--password-memory-kib 8"), "{error}");
    taken.stop().await;
}
