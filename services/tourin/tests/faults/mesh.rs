//! The mesh of all faults: registry, two gateways, core and three replicas of recommendation, each a process,
//! on MariaDB, Redis, MongoDB and RabbitMQ. Core reaches RabbitMQ through a proxy.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tourin::audit::AuditSettings;
use tourin_chassis::secret::Secret;
use tourin_testbed::{Bed, Proxy, Server, eventually_within};

use crate::service::Service;

const SECRET: &str = "a-secret-for-faults";
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
        let registry = service("registry", "registry", &folder, None);
        let url = registry.url();
        let through_proxy = proxy.url(bed.url(Server::Amqp));
        let redis =
            |service: Service| service.variable(Server::Redis.variable(), bed.url(Server::Redis));
        let gateways = ["gateway-1", "gateway-2"]
            .map(|name| redis(service("gateway", name, &folder, Some(&url))))
            .into();
        let core = redis(service("core", "core", &folder, Some(&url)))
            .argument("--data-dir", folder.join("core-data").display())
            .variable(Server::Mysql.variable(), bed.url(Server::Mysql))
            .variable(Server::Amqp.variable(), through_proxy);
        let recommendations = (1..=REPLICAS)
            .map(|number| {
                let name = format!("recommendation-{number}");
                redis(service("recommendation", &name, &folder, Some(&url)))
                    .argument("--data-dir", folder.join(format!("{name}-data")).display())
                    .variable(Server::Mongodb.variable(), bed.url(Server::Mongodb))
                    .variable(Server::Amqp.variable(), bed.url(Server::Amqp))
            })
            .collect();
        let mut mesh =
            Self { bed, proxy, registry, gateways, core, recommendations, in_fault: false };
        for service in mesh.services_mut() {
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
        let client =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().unwrap();
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
            ..AuditSettings::new("", self.registry.url(), secret())
        }
    }
}

pub fn secret() -> Secret {
    SECRET.parse().unwrap()
}

fn service(
    program: &'static str,
    name: &str,
    folder: &std::path::Path,
    registry: Option<&str>,
) -> Service {
    let service = Service::new(program, name, PathBuf::from(folder))
        .variable("TOURIN_REGISTRATION_SECRET", SECRET);
    match registry {
        None => service,
        Some(url) => service.variable("TOURIN_REGISTRY_URL", url).argument("--instance-id", name),
    }
}
