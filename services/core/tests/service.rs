//! The service as a process runs it: on a port, with a folder, started, stopped, started again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tourin_chassis::clock::SystemClock;
use tourin_chassis::identity::{IDENTITY_HEADER, IdentitySigner, Subject};
use tourin_chassis::secret::Secret;
use tourin_chassis::shutdown::Shutdown;
use tourin_core::{Core, Dependencies, Settings};

const SECRET: &str = "0123456789abcdef";

#[derive(Parser)]
#[command(args_override_self = true)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// Settings on a free port, with a registry that is not there.
fn settings(dir: &Path, flags: &[&str]) -> Settings {
    let dir = dir.to_str().unwrap();
    let always = [
        "core",
        "--registration-secret",
        SECRET,
        "--registry-url",
        "http://127.0.0.1:9",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        dir,
        "--password-memory-kib",
        "16",
        "--password-iterations",
        "1",
    ];
    Flags::parse_from(always.iter().chain(flags)).settings
}

fn alone() -> Dependencies {
    Dependencies { publisher: None, clock: Arc::new(SystemClock) }
}

/// A running service.
struct Running {
    address: SocketAddr,
    stop: Shutdown,
    service: tokio::task::JoinHandle<anyhow::Result<()>>,
    client: reqwest::Client,
}

impl Running {
    async fn start(settings: Settings) -> Self {
        let core = Core::build(settings, alone()).await.unwrap();
        let address = core.addr();
        let stop = Shutdown::new();
        let service = tokio::spawn(core.run_until_stopped(stop.clone()));
        Self { address, stop, service, client: reqwest::Client::new() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.client.get(self.url(path)).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let request = self.client.post(self.url(path)).json(&body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn stop(self) -> Duration {
        let began = Instant::now();
        self.stop.begin();
        self.service.await.unwrap().unwrap();
        began.elapsed()
    }
}

fn hana() -> Value {
    json!({
        "id": "hana12345", "password": "sea-breeze1!", "name": "김하나", "email": "hana@example.com",
    })
}

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
async fn the_first_start_loads_the_catalogue_unless_told_not_to() {
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
    for path in ["/internal/revocations", "/internal/events"] {
        let identity = signer.sign(&gateway, "core");
        let request = format!(
            "GET {path}?after=0&wait_ms=20000 HTTP/1.1\r\nhost: core\r\nconnection: close\r\n\
             {IDENTITY_HEADER}: {}\r\n\r\n",
            identity.to_str().unwrap()
        );
        let mut stream = TcpStream::connect(core.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        followers.push(stream);
    }
    // Connections are accepted in order: when this one is answered, the followers' are accepted.
    assert_eq!(core.get("/healthz").await.0, 200);
    assert!(core.stop().await < Duration::from_secs(4));
    for mut follower in followers {
        let mut answer = String::new();
        follower.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn a_start_that_cannot_be_says_why_in_one_line() {
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

    let error = refused(dir.path(), &["--registry-url", "nonsense"]).await;
    assert!(error.contains("--registry-url nonsense"), "{error}");

    let error =
        refused(dir.path(), &["--password-memory-kib", "8", "--password-parallelism", "4"]).await;
    assert!(error.contains("--password-memory-kib 8"), "{error}");
    taken.stop().await;
}
