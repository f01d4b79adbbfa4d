//! A service that runs as in a process, for the tests of this folder and of `outages`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use clap::Parser;
use reqwest::Response;
use serde_json::{Value, json};
use tourin_chassis::clock::SystemClock;
use tourin_chassis::identity::{IDENTITY_HEADER, Subject};
use tourin_chassis::shutdown::Shutdown;
use tourin_core::{Core, Dependencies, MysqlUrl, Settings};
use tourin_registry::testing::{self, gateway_client, workload};
use tourin_shared_events::bus::{PublishError, Publisher};
use tourin_shared_events::events::{BookmarkTourspot, Event as _, Outgoing};
use tourin_shared_events::outbox::testing::recorded;
use tourin_testbed::eventually_within;

/// How long the service may take to notice that a server is reachable again.
pub const RECOVERY: Duration = Duration::from_secs(40);

#[derive(Parser)]
#[command(args_override_self = true)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// Settings on a free port, with an unreachable registry and without servers.
pub fn settings(dir: &Path, flags: &[&str]) -> Settings {
    let dir = dir.to_str().unwrap();
    let always = [
        "core",
        "--registry-url",
        "https://127.0.0.1:9",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        dir,
        "--password-memory-kib",
        "16",
        "--password-iterations",
        "1",
    ];
    let mut settings = Flags::parse_from(always.iter().chain(flags)).settings;
    // The test bed sets the variables.
    settings.database.server.mysql_url = None;
    settings.database.sessions.redis_url = None;
    settings.events.amqp_url = None;
    settings
}

/// A bus without consumers.
struct NullPublisher;

#[async_trait]
impl Publisher for NullPublisher {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        vec![Ok(()); batch.len()]
    }
}

pub fn alone() -> Dependencies {
    Dependencies {
        publisher: Some(Arc::new(NullPublisher)),
        clock: Arc::new(SystemClock),
        workload: Some(workload("core")),
    }
}

/// A running service.
pub struct Running {
    pub address: SocketAddr,
    pub client: reqwest::Client,
    database: Option<MysqlUrl>,
    stop: Shutdown,
    service: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub async fn start(settings: Settings) -> Self {
        let mut dependencies = alone();
        // If the settings name a broker, it is used.
        dependencies.publisher.take_if(|_| settings.events.amqp_url.is_some());
        Self::start_with(settings, dependencies).await
    }

    pub async fn start_with(settings: Settings, dependencies: Dependencies) -> Self {
        let database = settings.database.mysql().cloned();
        let core = Core::build(settings, dependencies).await.unwrap();
        let address = core.addr();
        let stop = Shutdown::new();
        let service = tokio::spawn(core.run_until_stopped(stop.clone()));
        Self { address, client: gateway_client("core"), database, stop, service }
    }

    pub fn url(&self, path: &str) -> String {
        testing::url(self.address, path)
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        read(self.client.get(self.url(path)).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        read(self.client.post(self.url(path)).json(&body).send().await.unwrap()).await
    }

    /// Places a bookmark as a member, with a gateway's identity.
    pub async fn bookmark(&self, member: &str, spot: u64) -> Response {
        let subject = Subject::Member {
            id: member.to_owned(),
            session: "0197a000-0000-7000-8000-000000000000".to_owned(),
            roles: Vec::new(),
        };
        let request = self.client.post(self.url(&format!("/api/users/{member}/bookmarks")));
        let request = request.header(IDENTITY_HEADER, testing::signer().sign(&subject, "core"));
        request.json(&json!({"tourSpotId": spot.to_string()})).send().await.unwrap()
    }

    /// The bookmark events in the outbox of the database on a server, as (member, spot), in order.
    pub async fn bookmark_events(&self) -> Vec<(String, String)> {
        let outbox = tourin_core::open_outbox_on_server(self.database.as_ref().unwrap());
        let events = recorded(&*outbox.await.unwrap()).await;
        let bookmarks = events.into_iter().filter(|(row, _)| row.r#type == BookmarkTourspot::TYPE);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        bookmarks
            .map(|(_, event)| event.envelope.data)
            .map(|data| (text(&data["user_id"]), text(&data["tourspot_id"])))
            .collect()
    }

    /// Repeats a request until the response has this status; returns its body.
    pub async fn until_status(&self, path: &str, status: u16) -> Value {
        eventually_within(RECOVERY, &format!("{path} answers {status}"), async || {
            let (last, body) = self.get(path).await;
            if last == status { Ok(body) } else { Err((last, body)) }
        })
        .await
    }

    pub async fn stop(self) -> Duration {
        let began = Instant::now();
        self.stop.begin();
        self.service.await.unwrap().unwrap();
        began.elapsed()
    }
}

pub async fn read(answer: Response) -> (u16, Value) {
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// The body of a member's sign-up.
pub fn person(id: &str) -> Value {
    json!({
        "id": id, "password": "sea-breeze1!", "name": "김하나", "email": "hana@example.com",
    })
}

pub fn hana() -> Value {
    person("hana12345")
}
