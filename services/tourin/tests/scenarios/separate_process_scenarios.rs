//! The services as separate processes, on embedded stores and a broker, each with its own user there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tourin_chassis::clock::SystemClock;
use tourin_chassis::config::MeshAccess;
use tourin_registry::authority::{Authority, AuthoritySettings};
use tourin_registry_api::{DownReason, Instance, Joined};
use tourin_testbed::{Server, User, eventually, free_address, given_to};
use uuid::Uuid;

use crate::peers;
use crate::process::{Process, command};
use crate::virtual_host::VirtualHost;
use crate::world::{World, ids};

/// Flags of the programs.
#[derive(Clone, Copy, Default)]
pub struct Flags<'a> {
    pub registry: &'a [&'a str],
    pub gateway: &'a [&'a str],
    pub core: &'a [&'a str],
}

/// Where the registry of a scenario listens, and its files.
struct RegistryPlace {
    address: String,
    /// That of a second one, which shares its state.
    second: Option<String>,
    folder: PathBuf,
    flags: Vec<String>,
}

impl RegistryPlace {
    fn new(folder: &Path, flags: &[&str]) -> Self {
        Self {
            address: free_address().to_string(),
            second: None,
            folder: folder.to_owned(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        }
    }

    /// Two registries, with an authority and a Redis that they share.
    fn shared(folder: &Path) -> Self {
        let files = folder.join("authority");
        let settings = AuthoritySettings {
            folder: files.clone(),
            mesh: "tourin".to_owned(),
            lifetime: Duration::from_secs(60),
            given: None,
            tokens: None,
        };
        Authority::open(settings, Arc::new(SystemClock)).unwrap();
        let file = |name: &str| files.join(name).to_str().unwrap().to_owned();
        let (certificates, key) = (file("root.pem"), file("root-key.pem"));
        let redis = given_to(User::Registry, Server::Redis);
        let prefix = format!("test-{}", Uuid::now_v7().simple());
        let flags = [
            ["--authority-certificates", &certificates],
            ["--authority-key", &key],
            ["--registry-redis-url", &redis],
            ["--registry-redis-prefix", &prefix],
        ];
        let second = Some(free_address().to_string());
        Self { second, ..Self::new(folder, flags.as_flattened()) }
    }

    fn url(&self) -> String {
        let first = format!("https://{}", self.address);
        match &self.second {
            Some(second) => format!("{first},https://{second}"),
            None => first,
        }
    }

    fn start_second(&self) -> Option<Process> {
        let address = self.second.as_ref()?;
        let mut registry = command("registry");
        registry.args(["--listen", address]).args(&self.flags);
        registry.arg("--data-dir").arg(self.folder.join("registry-2"));
        Some(Process::start(registry))
    }

    /// The file with the join token of a service.
    fn token(&self, service: &str) -> PathBuf {
        self.folder.join("join-tokens").join(service).join("join-token")
    }

    fn start(&self) -> Process {
        let mut registry = command("registry");
        registry.args(["--listen", &self.address]).args(&self.flags);
        registry.arg("--data-dir").arg(self.folder.join("registry"));
        registry.arg("--join-tokens").arg(self.folder.join("join-tokens"));
        Process::start(registry)
    }

    /// Starts it, and waits until it has written the join tokens.
    async fn started(&self) -> Process {
        let registry = self.start();
        eventually("the registry has written the join tokens", || async {
            let services = ["core", "gateway", "operator", "recommendation"];
            services.iter().all(|service| self.token(service).exists())
        })
        .await;
        registry
    }

    /// A program that joins the registry's mesh.
    fn program(&self, name: &str, listen: &str) -> std::process::Command {
        let mut program = service(name, &self.url(), listen);
        program.env("TOURIN_JOIN_TOKEN_FILE", self.token(name));
        program
    }
}

/// The fields drop in this order: processes, virtual host, folder.
pub struct Services {
    place: RegistryPlace,
    registry: Process,
    second_registry: Option<Process>,
    gateway: Process,
    core: Process,
    recommendation: Vec<Process>,
    operator: Joined,
    broker: VirtualHost,
    folder: tempfile::TempDir,
}

fn service(name: &str, registry_url: &str, listen: &str) -> std::process::Command {
    let mut service = command(name);
    service.env("TOURIN_REGISTRY_URL", registry_url).args(["--listen", listen]);
    service
}

fn recommendation(place: &RegistryPlace, broker: &VirtualHost, number: usize) -> Process {
    let mut process = place.program("recommendation", "127.0.0.1:0");
    process.env("TOURIN_AMQP_URL", broker.url(&given_to(User::Recommendation, Server::Amqp)));
    process.arg("--data-dir").arg(place.folder.join(format!("recommendation-{number}")));
    process.args(["--instance-id", &format!("recommendation-{number}")]);
    Process::start(process)
}

impl Services {
    /// Starts each service before its dependencies, because the order must not matter. The registry has
    /// run before, so that there are join tokens.
    pub async fn start(replicas: usize) -> (World, Self) {
        Self::start_with(replicas, Flags::default()).await
    }

    /// The same with flags.
    pub async fn start_with(replicas: usize, flags: Flags<'_>) -> (World, Self) {
        let folder = tempfile::tempdir().unwrap();
        let place = RegistryPlace::new(folder.path(), flags.registry);
        Self::start_at((folder, place), replicas, flags).await
    }

    /// The same with two registries.
    pub async fn start_with_two_registries(replicas: usize) -> (World, Self) {
        let folder = tempfile::tempdir().unwrap();
        let place = RegistryPlace::shared(folder.path());
        Self::start_at((folder, place), replicas, Flags::default()).await
    }

    async fn start_at(
        (folder, place): (tempfile::TempDir, RegistryPlace),
        replicas: usize,
        flags: Flags<'_>,
    ) -> (World, Self) {
        let broker = VirtualHost::make(&format!("scenario-{}", Uuid::now_v7().simple())).await;
        drop(place.started().await);
        let gateway_address = free_address().to_string();
        let mut gateway = place.program("gateway", &gateway_address);
        gateway.args(flags.gateway);
        let gateway = Process::start(gateway);
        let recommendation =
            (1..=replicas).map(|number| recommendation(&place, &broker, number)).collect();
        let mut core = place.program("core", "127.0.0.1:0");
        core.env("TOURIN_AMQP_URL", broker.url(&given_to(User::Core, Server::Amqp)));
        core.arg("--data-dir").arg(folder.path().join("core")).args(flags.core);
        let core = Process::start(core);
        let (registry, second_registry) = (place.start(), place.start_second());
        let world = World::at(format!("http://{gateway_address}"));
        let access = MeshAccess {
            join_token_file: Some(place.token("operator")),
            ..MeshAccess::new(place.url())
        };
        let operator = peers::join(&access, "operator").await.expect("an operator may join");
        let services = Self {
            place,
            registry,
            second_registry,
            gateway,
            core,
            recommendation,
            operator,
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

    pub fn add_recommendation(&mut self, number: usize) {
        self.recommendation.push(recommendation(&self.place, &self.broker, number));
    }

    /// Kills the first of two registries.
    pub fn kill_registry(&self) {
        assert!(self.second_registry.is_some());
        self.registry.signal("KILL");
    }

    /// Kills the registry and starts it again after a while.
    pub async fn registry_is_away_for(&mut self, time: Duration) {
        self.registry.signal("KILL");
        tokio::time::sleep(time).await;
        self.registry = self.place.start();
    }

    /// A file of the registry's authority.
    pub fn authority_file(&self, name: &str) -> PathBuf {
        self.folder.path().join("registry").join(name)
    }

    /// An operator's command on this mesh.
    pub fn operators_command(&self, name: &str) -> std::process::Command {
        let mut tourin = command("tourin");
        tourin.arg(name).args(["--registry-url", &self.place.url()]);
        tourin.arg("--join-token-file").arg(self.place.token("operator"));
        tourin
    }

    /// The output of a `tourin ctl` on this mesh, whose exit code says success.
    pub fn ctl(&self, words: &[&str]) -> String {
        let output = self.ctl_command(words).output().expect("it runs");
        let (said, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "tourin ctl {words:?}: {said}{errors}");
        said.into_owned() + &errors
    }

    pub fn ctl_command(&self, words: &[&str]) -> std::process::Command {
        let mut tourin = command("tourin");
        tourin.arg("ctl").args(words).args(["--registry-url", &self.place.url()]);
        tourin.arg("--join-token-file").arg(self.place.token("operator"));
        tourin
    }

    /// Stops a replica, and waits for its end.
    pub async fn stop_recommendation(&mut self, index: usize) {
        let mut stopped = self.recommendation.remove(index);
        stopped.signal("TERM");
        assert!(stopped.wait(Duration::from_secs(20)).await.success());
    }

    /// The address of a replica of recommendation.
    pub async fn replica(&self) -> SocketAddr {
        self.instances().await.first().expect("there is one").address
    }

    async fn instances(&self) -> Vec<Instance> {
        let listed = self.operator.registry.list(Some("recommendation")).await;
        listed.map(|snapshot| snapshot.instances).unwrap_or_default()
    }

    pub async fn wait_for(&self, replicas: usize) -> Duration {
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
        assert!(process.wait(Duration::from_secs(20)).await.success());
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
        assert!(start.elapsed() < Duration::from_secs(15), "still listed: its lease is 3 s");
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
    while services.instances().await.len() == 2 {
        world.get(&path).await.expect(200);
    }
    let reason = eventually("it has gone", async || {
        let report = services.operator.registry.scale_report(Some("recommendation")).await;
        let report = report.map_err(|error| error.to_string())?;
        report.departures.first().map(|record| record.reason).ok_or("nobody has".to_owned())
    })
    .await;
    assert_eq!(reason, DownReason::Left, "and not because its lease ended");
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
        let mut service = service(name, "https://127.0.0.1:9", "127.0.0.1:0");
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
    let place = RegistryPlace::new(folder.path(), &[]);
    let _registry = place.started().await;
    let database = format!("mysql://tourin:secret@{}/tourin", free_address());
    let address = free_address().to_string();
    let mut core = place.program("core", &address);
    core.arg("--data-dir").arg(folder.path().join("core")).env("TOURIN_MYSQL_URL", &database);
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
    assert_eq!(core.wait(Duration::from_secs(20)).await.code(), Some(0));
}
