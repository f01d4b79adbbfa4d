//! Instances that fail in every way: what a client sees of it, and how much they still get.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tourin_gateway::Settings;
use tourin_testbed::eventually;

use crate::harness::{ChildInstance, Mesh, TestGateway};

/// What a failing instance does.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Accepts connections, and never a TLS handshake.
    HalfOpen,
    /// Reads, and never answers.
    Silent,
    /// Answers health checks, and nothing else.
    AnswersChecks,
    /// Answers what is not HTTP.
    Garbage,
    /// One byte a second.
    Dribbles,
}

/// Connections or requests of clients that came to the failing instance.
type Seen = Arc<AtomicUsize>;

async fn failing(mesh: &Mesh, fault: Fault) -> Seen {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tls, seen) = (mesh.tls("core"), Seen::default());
    let requests = Arc::clone(&seen);
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, requests) = (tls.clone(), Arc::clone(&requests));
            connections.spawn(async move {
                if matches!(fault, Fault::HalfOpen) {
                    requests.fetch_add(1, Ordering::SeqCst);
                    std::future::pending::<()>().await;
                }
                let Ok(mut stream) = tls.accept(stream).await else { return };
                while let Some(path) = read_head(&mut stream).await {
                    // The gateway makes calls of its own, too.
                    requests.fetch_add(usize::from(path.starts_with("/api/")), Ordering::SeqCst);
                    respond(&mut stream, fault, path == "/healthz").await;
                }
            });
        }
    });
    mesh.register("core", "core-9", address).await;
    seen
}

/// The path of the next request; `None` at the connection's end.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()?.split(' ').nth(1).map(str::to_owned)
}

const FINE: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";

async fn respond(stream: &mut (impl AsyncWrite + Unpin), fault: Fault, is_check: bool) {
    match fault {
        Fault::AnswersChecks if is_check => {
            let _ = stream.write_all(FINE).await;
            let _ = stream.flush().await;
        }
        Fault::Garbage => {
            let _ = stream.write_all(b"\x16\x03 to whom it may concern\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
        Fault::Dribbles => {
            for byte in FINE {
                if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Fault::HalfOpen | Fault::Silent | Fault::AnswersChecks => std::future::pending().await,
    }
}

/// A gateway, two instances that work, and one that fails.
async fn beside(fault: Fault, adjust: impl FnOnce(&mut Settings)) -> (Mesh, TestGateway, Seen) {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    mesh.service("core", "core-2").await;
    mesh.service("recommendation", "recommendation-1").await;
    let seen = failing(&mesh, fault).await;
    // Its own calls to core may meet the failing instance, so it may take a while to be ready.
    let gateway = mesh.gateway(adjust).await;
    (mesh, gateway, seen)
}

/// So that what is seen comes from calls alone.
fn without_checks(settings: &mut Settings) {
    settings.health_checks.health_check_interval_ms = 0;
    settings.health_checks.silence_ms = 3_600_000;
    settings.health_checks.health_check_failures = u32::MAX;
}

async fn all_are_answered(gateway: &TestGateway, method: &str, path: &str, calls: usize) {
    for call in 0..calls {
        let answer = gateway.call(method, path, &[]).await;
        assert_eq!(answer.status, 200, "call {call}: {answer:?}");
    }
}

/// The sum of a metric's series whose labels include `label`.
async fn metric(gateway: &TestGateway, name: &str, label: &str) -> f64 {
    let url = format!("http://{}/metrics", gateway.admin);
    let text = gateway.http.get(url).send().await.unwrap().text().await.unwrap();
    let series = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn a_silent_instance_loses_its_traffic_at_its_first_timeout() {
    let (_mesh, gateway, seen) = beside(Fault::Silent, |settings| {
        settings.first_byte_timeout_ms = 2_000;
        without_checks(settings);
    })
    .await;
    all_are_answered(&gateway, "GET", "/api/users", 30).await;
    assert!((1..=3).contains(&seen.load(Ordering::SeqCst)), "{seen:?}");
    let ejections = "tourin_gateway_ejections_total";
    assert!(metric(&gateway, ejections, r#"upstream="core",reason="timeouts""#).await >= 1.0);
}

#[tokio::test]
async fn an_instance_that_answers_health_checks_alone_is_ejected_all_the_same() {
    let (_mesh, gateway, seen) = beside(Fault::AnswersChecks, |settings| {
        settings.first_byte_timeout_ms = 2_000;
        settings.outliers.eject_ms = 600_000;
        settings.outliers.eject_max_ms = 600_000;
    })
    .await;
    all_are_answered(&gateway, "GET", "/api/users", 30).await;
    assert!((1..=3).contains(&seen.load(Ordering::SeqCst)), "{seen:?}");
}

#[tokio::test]
async fn a_write_that_times_out_is_not_sent_again() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let seen = failing(&mesh, Fault::Silent).await;
    let gateway = mesh
        .gateway(|settings| {
            settings.first_byte_timeout_ms = 2_000;
            without_checks(settings);
        })
        .await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(gateway.call("POST", "/api/auth/login", &[]).await.status);
    }
    let lost = statuses.iter().filter(|status| **status == 504).count();
    assert_eq!(lost, 1, "{statuses:?}");
    assert_eq!((seen.load(Ordering::SeqCst), core.calls()), (1, 5), "each arrived once");
}

#[tokio::test]
async fn an_instance_that_accepts_nothing_but_connections_fails_no_request() {
    let (_mesh, gateway, seen) = beside(Fault::HalfOpen, |settings| {
        settings.connect_timeout_ms = 2_000;
        without_checks(settings);
    })
    .await;
    // Nothing can be sent to it, so writes are sent elsewhere too.
    all_are_answered(&gateway, "POST", "/api/auth/login", 20).await;
    all_are_answered(&gateway, "GET", "/api/users", 20).await;
    eventually("it is found out", || async {
        metric(&gateway, "tourin_gateway_instances_down", r#"upstream="core""#).await >= 1.0
    })
    .await;
    let failed = || metric(&gateway, "tourin_gateway_upstream_requests_total", "connect_failed");
    let before = failed().await;
    assert!((1.0..=3.0).contains(&before), "{before} of {seen:?} connections");
    all_are_answered(&gateway, "GET", "/api/users", 20).await;
    assert_eq!(failed().await, before);
}

#[tokio::test]
async fn an_instance_that_answers_garbage_is_asked_three_times() {
    let (_mesh, gateway, seen) = beside(Fault::Garbage, without_checks).await;
    all_are_answered(&gateway, "GET", "/api/users", 60).await;
    assert!((1..=3).contains(&seen.load(Ordering::SeqCst)), "{seen:?}");
}

#[tokio::test]
async fn an_instance_that_dribbles_is_found_by_a_health_check() {
    let (_mesh, gateway, seen) = beside(Fault::Dribbles, |settings| {
        settings.total_timeout_ms = 5_000;
    })
    .await;
    // Those that it has got wait for their whole time; each of the others is answered.
    let mut calls = JoinSet::new();
    for _ in 0..6 {
        let request = gateway.http.get(format!("{}/api/users", gateway.url));
        calls.spawn(async move { request.send().await.map(|answer| answer.status().as_u16()) });
    }
    let statuses: Vec<_> = calls.join_all().await.into_iter().map(Result::unwrap).collect();
    let caught = statuses.iter().filter(|status| **status == 504).count();
    let fine = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(caught + fine, 6, "{statuses:?}");
    let before = seen.load(Ordering::SeqCst);
    assert!(caught <= before && before <= 3, "{statuses:?}, {before}");
    all_are_answered(&gateway, "GET", "/api/users", 30).await;
    assert_eq!(seen.load(Ordering::SeqCst), before);
}

/// Idempotent requests at up to 1,000 per second until the sender is dropped.
struct Load {
    stop: CancellationToken,
    running: JoinHandle<Outcome>,
}

#[derive(Debug, Default)]
struct Outcome {
    fine: usize,
    failed: Vec<String>,
}

impl Load {
    fn start(gateway: &TestGateway) -> Self {
        let stop = CancellationToken::new();
        let (stopping, http) = (stop.clone(), gateway.http.clone());
        let url = format!("{}/api/users/member01", gateway.url);
        let running = tokio::spawn(async move {
            let (mut outcome, mut calls) = (Outcome::default(), JoinSet::new());
            let mut tick = tokio::time::interval(Duration::from_millis(1));
            while !stopping.is_cancelled() {
                tick.tick().await;
                let request = http.get(&url);
                calls.spawn(async move { request.send().await });
                while let Some(ended) = calls.try_join_next() {
                    outcome.add(ended);
                }
                if calls.len() >= 64
                    && let Some(ended) = calls.join_next().await
                {
                    outcome.add(ended);
                }
            }
            while let Some(ended) = calls.join_next().await {
                outcome.add(ended);
            }
            outcome
        });
        Self { stop, running }
    }

    async fn end(self) -> Outcome {
        self.stop.cancel();
        self.running.await.unwrap()
    }
}

impl Outcome {
    fn add(&mut self, ended: Result<reqwest::Result<reqwest::Response>, JoinError>) {
        match ended.unwrap() {
            Ok(answer) if answer.status() == 200 => self.fine += 1,
            Ok(answer) => self.failed.push(answer.status().to_string()),
            Err(error) => self.failed.push(error.to_string()),
        }
    }
}

/// A gateway with two instances in this process and one in a process of its own.
async fn with_child() -> (Mesh, TestGateway, ChildInstance) {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    mesh.service("core", "core-2").await;
    mesh.service("recommendation", "recommendation-1").await;
    let child = ChildInstance::start(&mesh, "core", "core-3").await;
    let gateway = mesh
        .gateway(|settings| {
            settings.max_requests_per_client = 1_024;
            settings.balance.slow_start_ms = 0;
        })
        .await;
    eventually("the process is in use", || async {
        gateway.get("/api/users/member01").await.body["instance"] == "core-3"
    })
    .await;
    (mesh, gateway, child)
}

const DOWN: &str = "tourin_gateway_instances_down";
const CORE: &str = r#"upstream="core""#;

#[tokio::test]
async fn a_killed_instance_fails_no_request_and_is_not_tried_after_a_second() {
    let (_mesh, gateway, child) = with_child().await;
    let load = Load::start(&gateway);
    tokio::time::sleep(Duration::from_secs(1)).await;
    child.kill();
    let killed = Instant::now();
    eventually("it is ejected", || async { metric(&gateway, DOWN, CORE).await >= 1.0 }).await;
    // Attempts that had begun before that end.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let attempts = || metric(&gateway, "tourin_gateway_upstream_requests_total", "connect_failed");
    let before = attempts().await;
    // Longer than an ejection: it is tried by health checks alone.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(attempts().await, before, "{:?} after its end", killed.elapsed());
    let outcome = load.end().await;
    assert!(outcome.failed.is_empty(), "{outcome:?}");
    assert!(outcome.fine > 100, "{outcome:?}");
}

#[tokio::test]
async fn a_frozen_instance_fails_no_request_and_returns_when_it_goes_on() {
    let (_mesh, gateway, child) = with_child().await;
    let load = Load::start(&gateway);
    tokio::time::sleep(Duration::from_secs(1)).await;
    child.freeze();
    // A health check finds it, long before the first call times out (12 s).
    eventually("it is found", || async { metric(&gateway, DOWN, CORE).await >= 1.0 }).await;
    let timed_out = metric(&gateway, "tourin_gateway_upstream_requests_total", "timed_out").await;
    assert_eq!(timed_out, 0.0);
    child.thaw();
    eventually("it is in use again", || async {
        gateway.get("/api/users/member01").await.body["instance"] == "core-3"
    })
    .await;
    let outcome = load.end().await;
    assert!(outcome.failed.is_empty(), "{outcome:?}");
}

/// The process of a [`ChildInstance`].
#[test]
#[ignore = "it is started by other tests, as a process of its own"]
fn instance_process() {
    crate::harness::serve_as_child(respond_as_child);
}

async fn respond_as_child<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, id: Arc<str>) {
    while read_head(&mut stream).await.is_some() {
        let body = format!(r#"{{"instance":"{id}"}}"#);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
        let answer = format!("{head}{}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}
