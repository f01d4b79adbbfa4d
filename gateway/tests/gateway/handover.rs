//! A gateway's program is replaced while clients call it.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tourin_chassis::http_client;
use tourin_gateway::handover::Predecessor;
use tourin_testbed::{eventually, eventually_within, free_address};

use crate::harness::{Http2, Mesh, Service, Site, ask};

const CLIENTS: usize = 8;
const HAND_OVERS: usize = 3;
/// A hand-over, or a start that fails, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(60);

/// Without a rate limit, which the load would exceed.
const ROUTES: &str =
    "[[route]]\npath = \"/api/users\"\nservice = \"core\"\nmethods = { GET = \"public\" }\n";

/// A mesh with a gateway's program that can be replaced.
struct Stage {
    mesh: Mesh,
    core: Service,
    folder: TempDir,
    address: SocketAddr,
    admin: SocketAddr,
    more: Vec<String>,
    running: Child,
}

impl Stage {
    /// With a gateway that is ready, and the flags `more`.
    async fn set(more: Vec<String>) -> Self {
        let mesh = Mesh::start().await;
        let core = mesh.service("core", "core-1").await;
        let folder = tempfile::tempdir().unwrap();
        let (address, admin) = (free_address(), free_address());
        let running = start(&mesh, (address, admin), folder.path(), &more);
        let stage = Self { mesh, core, folder, address, admin, more, running };
        eventually_within(LIMIT, "the first one offers its sockets", || async {
            stage.offer().is_some()
        })
        .await;
        let client = http_client::client(Duration::from_secs(5)).unwrap();
        let ready = format!("http://{admin}/readyz");
        eventually("the first one is ready", || async {
            client.get(&ready).send().await.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        stage
    }

    fn start(&self, more: &[&str]) -> Child {
        let more = more.iter().map(|flag| (*flag).to_owned());
        let more: Vec<String> = self.more.iter().cloned().chain(more).collect();
        start(&self.mesh, (self.address, self.admin), self.folder.path(), &more)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("gateway.sock")
    }

    /// Tells the offers of different gateways apart.
    fn offer(&self) -> Option<u64> {
        Some(std::fs::metadata(self.socket()).ok()?.ino())
    }

    /// Starts the next gateway, and waits until it has taken over. Gives the one before it.
    async fn replace(&mut self) -> Child {
        let before = self.offer();
        let next = self.start(&[]);
        eventually_within(LIMIT, "the next one offers its sockets", || async {
            self.offer() != before
        })
        .await;
        std::mem::replace(&mut self.running, next)
    }

    /// A route table with which no gateway gets ready, because a service of it is not there.
    fn hopeless_routes(&self) -> PathBuf {
        let file = self.folder.path().join("hopeless.toml");
        let route =
            "[[route]]\npath = \"/a\"\nservice = \"nowhere\"\nmethods = { GET = \"public\" }\n";
        std::fs::write(&file, route).unwrap();
        file
    }
}

/// Starts the gateway's program.
fn start(
    mesh: &Mesh,
    (address, admin): (SocketAddr, SocketAddr),
    folder: &Path,
    more: &[String],
) -> Child {
    let token = mesh.authority.join_token("gateway", None, Duration::from_secs(600)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("TOURIN_") {
            command.env_remove(variable);
        }
    }
    let routes = folder.join("routes.toml");
    std::fs::write(&routes, ROUTES).unwrap();
    command
        .env("TOURIN_JOIN_TOKEN", token)
        .env("TOURIN_GATEWAY_ROUTES", routes)
        .args(["--registry-url", &mesh.registry_url, "--gateway-threads", "2", "--log", "error"])
        .args(["--listen", &address.to_string(), "--admin-listen", &admin.to_string()])
        .arg("--handover-socket")
        .arg(folder.join("gateway.sock"))
        .args(more)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn end_of(mut gateway: Child) -> ExitStatus {
    tokio::time::timeout(LIMIT, gateway.wait()).await.expect("it ends").unwrap()
}

/// Calls that clients make until they are told to stop.
struct Load {
    done: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    fn begin(address: SocketAddr) -> Self {
        let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let calls = || tokio::spawn(call_until(address, Arc::clone(&done), Arc::clone(&answered)));
        let callers = (0..CLIENTS).map(|_| calls()).collect();
        Self { done, answered, callers }
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until every client has had another answer or nearly so.
    async fn goes_on(&self) {
        let before = self.answered();
        eventually_within(LIMIT, "calls are answered", || async {
            self.answered() > before + 2 * CLIENTS
        })
        .await;
    }

    /// Fails if one call of them all has.
    async fn end(self) {
        self.goes_on().await;
        self.done.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
    }
}

/// A connection over which one call after the other is made. Nothing is tried again: a connection that ends
/// before an answer is a failure.
struct Caller(TcpStream);

impl Caller {
    async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.expect("somebody listens"))
    }

    /// Gives whether the gateway keeps the connection after the answer.
    async fn call(&mut self, path: &str) -> bool {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.0.write_all(request.as_bytes()).await.expect("the connection is open");
        let mut bytes = Vec::new();
        loop {
            let read = self.0.read_buf(&mut bytes).await.expect("an answer");
            assert!(read > 0, "closed before an answer: {:?}", String::from_utf8_lossy(&bytes));
            let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            assert!(head.starts_with("http/1.1 200"), "{text}");
            let length = head.split("content-length: ").nth(1).expect("a length");
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            let mut rest = vec![0; length - body.len()];
            self.0.read_exact(&mut rest).await.expect("the whole answer");
            return !head.contains("\r\nconnection: close");
        }
    }
}

/// Calls over one connection after the other, each kept as long as the gateway keeps it.
async fn call_until(address: SocketAddr, done: Arc<AtomicBool>, answered: Arc<AtomicUsize>) {
    while !done.load(Ordering::Relaxed) {
        let mut caller = Caller::connect(address).await;
        let mut is_kept = true;
        while is_kept && !done.load(Ordering::Relaxed) {
            is_kept = caller.call("/api/users").await;
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn flags(more: &[&str]) -> Vec<String> {
    more.iter().map(|flag| (*flag).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_gateways_replace_each_other() {
    // Longer than the test waits for anything, so that the gateway does not close the idle connection.
    let mut stage = Stage::set(flags(&["--handover-drain-ms", "600000"])).await;
    let load = Load::begin(stage.address);
    let client = http_client::client(LIMIT).unwrap();
    let config = format!("http://{}/internal/state", stage.admin);
    for _ in 0..HAND_OVERS {
        let mut idle = Caller::connect(stage.address).await;
        assert!(idle.call("/api/users").await, "a gateway that runs keeps connections");
        let mut silent = Caller::connect(stage.address).await;
        let mut waiting = Caller::connect(stage.address).await;
        let in_flight = tokio::spawn(async move { waiting.call("/api/users?hold").await });
        eventually("the request is in progress", || async { stage.core.held() == 1 }).await;

        let mut old = stage.replace().await;
        load.goes_on().await;
        // Operators reach the one that took over, every time.
        for _ in 0..5 {
            assert_eq!(client.get(&config).send().await.unwrap().status(), 200);
        }
        assert!(old.try_wait().unwrap().is_none(), "it waits for its connections");
        assert!(!idle.call("/api/users").await, "the next answer is the last");
        assert!(!silent.call("/api/users").await, "also when it is the first");
        stage.core.release();
        in_flight.await.unwrap();
        assert!(end_of(old).await.success());
    }
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_goes_on_when_its_successor_fails() {
    let mut stage = Stage::set(Vec::new()).await;
    let load = Load::begin(stage.address);
    let offer = stage.offer();
    // Before it asks for the sockets.
    let refused = stage.start(&["--routes", "/nowhere/routes.toml"]);
    assert_eq!(end_of(refused).await.code(), Some(2));
    // With the sockets, and unable to join the mesh.
    let stranger = stage.start(&["--registry-url", "https://127.0.0.1:1"]);
    // With the sockets, and not ready in time.
    assert!(!end_of(stranger).await.success());
    load.goes_on().await;
    let hopeless = stage.hopeless_routes();
    let routes = ["--routes", hopeless.to_str().unwrap(), "--handover-ready-ms"];
    let unready = stage.start(&[routes.as_slice(), &["1000"]].concat());
    assert!(!end_of(unready).await.success());
    load.goes_on().await;
    // Killed while it has the sockets: nobody else gets them meanwhile.
    let mut killed = stage.start(&[routes.as_slice(), &["600000"]].concat());
    eventually_within(LIMIT, "the sockets are handed over", || async {
        Predecessor::ask(&stage.socket()).await.is_err()
    })
    .await;
    assert!(killed.try_wait().unwrap().is_none(), "it gets ready");
    killed.kill().await.unwrap();
    load.goes_on().await;

    assert!(stage.running.try_wait().unwrap().is_none(), "it runs");
    assert_eq!(stage.offer(), offer, "the same one offers the sockets");
    // And the next good one takes over.
    let old = stage.replace().await;
    assert!(end_of(old).await.success());
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_http2_connections_are_finished() {
    let site = Site::new(&["tourin.example"]);
    let tls = site.settings();
    let (certificate, key) = (tls.certificates[0].to_str().unwrap(), tls.keys[0].to_str().unwrap());
    let mut stage = Stage::set(flags(&["--tls-certificate", certificate, "--tls-key", key])).await;
    let client = Http2::open(&site, stage.address).await;
    assert_eq!(client.get("/api/users", &[]).await.unwrap().status, 200);
    let mut ready = client.requests.clone().ready().await.unwrap();
    let held = ask("GET", "/api/users?hold", &[]);
    let (response, _) = ready.send_request(held, true).unwrap();
    let in_flight = tokio::spawn(response);
    eventually("the request is in progress", || async { stage.core.held() == 1 }).await;

    let old = stage.replace().await;
    // The client is told to open another connection, which is the new gateway's.
    eventually("the connection takes no new requests", || async {
        client.requests.clone().ready().await.is_err()
    })
    .await;
    let next = Http2::open(&site, stage.address).await;
    assert_eq!(next.get("/api/users", &[]).await.unwrap().status, 200);
    stage.core.release();
    assert_eq!(in_flight.await.unwrap().unwrap().status(), 200);
    drop((ready, client.requests));
    assert!(end_of(old).await.success());
    assert_eq!(next.get("/api/users", &[]).await.unwrap().status, 200);
}
