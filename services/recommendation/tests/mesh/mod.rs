//! The environment of the tests: a registry with one core, that core, and an instance of the service.

#![allow(dead_code, unused_macros, unused_imports, reason = "each test target needs a part of it")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{any, get};
use axum::{Json, Router};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tourin_chassis::clock::SystemClock;
use tourin_chassis::config::MeshSettings;
use tourin_chassis::http::PeerOf;
use tourin_chassis::http::{HttpLimits, Listener, serve};
use tourin_chassis::identity::{IDENTITY_HEADER, Subject};
use tourin_chassis::shutdown::Shutdown;
use tourin_recommendation::{Dependencies, Recommendation, SERVICE, Settings, subscriptions};
use tourin_registry::testing::{client, gateway_client, signer, url, workload};
use tourin_shared_events::bus::in_process::InProcessBus;
use tourin_shared_events::dead_letters::MemoryDeadLetters;
use tourin_shared_events::events::{Outgoing, ViewTourspot};

/// A registry that knows one core, and that core with its catalogue.
#[derive(Clone)]
pub struct FakeMesh {
    registry: SocketAddr,
    core: SocketAddr,
    pub state: Arc<Mutex<FakeState>>,
}

#[derive(Default)]
pub struct FakeState {
    pub log_id: String,
    pub spots: Vec<Value>,
    pub registered: Vec<String>,
    pub core: usize,
}

impl FakeMesh {
    pub async fn start(spots: Vec<Value>) -> Self {
        let bind = async || tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listeners = [("registry", bind().await), ("core", bind().await)];
        let [registry, core] = [0, 1].map(|n: usize| listeners[n].1.local_addr().unwrap());
        let state = FakeState { log_id: "log-1".into(), spots, ..FakeState::default() };
        let mesh = Self { registry, core, state: Arc::new(Mutex::new(state)) };
        let router = Router::new()
            .route("/v1/watch", get(watch))
            .route("/v1/instances/{service}/{id}", any(instance))
            .route("/v1/instances/{service}/{id}/{action}", any(instance))
            .route("/internal/tour-spots", get(tour_spots))
            .with_state(mesh.clone());
        for (service, listener) in listeners {
            let listener =
                Listener::with_tls(listener, workload(service).server_config(), "tourin");
            let router = router.clone();
            tokio::spawn(async move {
                let limits = HttpLimits::default();
                serve(listener, router, &limits, Shutdown::new(), ONE_SECOND).await
            });
        }
        mesh
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.registry)
    }
}

/// Snapshots with growing versions, so that a new core is noticed soon.
async fn watch(State(mesh): State<FakeMesh>) -> impl IntoResponse {
    let snapshots = futures::stream::unfold(0_u64, move |version| {
        let mesh = mesh.clone();
        async move {
            if version > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let core = mesh.state.lock().unwrap().core;
            let snapshot = json!({"epoch": 1, "version": version + 1, "instances": [
                {"service": "core", "id": format!("core-{core}"), "address": mesh.core, "status": "up"}
            ]});
            let event = format!("id: {}\nevent: snapshot\ndata: {snapshot}\n\n", version + 1);
            Some((Ok::<_, Infallible>(Bytes::from(event)), version + 1))
        }
    });
    ([("content-type", "text/event-stream")], Body::from_stream(snapshots.boxed()))
}

async fn instance(
    State(mesh): State<FakeMesh>,
    method: axum::http::Method,
    uri: axum::http::Uri,
) -> Json<Value> {
    let mut path = uri.path().split('/').skip(4);
    let id = path.next().unwrap_or_default().to_owned();
    let registered = &mut mesh.state.lock().unwrap().registered;
    match (method.as_str(), path.next()) {
        ("PUT", None) => registered.push(id),
        ("DELETE", None) | ("POST", Some("leave")) => registered.retain(|known| *known != id),
        _ => {}
    }
    Json(json!({"version": 1, "acknowledged": true}))
}

async fn tour_spots(State(mesh): State<FakeMesh>, PeerOf(peer): PeerOf) -> impl IntoResponse {
    if peer.service != SERVICE {
        return StatusCode::FORBIDDEN.into_response();
    }
    let state = mesh.state.lock().unwrap();
    Json(json!({"log_id": state.log_id, "spots": state.spots, "next": null})).into_response()
}

pub fn catalogue(count: u64, version: u64) -> Vec<Value> {
    (1..=count)
        .map(|number| {
            json!({"tourspot_id": number.to_string(), "version": version, "name": format!("곳 {number}"),
                "address": "", "lat": 35.0 + number as f64 / 10.0, "lng": 127.0, "tags": ["자연"]})
        })
        .collect()
}

pub fn settings(folder: &Path, registry_url: String) -> Settings {
    let mesh = MeshSettings::new(registry_url);
    Settings::new("127.0.0.1:0".parse().unwrap(), folder, mesh)
}

/// A bus in this process with the queues of the service.
pub fn bus() -> InProcessBus {
    let bus = InProcessBus::new(Arc::new(MemoryDeadLetters::default()));
    for subscription in subscriptions() {
        bus.declare(subscription).unwrap();
    }
    bus
}

/// What an instance on this bus, with stores of its own, is given.
pub fn on(bus: &InProcessBus) -> Dependencies {
    let clock = Arc::new(SystemClock);
    Dependencies {
        events: Some(Arc::new(bus.clone())),
        workload: Some(workload(SERVICE)),
        ..Dependencies::new(clock)
    }
}

/// A running instance.
pub struct Running {
    pub addr: SocketAddr,
    pub stop: Shutdown,
    pub task: tokio::task::JoinHandle<anyhow::Result<()>>,
    pub http: reqwest::Client,
}

impl Running {
    pub async fn start(settings: Settings, dependencies: Dependencies) -> Self {
        Self::run(Recommendation::build(settings, dependencies).await.unwrap())
    }

    pub fn run(service: Recommendation) -> Self {
        let (addr, stop) = (service.addr(), Shutdown::new());
        let task = tokio::spawn(service.run_until_stopped(stop.clone()));
        Self { addr, stop, task, http: gateway_client(SERVICE) }
    }

    pub async fn status(&self, path: &str) -> StatusCode {
        self.http.get(url(self.addr, path)).send().await.unwrap().status()
    }

    /// The body of the readiness endpoint.
    pub async fn unready(&self) -> String {
        self.http.get(url(self.addr, "/readyz")).send().await.unwrap().text().await.unwrap()
    }

    pub async fn answer(&self, path: &str, member: &str) -> reqwest::Response {
        let member = Subject::Member {
            id: member.to_owned(),
            session: "session".to_owned(),
            roles: Vec::new(),
        };
        let identity = signer().sign(&member, SERVICE);
        self.http.get(url(self.addr, path)).header(IDENTITY_HEADER, identity).send().await.unwrap()
    }

    pub async fn ids(&self, path: &str, member: &str) -> Vec<String> {
        let answer = self.answer(path, member).await;
        let spots: Vec<Value> = answer.error_for_status().unwrap().json().await.unwrap();
        spots.iter().map(|spot| spot["id"].as_str().unwrap().to_owned()).collect()
    }

    pub async fn trend(&self) -> Vec<String> {
        self.ids("/api/recommendations/trend", "reader01").await
    }

    pub async fn stop(self) {
        let begun = Instant::now();
        self.stop.begin();
        self.task.await.unwrap().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(12), "took {:?}", begun.elapsed());
    }
}

/// The body of the readiness endpoint of a ready service.
pub const READY: &str = r#"{"status":"ready","unready":{}}"#;
pub const ONE_SECOND: Duration = Duration::from_secs(1);

pub fn view(user: &str, spot: u64) -> Outgoing {
    let view = ViewTourspot { user_id: user.to_owned(), tourspot_id: spot.to_string() };
    Outgoing::new(&view, chrono::Utc::now())
}
