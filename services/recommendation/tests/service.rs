//! The service as a whole: built, run and stopped, over a bus or over core's feed.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
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
use tourin_chassis::identity::{IDENTITY_HEADER, IdentitySigner, IdentityVerifier, Subject};
use tourin_chassis::secret::Secret;
use tourin_chassis::shutdown::Shutdown;
use tourin_recommendation::{
    Dependencies, Recommendation, SERVICE, Settings, open_stores, subscriptions,
};
use tourin_shared_events::bus::Publisher as _;
use tourin_shared_events::bus::in_process::InProcessBus;
use tourin_shared_events::events::{BookmarkTourspot, Outgoing, ViewTourspot};

const SECRET: &str = "a secret of the mesh under test";

/// A registry that knows one core, and that core: its catalogue and its feed.
#[derive(Clone)]
struct FakeMesh {
    addr: SocketAddr,
    state: Arc<Mutex<FakeState>>,
}

#[derive(Default)]
struct FakeState {
    log_id: String,
    spots: Vec<Value>,
    events: Vec<Outgoing>,
    registered: Vec<String>,
    core: usize,
}

impl FakeMesh {
    async fn start(spots: Vec<Value>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = FakeState { log_id: "log-1".into(), spots, ..FakeState::default() };
        let mesh = Self { addr, state: Arc::new(Mutex::new(state)) };
        let router = Router::new()
            .route("/v1/watch", get(watch))
            .route("/v1/instances/{service}/{id}", any(instance))
            .route("/v1/instances/{service}/{id}/{action}", any(instance))
            .route("/internal/tour-spots", get(tour_spots))
            .route("/internal/events", get(events))
            .with_state(mesh.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        mesh
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

/// Snapshots with growing versions, so that a new core is seen soon.
async fn watch(State(mesh): State<FakeMesh>) -> impl IntoResponse {
    let snapshots = futures::stream::unfold(0_u64, move |version| {
        let mesh = mesh.clone();
        async move {
            if version > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let core = mesh.state.lock().unwrap().core;
            let snapshot = json!({"epoch": 1, "version": version + 1, "instances": [
                {"service": "core", "id": format!("core-{core}"), "address": mesh.addr, "status": "up"}
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
    let id = uri.path().split('/').nth(4).unwrap_or_default().to_owned();
    let registered = &mut mesh.state.lock().unwrap().registered;
    match method.as_str() {
        "PUT" => registered.push(id),
        "DELETE" => registered.retain(|known| *known != id),
        _ => {}
    }
    Json(json!({"version": 1, "acknowledged": true}))
}

fn is_service(headers: &HeaderMap) -> bool {
    let verifier = IdentityVerifier::new(&secret(), "core");
    headers.get(IDENTITY_HEADER).and_then(|value| verifier.verify(value))
        == Some(Subject::Service { name: SERVICE.into() })
}

async fn tour_spots(State(mesh): State<FakeMesh>, headers: HeaderMap) -> impl IntoResponse {
    if !is_service(&headers) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let spots = mesh.state.lock().unwrap().spots.clone();
    Json(json!({"spots": spots, "next": null})).into_response()
}

async fn events(
    State(mesh): State<FakeMesh>,
    headers: HeaderMap,
    axum::extract::RawQuery(query): axum::extract::RawQuery,
) -> impl IntoResponse {
    if !is_service(&headers) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let query = query.unwrap_or_default();
    let number = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(&format!("{name}=")))
            .map_or(0, |value| value.parse::<usize>().unwrap())
    };
    let (after, end) =
        (number("after"), Instant::now() + Duration::from_millis(number("wait_ms") as u64));
    loop {
        let page = {
            let state = mesh.state.lock().unwrap();
            let events: Vec<Value> = state.events.iter().enumerate().skip(after)
                .map(|(seq, event)| json!({
                    "seq": seq + 1, "exchange": event.exchange, "routing_key": event.routing_key,
                    "ordering_key": event.ordering_key, "headers": event.headers, "envelope": event.envelope,
                }))
                .collect();
            json!({"log_id": state.log_id, "events": events, "next": state.events.len(), "pruned": 0})
        };
        if page["events"].as_array().is_some_and(|events| !events.is_empty())
            || Instant::now() >= end
        {
            return Json(page).into_response();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn secret() -> Secret {
    SECRET.parse().unwrap()
}

fn catalogue(count: u64, version: u64) -> Vec<Value> {
    (1..=count)
        .map(|number| {
            json!({"tourspot_id": number.to_string(), "version": version, "name": format!("곳 {number}"),
                "address": "", "lat": 35.0 + number as f64 / 10.0, "lng": 127.0, "tags": ["자연"]})
        })
        .collect()
}

fn settings(folder: &Path, registry_url: String) -> Settings {
    let mesh = MeshSettings::new(registry_url, secret());
    Settings::new("127.0.0.1:0".parse().unwrap(), folder, mesh)
}

/// A running instance.
struct Running {
    addr: SocketAddr,
    stop: Shutdown,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    http: reqwest::Client,
}

impl Running {
    async fn start(settings: Settings, dependencies: Dependencies) -> Self {
        let service = Recommendation::build(settings, dependencies).await.unwrap();
        let (addr, stop) = (service.addr(), Shutdown::new());
        let task = tokio::spawn(service.run_until_stopped(stop.clone()));
        Self { addr, stop, task, http: reqwest::Client::new() }
    }

    async fn status(&self, path: &str) -> StatusCode {
        let url = format!("http://{}{path}", self.addr);
        self.http.get(url).send().await.unwrap().status()
    }

    async fn ids(&self, path: &str, member: &str) -> Vec<String> {
        let member = Subject::Member {
            id: member.to_owned(),
            session: "session".to_owned(),
            roles: Vec::new(),
        };
        let identity = IdentitySigner::new(&secret()).sign(&member, SERVICE);
        let url = format!("http://{}{path}", self.addr);
        let answer = self.http.get(url).header(IDENTITY_HEADER, identity).send().await.unwrap();
        let spots: Vec<Value> = answer.error_for_status().unwrap().json().await.unwrap();
        spots.iter().map(|spot| spot["id"].as_str().unwrap().to_owned()).collect()
    }

    async fn trend(&self) -> Vec<String> {
        self.ids("/api/recommendations/trend", "somebody1").await
    }

    async fn stop(self) {
        let begun = Instant::now();
        self.stop.begin();
        self.task.await.unwrap().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(4), "took {:?}", begun.elapsed());
    }
}

/// Waits for a condition; reports the last state when it does not come.
macro_rules! eventually {
    ($limit:expr, $what:expr, $expected:expr) => {{
        let end = Instant::now() + $limit;
        loop {
            let last = $what;
            if last == $expected {
                break;
            }
            assert!(Instant::now() < end, "still {last:?}, expected {:?}", $expected);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }};
}

const SOON: Duration = Duration::from_secs(10);
const ONE_SECOND: Duration = Duration::from_secs(1);

fn view(user: &str, spot: u64) -> Outgoing {
    let view = ViewTourspot { user_id: user.to_owned(), tourspot_id: spot.to_string() };
    Outgoing::new(&view, chrono::Utc::now())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_bus_it_follows_core_and_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = FakeMesh::start(catalogue(9, 1)).await;
    let clock = Arc::new(SystemClock);
    let service =
        Running::start(settings(folder.path(), mesh.url()), Dependencies::new(clock.clone())).await;
    eventually!(SOON, service.status("/readyz").await, StatusCode::OK);
    eventually!(SOON, mesh.state.lock().unwrap().registered.len(), 1);
    assert_eq!(service.ids("/api/recommendations/personalized?k=100", "member01").await.len(), 9);
    assert!(service.trend().await.is_empty());

    mesh.state.lock().unwrap().events.push(view("anon:abcd", 3));
    eventually!(ONE_SECOND, service.trend().await, ["3"]);
    service.stop().await;
    assert!(mesh.state.lock().unwrap().registered.is_empty());

    mesh.state.lock().unwrap().events.extend([view("anon:abcd", 4), view("anon:bbbb", 4)]);
    let again = Running::start(settings(folder.path(), mesh.url()), Dependencies::new(clock)).await;
    eventually!(SOON, again.trend().await, ["4", "3"]);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_core_comes_back_with_other_data_the_replica_follows() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = FakeMesh::start(catalogue(9, 7)).await;
    let dependencies = Dependencies::new(Arc::new(SystemClock));
    let service = Running::start(settings(folder.path(), mesh.url()), dependencies).await;
    let all = "/api/recommendations/personalized?k=100";
    eventually!(SOON, service.ids(all, "member01").await.len(), 9);
    {
        let mut state = mesh.state.lock().unwrap();
        state.log_id = "log-2".into();
        state.spots = catalogue(2, 1);
        state.core = 1;
    }
    eventually!(SOON, service.ids(all, "member01").await, ["1", "2"]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_on_one_bus_and_one_store_answer_alike_within_a_second() {
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
            stores: Some(stores.clone()),
            clock: clock.clone(),
        };
        replicas.push(Running::start(settings.clone(), dependencies).await);
    }
    for replica in &replicas {
        eventually!(SOON, replica.status("/readyz").await, StatusCode::OK);
    }
    let bookmark = BookmarkTourspot { user_id: "member01".into(), tourspot_id: "5".into() };
    let mut events = vec![Outgoing::new(&bookmark, chrono::Utc::now())];
    events.extend((0..50).map(|n| view(&format!("member{n:02}"), 7)));
    let published = Instant::now();
    assert!(bus.publish(events).await.into_iter().all(|result| result.is_ok()));
    for replica in &replicas {
        eventually!(ONE_SECOND, replica.trend().await, ["7", "5"]);
        let personal = replica.ids("/api/recommendations/personalized?k=9", "member01").await;
        assert_eq!(personal.len(), 7);
        assert!(!personal.contains(&"5".to_owned()) && !personal.contains(&"7".to_owned()));
    }
    assert!(published.elapsed() < ONE_SECOND, "took {:?}", published.elapsed());
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test]
async fn what_the_service_keeps_is_for_its_owner_only() {
    let place = tempfile::tempdir().unwrap();
    let settings = settings(&place.path().join("data"), "http://127.0.0.1:1".to_owned());
    let _stores = open_stores(&settings, Arc::new(SystemClock)).await.unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&settings.data_dir), 0o700);
    assert_eq!(mode(&settings.file()), 0o600);
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(SystemClock);
    let file = folder.path().join("a file");
    std::fs::write(&file, "not a folder").unwrap();
    let unusable = settings(&file, "http://127.0.0.1:1".to_owned());
    let error =
        Recommendation::build(unusable, Dependencies::new(clock.clone())).await.err().unwrap();
    assert!(format!("{error:#}").contains("--data-dir"), "{error:#}");

    let no_url = settings(folder.path(), "not a url".to_owned());
    let error =
        Recommendation::build(no_url, Dependencies::new(clock.clone())).await.err().unwrap();
    assert!(format!("{error:#}").contains("--registry-url"), "{error:#}");

    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut in_use = settings(folder.path(), "http://127.0.0.1:1".to_owned());
    in_use.listen = taken.local_addr().unwrap();
    let error = Recommendation::build(in_use, Dependencies::new(clock)).await.err().unwrap();
    assert!(format!("{error:#}").contains("taken"), "{error:#}");
}
