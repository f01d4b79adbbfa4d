//! Core's spans and metrics: what they contain, and what they must not contain.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod imports;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use clap::Parser;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tourin_chassis::clock::SystemClock;
use tourin_chassis::identity::{IDENTITY_HEADER, Subject};
use tourin_chassis::shutdown::Shutdown;
use tourin_chassis::telemetry::memory::{MemoryStore, TraceQuery};
use tourin_chassis::telemetry::testing::all_spans;
use tourin_chassis::telemetry::{DbCall, Service, ZipkinSpan, db_call};
use tourin_core::{Core, Dependencies, Settings};
use tourin_registry::testing;
use tourin_shared_events::bus::contract::users;
use tourin_shared_events::bus::in_process::InProcessBus;
use tourin_shared_events::bus::{Binding, Subscriber as _, Subscription};
use tourin_shared_events::consumer::{Consumer, Handler, HandlerError, Outcome, Received};
use tourin_shared_events::dead_letters::MemoryDeadLetters;
use tourin_shared_events::mysql::testing::TestDatabase;
use tourin_shared_events::system_clock;
use tourin_testbed::eventually;

const PASSWORD: &str = "Xq7-pelican-drift!";
const WRONG_PASSWORD: &str = "Zk9-walrus-marsh!!";
const EMAIL: &str = "pelican.drift@example.org";
const NAME: &str = "펠리컨";
const QUERY: &str = "쌀국수";

#[derive(Parser)]
#[command(args_override_self = true)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

fn settings(folder: &Path) -> Settings {
    let folder = folder.to_str().unwrap();
    let flags = [
        ["core", "--registry-url"],
        ["https://127.0.0.1:9", "--listen"],
        ["127.0.0.1:0", "--data-dir"],
        [folder, "--password-memory-kib"],
        ["16", "--password-iterations"],
    ];
    let mut settings = Flags::parse_from(flags.into_iter().flatten().chain(["1"])).settings;
    // The test bed sets the variables.
    settings.database.server.mysql_url = None;
    settings.database.sessions.redis_url = None;
    settings.events.amqp_url = None;
    settings
}

/// A consumer that counts in a cache.
struct Counting;

#[async_trait]
impl Handler for Counting {
    async fn handle(&self, _: &Received) -> Result<Outcome, HandlerError> {
        let counting = async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            Ok::<_, ()>(())
        };
        db_call(DbCall::new("redis", "record", "trend"), |()| "failed", counting).await.unwrap();
        Ok(Outcome::Applied)
    }
}

/// Core, the in-process bus, and a consumer of another service on it.
struct Mesh {
    address: SocketAddr,
    http: reqwest::Client,
    stop: Shutdown,
    core: tokio::task::JoinHandle<anyhow::Result<()>>,
    spans: MemoryStore,
    _consumers: JoinSet<()>,
}

impl Mesh {
    async fn start(settings: Settings) -> Self {
        let spans = all_spans();
        let bus = InProcessBus::new(Arc::new(MemoryDeadLetters::default()));
        let mut consumers = JoinSet::new();
        let all = Subscription::new("spots", vec![Binding::new("event.tour-spot.ex", "#")]);
        for subscription in [users("trend"), all] {
            let queue = subscription.queue.clone();
            let deliveries = bus.subscribe(subscription).await.unwrap();
            let consumer = Consumer::new(queue, deliveries, Arc::new(Counting), system_clock());
            let running = consumer.run(CancellationToken::new());
            let service = Service::new("recommendation");
            consumers.spawn(async move { service.run(running).await });
        }
        let dependencies = Dependencies {
            publisher: Some(Arc::new(bus)),
            clock: Arc::new(SystemClock),
            workload: Some(testing::workload("core")),
        };
        let core = Core::build(settings, dependencies).await.unwrap();
        let address = core.addr();
        let stop = Shutdown::new();
        let core = tokio::spawn(core.run_until_stopped(stop.clone()));
        let http = testing::gateway_client("core");
        Self { address, http, stop, core, spans, _consumers: consumers }
    }

    /// Sends a request; returns its status, trace and body.
    async fn ask(
        &self,
        method: &str,
        path: &str,
        who: Option<&Subject>,
        body: Option<Value>,
    ) -> (u16, String, Value) {
        let method = method.parse().unwrap();
        let mut request = self.http.request(method, testing::url(self.address, path));
        if let Some(who) = who {
            request = request.header(IDENTITY_HEADER, testing::signer().sign(who, "core"));
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let trace = answer.headers()["traceresponse"].to_str().unwrap();
        let trace = trace.split('-').nth(1).unwrap().to_owned();
        let status = answer.status().as_u16();
        (status, trace, answer.json().await.unwrap_or_default())
    }

    async fn text(&self, path: &str) -> String {
        let answer = self.http.get(testing::url(self.address, path)).send().await.unwrap();
        answer.text().await.unwrap()
    }

    /// Waits until a trace's spans satisfy `enough`; returns them by kind and name.
    async fn trace(&self, id: &str, enough: impl Fn(&[ZipkinSpan]) -> bool) -> Vec<ZipkinSpan> {
        eventually("all spans of the trace", async || {
            let spans = self.spans.trace(id).unwrap_or_default();
            if enough(&spans) { Ok(spans) } else { Err(spans) }
        })
        .await
    }

    async fn stop(self) {
        self.stop.begin();
        self.core.await.unwrap().unwrap();
    }
}

fn kind(span: &ZipkinSpan) -> &str {
    span.kind.as_deref().unwrap_or("")
}

fn service(span: &ZipkinSpan) -> &str {
    span.local_endpoint.as_ref().and_then(|at| at.service_name.as_deref()).unwrap_or("")
}

fn remote(span: &ZipkinSpan) -> &str {
    span.remote_endpoint.as_ref().and_then(|at| at.service_name.as_deref()).unwrap_or("")
}

/// Whether there is a span of this kind. Those of the work in it have ended before.
fn has(spans: &[ZipkinSpan], of_kind: &str) -> bool {
    spans.iter().any(|span| kind(span) == of_kind)
}

/// The only span of a kind and name.
fn one<'a>(spans: &'a [ZipkinSpan], of_kind: &str, name: &str) -> &'a ZipkinSpan {
    let named = |span: &&ZipkinSpan| kind(span) == of_kind && span.name.as_deref() == Some(name);
    let found: Vec<_> = spans.iter().filter(named).collect();
    assert_eq!(found.len(), 1, "{of_kind} {name}: {spans:#?}");
    found[0]
}

/// Asserts that each span but one has its parent in the trace.
fn assert_no_gap(spans: &[ZipkinSpan]) {
    let ids: Vec<&str> = spans.iter().map(|span| span.id.as_str()).collect();
    let roots = spans.iter().filter(|span| span.parent_id.is_none()).count();
    assert_eq!(roots, 1, "{spans:#?}");
    for span in spans {
        let has_parent = span.parent_id.as_deref().is_none_or(|parent| ids.contains(&parent));
        assert!(has_parent, "{span:?} in {spans:#?}");
    }
}

fn hana() -> Subject {
    Subject::Member {
        id: "pelican123".to_owned(),
        session: "0197a000-0000-7000-8000-000000000000".to_owned(),
        roles: Vec::new(),
    }
}

/// Signs up, logs in correctly and wrongly, views, searches, bookmarks. Returns the tokens, and the
/// traces of the sign-up, the view and the bookmark.
async fn journey(mesh: &Mesh) -> (Vec<String>, [String; 4]) {
    let account = json!({ "id": "pelican123", "password": PASSWORD, "name": NAME, "email": EMAIL });
    let (status, signed_up, _) = mesh.ask("POST", "/api/auth/signup", None, Some(account)).await;
    assert_eq!(status, 201);
    let wrong = json!({ "id": "pelican123", "password": WRONG_PASSWORD });
    assert_eq!(mesh.ask("POST", "/api/auth/login", None, Some(wrong)).await.0, 401);
    let right = json!({ "id": "pelican123", "password": PASSWORD });
    let (status, logged_in, tokens) = mesh.ask("POST", "/api/auth/login", None, Some(right)).await;
    assert_eq!(status, 200);
    let token = |name: &str| tokens[name].as_str().unwrap().to_owned();
    let secrets = vec![token("accessToken"), token("refreshToken")];
    let search = format!("/api/tour-spots?query={QUERY}");
    assert_eq!(mesh.ask("GET", &search, None, None).await.0, 200);
    assert_eq!(mesh.ask("GET", &format!("/api/users?query={NAME}"), None, None).await.0, 200);
    let (_, _, page) = mesh.ask("GET", "/api/tour-spots", None, None).await;
    let spot = page[0]["id"].as_str().unwrap().to_owned();
    let hana = hana();
    let (status, looked, _) =
        mesh.ask("GET", &format!("/api/tour-spots/{spot}"), Some(&hana), None).await;
    assert_eq!(status, 200);
    let body = json!({ "tourSpotId": spot });
    let (status, bookmarked, _) =
        mesh.ask("POST", "/api/users/pelican123/bookmarks", Some(&hana), Some(body)).await;
    assert_eq!(status, 201);
    (secrets, [signed_up, logged_in, looked, bookmarked])
}

/// One trace from the request over the outbox and the bus to the effect in another service.
async fn assert_one_trace(mesh: &Mesh, engine: &str, bookmarked: &str) {
    let whole = |spans: &[ZipkinSpan]| {
        has(spans, "SERVER") && has(spans, "PRODUCER") && has(spans, "CONSUMER")
    };
    let spans = mesh.trace(bookmarked, whole).await;
    assert_no_gap(&spans);
    let server = one(&spans, "SERVER", "post /api/users/{userid}/bookmarks");
    let place = one(&spans, "CLIENT", "place bookmarks");
    let producer = one(&spans, "PRODUCER", "send event.user.ex");
    let consumer = one(&spans, "CONSUMER", "process trend");
    let effect = one(&spans, "CLIENT", "record trend");
    assert_eq!((server.parent_id.as_ref(), service(server)), (None, "core"));
    assert_eq!((place.parent_id.as_ref(), remote(place)), (Some(&server.id), engine));
    // A child of the request, not of the call that wrote the outbox.
    assert_eq!((producer.parent_id.as_ref(), service(producer)), (Some(&server.id), "core"));
    assert_eq!(remote(producer), "tourin");
    assert_eq!(consumer.parent_id.as_ref(), Some(&producer.id));
    assert_eq!((service(consumer), remote(consumer)), ("recommendation", "tourin"));
    assert!(consumer.duration.unwrap() >= effect.duration.unwrap());
    assert_eq!(effect.parent_id.as_ref(), Some(&consumer.id));
    assert!(spans.iter().all(|span| !span.tags.contains_key("error")), "{spans:#?}");
    assert_eq!(consumer.tags["tourin.outcome"], "applied");
}

/// Asserts that no span or metric contains members' data.
fn assert_no_secret(told: &str, secrets: &[String]) {
    let encoded = "%EC%8C%80";
    let entrusted = [PASSWORD, WRONG_PASSWORD, EMAIL, "pelican.drift", NAME, QUERY, encoded];
    let entrusted = entrusted.into_iter().chain(secrets.iter().map(String::as_str));
    for secret in entrusted {
        assert!(!told.contains(secret), "{secret} is in a span or a metric");
    }
    assert!(!told.contains("argon2"), "a password's hash is in a span or a metric");
}

/// The text of all spans.
fn text_of_spans(store: &MemoryStore) -> String {
    let query = TraceQuery {
        service: None,
        span: None,
        remote_service: None,
        annotations: Vec::new(),
        min_duration: None,
        max_duration: None,
        end_ms: u64::MAX,
        lookback_ms: u64::MAX,
        limit: usize::MAX,
    };
    format!("{:?}", store.traces(&query))
}

async fn assert_metrics(mesh: &Mesh, secrets: &[String], wanted: &[&str]) {
    eventually("all metrics", async || {
        let text = mesh.text("/metrics").await;
        assert_no_secret(&text, secrets);
        match wanted.iter().find(|line| !text.contains(**line)) {
            None => Ok(()),
            Some(line) => Err(format!("{line} is not in {text}")),
        }
    })
    .await;
}

const METRICS: [&str; 15] = [
    r#"tourin_http_requests_total{service="core",route="/api/auth/login",method="POST",status_class="4xx"} 1"#,
    r#"tourin_http_request_duration_seconds_count{service="core",route="/api/tour-spots",method="GET"}"#,
    r#"tourin_log_ins_total{outcome="refused"} 1"#,
    r#"tourin_log_ins_total{outcome="succeeded"} 1"#,
    r#"tourin_token_renewals_total{outcome="reused"} 0"#,
    r#"tourin_pool_connections{pool="writers",state="#,
    r#"tourin_pool_connections_limit{pool="readers"}"#,
    "tourin_outbox_published_total ",
    "tourin_outbox_retries_total 0",
    "tourin_outbox_pending 0.0",
    "tourin_outbox_oldest_age_seconds 0.0",
    "tourin_outbox_rejected 0.0",
    "tourin_views_dropped_total 0",
    "tourin_views_repeated_total ",
    "tourin_panics_total ",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journey_is_traced_and_measured_and_tells_nothing_private() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = Mesh::start(settings(folder.path())).await;
    let (secrets, [signed_up, logged_in, looked, bookmarked]) = journey(&mesh).await;

    assert_one_trace(&mesh, "sqlite", &bookmarked).await;
    let spans = mesh.trace(&signed_up, |spans| spans.len() >= 4 && has(spans, "SERVER")).await;
    assert_no_gap(&spans);
    one(&spans, "CLIENT", "insert accounts");
    let spans = mesh.trace(&logged_in, |spans| spans.len() >= 4 && has(spans, "SERVER")).await;
    one(&spans, "", "password hash");
    one(&spans, "CLIENT", "open sessions");
    // A view is written later in a group; its event is still part of the request's trace.
    let spans = mesh.trace(&looked, |spans| has(spans, "CONSUMER")).await;
    assert_eq!(one(&spans, "CONSUMER", "process trend").tags["tourin.outcome"], "applied");

    assert_metrics(&mesh, &secrets, &METRICS).await;
    let told = text_of_spans(&mesh.spans);
    assert!(told.contains("place bookmarks"), "all spans are looked at");
    assert_no_secret(&told, &secrets);
    let ready = mesh.text("/readyz").await;
    assert!(
        ready.contains(r#""status":"ready""#) && ready.contains(r#""missed":{"registry":"#),
        "{ready}"
    );
    // Probes, heartbeats and polls begin no trace.
    assert!(!told.contains("/healthz") && !told.contains("/metrics"), "{told}");
    mesh.stop().await;
}

fn variable(name: &str) -> String {
    let Ok(value) = std::env::var(name) else {
        panic!("{name} is not set: run it by deploy/testbed.sh run -- cargo test -p tourin-core");
    };
    value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_mysql_and_redis_each_engine_has_its_own_spans() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    let database = TestDatabase::create().await;
    settings.database.server.mysql_url = Some(database.url().clone().into());
    settings.database.sessions.redis_url = Some(variable("TOURIN_REDIS_URL").parse().unwrap());
    settings.database.sessions.session_redis_prefix = format!("tracing-{}", uuid::Uuid::new_v4());
    let mesh = Mesh::start(settings).await;
    let (secrets, [signed_up, logged_in, _, bookmarked]) = journey(&mesh).await;

    assert_one_trace(&mesh, "mysql", &bookmarked).await;
    let spans = mesh.trace(&signed_up, |spans| spans.len() >= 4 && has(spans, "SERVER")).await;
    assert_eq!(remote(one(&spans, "CLIENT", "insert accounts")), "mysql");
    let spans = mesh.trace(&logged_in, |spans| spans.len() >= 5 && has(spans, "SERVER")).await;
    assert_no_gap(&spans);
    assert_eq!(remote(one(&spans, "CLIENT", "open sessions")), "redis");
    assert!(spans.iter().any(|span| remote(span) == "mysql"), "{spans:#?}");
    assert_metrics(&mesh, &secrets, &METRICS).await;
    assert_no_secret(&text_of_spans(&mesh.spans), &secrets);
    mesh.stop().await;
    database.remove().await;
}
