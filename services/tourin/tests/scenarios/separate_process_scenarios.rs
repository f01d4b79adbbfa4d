//! The services as separate processes, on embedded stores and a broker.

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tourin_testbed::{eventually, free_address};
use uuid::Uuid;

use crate::process::{Process, command};
use crate::virtual_host::VirtualHost;
use crate::world::{World, ids};

const SECRET: &str = "a-secret-for-this-scenario";

/// The fields drop in this order: processes, virtual host, folder.
pub struct Services {
    registry_url: String,
    _registry: Process,
    gateway: Process,
    core: Process,
    recommendation: Vec<Process>,
    broker: VirtualHost,
    folder: tempfile::TempDir,
}

fn service(name: &str, registry_url: &str, listen: &str) -> std::process::Command {
    let mut service = command(name);
    service
        .env("TOURIN_REGISTRATION_SECRET", SECRET)
        .env("TOURIN_REGISTRY_URL", registry_url)
        .args(["--listen", listen]);
    service
}

fn recommendation(
    registry_url: &str,
    broker: &VirtualHost,
    folder: &Path,
    number: usize,
) -> Process {
    let mut process = service("recommendation", registry_url, "127.0.0.1:0");
    process.env("TOURIN_AMQP_URL", broker.url());
    process.arg("--data-dir").arg(folder.join(format!("recommendation-{number}")));
    process.args(["--instance-id", &format!("recommendation-{number}")]);
    Process::start(process)
}

impl Services {
    /// Starts each service before its dependencies, because the order must not matter.
    async fn start(replicas: usize) -> (World, Self) {
        Self::start_with(replicas, &[], &[]).await
    }

    /// The same with flags for the gateway and for core.
    pub async fn start_with(
        replicas: usize,
        gateway_flags: &[&str],
        core_flags: &[&str],
    ) -> (World, Self) {
        let folder = tempfile::tempdir().unwrap();
        let broker = VirtualHost::make(&format!("scenario-{}", Uuid::now_v7().simple())).await;
        let registry_address = free_address().to_string();
        let registry_url = format!("http://{registry_address}");
        let gateway_address = free_address().to_string();
        let mut gateway = service("gateway", &registry_url, &gateway_address);
        gateway.args(gateway_flags);
        let gateway = Process::start(gateway);
        let recommendation = (1..=replicas)
            .map(|number| recommendation(&registry_url, &broker, folder.path(), number))
            .collect();
        let mut core = service("core", &registry_url, "127.0.0.1:0");
        core.env("TOURIN_AMQP_URL", broker.url());
        core.arg("--data-dir").arg(folder.path().join("core")).args(core_flags);
        let core = Process::start(core);
        let mut registry = command("registry");
        registry.env("TOURIN_REGISTRATION_SECRET", SECRET).args(["--listen", &registry_address]);
        let registry = Process::start(registry);
        let world = World::at(format!("http://{gateway_address}"));
        let services = Self {
            registry_url,
            _registry: registry,
            gateway,
            core,
            recommendation,
            broker,
            folder,
        };
        services.wait_for(replicas).await;
        eventually("the gateway is ready", || async {
            let ready = world.request(Method::GET, "/readyz").send().await;
            match ready {
                Ok(answer) if answer.status() == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        (world, services)
    }

    fn add_recommendation(&mut self, number: usize) {
        let process = recommendation(&self.registry_url, &self.broker, self.folder.path(), number);
        self.recommendation.push(process);
    }

    async fn instances(&self) -> Vec<Value> {
        let url = format!("{}/v1/instances?service=recommendation", self.registry_url);
        let Ok(answer) = reqwest::get(url).await else {
            return Vec::new();
        };
        let snapshot: Value = answer.json().await.expect("JSON");
        snapshot["instances"].as_array().expect("a list").clone()
    }

    async fn wait_for(&self, replicas: usize) -> Duration {
        let start = Instant::now();
        eventually("the instances are registered", || async {
            let instances = self.instances().await;
            if instances.len() == replicas { Ok(()) } else { Err(instances) }
        })
        .await;
        start.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_four_services_form_the_same_mesh() {
    let (world, mut services) = Services::start(1).await;
    let member = world.member("traveller1").await;
    let spots = world.spots(2).await;
    world.view(&member, &spots[0]).await;
    world.bookmark(&member, &spots[1]).await;
    eventually("the bookmarks are in the trend", || async {
        let trend = world.get_as(&member, "/api/recommendations/trend").await.expect(200);
        if ids(&trend) == [spots[1].clone(), spots[0].clone()] { Ok(()) } else { Err(trend) }
    })
    .await;
    world.get("/api/openapi.json").await.expect(200);
    world.post_as(&member, "/api/auth/logout", json!({})).await.expect(204);
    world.get_as(&member, "/api/auth/me").await.expect_error(401);

    for process in [&mut services.gateway, &mut services.core, &mut services.recommendation[0]] {
        process.signal("TERM");
        assert!(process.wait(Duration::from_secs(5)).await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_costs_no_request_and_disappears_within_its_lease() {
    let (world, mut services) = Services::start(2).await;
    let spot = world.spots(1).await.remove(0);
    let path = format!("/api/tour-spots/{spot}/similar");
    for _ in 0..4 {
        eventually("the call is answered", || async {
            let answer = world.get(&path).await;
            if answer.status == 200 { Ok(()) } else { Err(answer) }
        })
        .await;
    }
    let killed = services.recommendation.remove(0);
    killed.signal("KILL");
    let start = Instant::now();
    // Requests while it is still listed: every second one meets it.
    while services.instances().await.len() == 2 {
        world.get(&path).await.expect(200);
        assert!(start.elapsed() < Duration::from_secs(4), "still listed: its lease is 3 s");
    }
    for _ in 0..4 {
        world.get(&path).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_replica_leaves_at_once_and_costs_no_request() {
    let (world, mut services) = Services::start(2).await;
    let spot = world.spots(1).await.remove(0);
    let path = format!("/api/tour-spots/{spot}/similar");
    let stopped = services.recommendation.remove(0);
    stopped.signal("TERM");
    let start = Instant::now();
    while services.instances().await.len() == 2 {
        world.get(&path).await.expect(200);
    }
    assert!(start.elapsed() < Duration::from_millis(1_500), "{:?}", start.elapsed());
    // A new replica is used without further steps.
    services.add_recommendation(3);
    services.wait_for(2).await;
    for _ in 0..8 {
        world.get(&path).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_for_a_replica_that_was_away() {
    let (world, mut services) = Services::start(1).await;
    let member = world.member("traveller1").await;
    let spots = world.spots(3).await;
    world.bookmark(&member, &spots[0]).await;
    let away = services.recommendation.remove(0);
    away.signal("KILL");
    drop(away);
    world.bookmark(&member, &spots[1]).await;
    services.add_recommendation(1);
    eventually("both bookmarks are in the trend", || async {
        let answer = world.get_as(&member, "/api/recommendations/trend").await;
        if answer.status != 200 {
            return Err(answer.text);
        }
        let text = answer.text.clone();
        let mut trend = ids(&answer.expect(200));
        trend.sort();
        let mut expected = spots[..2].to_vec();
        expected.sort();
        if trend == expected { Ok(()) } else { Err(text) }
    })
    .await;
}

#[test]
fn a_service_without_a_broker_says_what_is_missing_and_how_to_give_it() {
    for name in ["core", "recommendation"] {
        let folder = tempfile::tempdir().unwrap();
        let mut service = service(name, "http://127.0.0.1:9", "127.0.0.1:0");
        service.arg("--data-dir").arg(folder.path().join("data"));
        let output = service.output().unwrap();
        assert!(!output.status.success(), "{name}: {output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        for part in ["--amqp-url (TOURIN_AMQP_URL) is missing", "deploy/testbed.sh run -- "] {
            assert!(error.contains(part), "{name}: {error}");
        }
        assert!(!folder.path().join("data").exists(), "{name} has begun nothing");
    }
}

/// A service that is stopped while it waits for its database exits with 0. A supervisor must not take that
/// for a bad setting.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_waits_for_its_database_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("mysql://tourin:secret@{}/tourin", free_address());
    let address = free_address().to_string();
    let mut core = service("core", "http://127.0.0.1:9", &address);
    core.arg("--data-dir").arg(folder.path()).env("TOURIN_MYSQL_URL", &database);
    core.env("TOURIN_AMQP_URL", format!("amqp://tourin:secret@{}", free_address()));
    let mut core = Process::start(core);
    let world = World::at(format!("http://{address}"));
    let unready = eventually("the gateway answers", || async {
        world.request(Method::GET, "/readyz").send().await
    })
    .await;
    let reason = unready.text().await.unwrap();
    assert!(reason.contains("waiting for mysql at 127.0.0.1"), "{reason}");
    core.signal("TERM");
    assert_eq!(core.wait(Duration::from_secs(5)).await.code(), Some(0));
}
