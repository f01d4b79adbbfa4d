//! The mesh of all faults: registry, two gateways, core and three replicas of recommendation, each a process,
//! on MariaDB, Redis, MongoDB and RabbitMQ, with the service's own user at each. Core reaches RabbitMQ through a proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tourin::audit::AuditSettings;
use tourin_chassis::config::MeshAccess;
use tourin_chassis::http_client;
use tourin_testbed::{Bed, Proxy, Server, User, eventually_within};

use crate::service::Service;

pub const REPLICAS: usize = 3;
/// How long the start of the mesh may take on a busy machine: seven unoptimised services and all servers.
const START: Duration = Duration::from_secs(120);

static MESH: Mutex<Option<Mesh>> = Mutex::const_new(None);

pub struct Mesh {
    pub bed: Bed,
    pub proxy: Proxy,
    pub registry: Service,
    pub gateways: Vec<Service>,
    pub core: Service,
    pub recommendations: Vec<Service>,
    /// How an operator joins.
    access: MeshAccess,
    /// A fault is in progress, or a test failed during one.
    pub in_fault: bool,
}

/// Exclusive use of the mesh, which is ready.
pub struct MeshGuard(MutexGuard<'static, Option<Mesh>>);

impl std::ops::Deref for MeshGuard {
    type Target = Mesh;

    fn deref(&self) -> &Mesh {
        self.0.as_ref().expect("made by `turn`")
    }
}

impl std::ops::DerefMut for MeshGuard {
    fn deref_mut(&mut self) -> &mut Mesh {
        self.0.as_mut().expect("made by `turn`")
    }
}

/// Waits for this test's turn.
pub async fn turn() -> MeshGuard {
    let mut mesh = MESH.lock().await;
    match &mut *mesh {
        Some(mesh) if mesh.in_fault => mesh.mend().await,
        Some(_) => {}
        empty => *empty = Some(Mesh::start().await),
    }
    let mut turn = MeshGuard(mesh);
    turn.wait_until_ready(START).await;
    turn.in_fault = false;
    turn
}

impl Mesh {
    async fn start() -> Self {
        let bed = Bed::with(&Server::ALL).await;
        let proxy = Proxy::open_to_url(bed.url(Server::Amqp)).await;
        let folder = bed.folder().join("mesh");
        fs::create_dir(&folder).unwrap();
        let tokens = folder.join("join-tokens");
        let mut registry = Service::new("registry", "registry", folder.clone())
            .argument("--data-dir", folder.join("registry-data").display())
            .argument("--join-tokens", tokens.display());
        let url = format!("https://{}", registry.address);
        let service = |program: &'static str, name: &str| {
            Service::new(program, name, folder.clone())
                .variable("TOURIN_REGISTRY_URL", &*url)
                .argument("--join-token-file", token_file(&tokens, program).display())
                .argument("--instance-id", name)
        };
        let through_proxy = proxy.url(bed.url_of(User::Core, Server::Amqp));
        let on = |service: Service, user: User, server: Server| {
            service.variable(server.variable(), bed.url_of(user, server))
        };
        let gateways = ["gateway-1", "gateway-2"]
            .map(|name| on(service("gateway", name), User::Gateway, Server::Redis))
            .into();
        let core = on(service("core", "core"), User::Core, Server::Redis)
            .argument("--data-dir", folder.join("core-data").display())
            .variable(Server::Mysql.variable(), bed.url(Server::Mysql))
            .variable(Server::Amqp.variable(), through_proxy);
        let recommendations = (1..=REPLICAS)
            .map(|number| {
                let name = format!("recommendation-{number}");
                let replica = service("recommendation", &name)
                    .argument("--data-dir", folder.join(format!("{name}-data")).display());
                let servers = [Server::Redis, Server::Mongodb, Server::Amqp];
                servers.into_iter().fold(replica, |it, server| on(it, User::Recommendation, server))
            })
            .collect();
        registry.start();
        let operators = token_file(&tokens, "operator");
        let access = MeshAccess { join_token_file: Some(operators), ..MeshAccess::new(&*url) };
        let in_fault = false;
        let mut mesh =
            Self { bed, proxy, registry, gateways, core, recommendations, access, in_fault };
        eventually_within(START, "the registry has written the join tokens", async || {
            let services = ["core", "gateway", "operator", "recommendation"];
            services.iter().all(|service| token_file(&tokens, service).exists())
        })
        .await;
        for service in mesh.services_mut().filter(|service| !service.is_running()) {
            service.start();
        }
        mesh
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        [&self.registry, &self.core].into_iter().chain(&self.gateways).chain(&self.recommendations)
    }

    fn services_mut(&mut self) -> impl Iterator<Item = &mut Service> {
        [&mut self.registry, &mut self.core]
            .into_iter()
            .chain(&mut self.gateways)
            .chain(&mut self.recommendations)
    }

    /// Undoes what a failed test left.
    async fn mend(&mut self) {
        self.proxy.delay(Duration::ZERO);
        self.proxy.open().await;
        for server in Server::ALL {
            self.bed.start(server).await;
        }
        for service in self.services_mut().filter(|service| !service.is_running()) {
            service.start();
        }
    }

    /// Waits until every service is ready; fails with the last refusals.
    pub async fn wait_until_ready(&self, limit: Duration) {
        let client = http_client::client(Duration::from_secs(2)).unwrap();
        eventually_within(limit, "every service is ready", async || {
            let refusals = self.refusals(&client).await;
            if refusals.is_empty() { Ok(()) } else { Err(refusals) }
        })
        .await;
    }

    async fn refusals(&self, client: &reqwest::Client) -> Vec<String> {
        let mut refusals = Vec::new();
        for service in self.services() {
            let refusal = match client.get(format!("{}/readyz", service.url())).send().await {
                Ok(answer) if answer.status().is_success() => continue,
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(error) => format!("{error}; its last words:\n{}", service.last_words()),
            };
            refusals.push(format!("{}: {refusal}", service.name));
        }
        refusals
    }

    /// Settings of an audit of this mesh through both gateways, without its load.
    pub fn audit_settings(&self) -> AuditSettings {
        AuditSettings {
            gateways: self.gateways.iter().map(Service::url).collect(),
            ..AuditSettings::new("", self.access.clone())
        }
    }
}

/// Where the registry keeps a service's join token.
fn token_file(tokens: &Path, service: &str) -> PathBuf {
    tokens.join(service).join("join-token")
}
