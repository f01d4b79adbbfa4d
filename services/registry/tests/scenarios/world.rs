//! A registry on its own port, with clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Client, Response};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tourin_chassis::http_client;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry::authority::Authority;
use tourin_registry::{Registry, Settings};
use tourin_registry_api::sse::{Event, Parser};
use tourin_registry_api::{
    Directory, DirectorySettings, Instance, JoinError, Joined, Joining, REGISTRY, Registration,
    RegistryClient, Snapshot, Workload,
};
pub use tourin_testbed::Proxy;
use tourin_testbed::free_address;

/// The time limit of every wait, also on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(40);
/// Also the limit of an attempt, which on a busy machine is mostly its handshake.
pub const HEARTBEAT: Duration = Duration::from_millis(250);
pub const LEASE: Duration = Duration::from_secs(2);
/// The name in a registry's certificate.
const NAME: &str = "registry.tourin";

/// Where a registry runs, and its data. One that is started there again is the same to its peers.
#[derive(Clone)]
pub struct Place {
    pub addr: SocketAddr,
    folder: Arc<TempDir>,
}

impl Place {
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }
}

/// A registry that runs until it is stopped or dropped.
pub struct Running {
    pub addr: SocketAddr,
    authority: Arc<Authority>,
    folder: Arc<TempDir>,
    stop: Shutdown,
    task: JoinHandle<()>,
}

impl Running {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// One whose settings differ from the default.
    pub async fn start_with(adjust: impl FnOnce(&mut Settings)) -> Self {
        let folder = Arc::new(TempDir::new().unwrap());
        // One on which it can start again.
        Self::start_at(Place { addr: free_address(), folder }, adjust).await
    }

    pub async fn start_at(place: Place, adjust: impl FnOnce(&mut Settings)) -> Self {
        let Place { addr, folder } = place;
        let mut settings = Settings::new(addr, folder.path());
        adjust(&mut settings);
        let registry = Registry::build(settings).await.unwrap();
        let (addr, stop) = (registry.addr(), Shutdown::new());
        let (authority, running) = (Arc::clone(registry.authority()), stop.clone());
        let task = tokio::spawn(async move {
            registry.run_until_stopped(running).await.unwrap();
        });
        Self { addr, authority, folder, stop, task }
    }

    pub fn place(&self) -> Place {
        Place { addr: self.addr, folder: Arc::clone(&self.folder) }
    }

    /// Stops it and waits until it has ended; returns how long that took.
    pub async fn stop(mut self) -> Duration {
        let start = Instant::now();
        self.stop.begin();
        tokio::time::timeout(TIMEOUT, &mut self.task).await.expect("it ends").unwrap();
        start.elapsed()
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.addr)
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    pub fn workload(&self, service: &str, id: &str) -> Workload {
        self.authority.workload(service, id).unwrap()
    }

    /// A client that is an instance of core.
    pub fn client(&self, id: &str) -> RegistryClient {
        self.client_at(self.addr, id)
    }

    /// The same over another address.
    pub fn client_at(&self, addr: SocketAddr, id: &str) -> RegistryClient {
        client_of(&self.workload("core", id), addr)
    }

    /// A client that is an instance of any service.
    pub fn client_as(&self, service: &str, id: &str) -> RegistryClient {
        client_of(&self.workload(service, id), self.addr)
    }

    /// An HTTP client with the certificate of an instance.
    pub fn http(&self, service: &str, id: &str) -> Client {
        http_of(&self.workload(service, id))
    }

    /// An HTTP client without a certificate that trusts the mesh's root, and the URL at which it finds
    /// this registry: it verifies the name.
    pub fn stranger(&self) -> (Client, String) {
        let client = Client::builder().tls_backend_preconfigured(self.tls_of_a_stranger());
        let client = client.no_proxy().resolve(NAME, self.addr).build().unwrap();
        (client, format!("https://{NAME}:{}", self.addr.port()))
    }

    /// A connection of such a client, whose handshake is over.
    pub async fn connection_of_a_stranger(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let connector = TlsConnector::from(Arc::new(self.tls_of_a_stranger()));
        connector.connect(NAME.try_into().unwrap(), stream).await.unwrap()
    }

    fn tls_of_a_stranger(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        for root in self.workload("core", "root").roots() {
            roots.add(root).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// Joins as an instance of `service`.
    pub async fn join(
        &self,
        (service, id): (&str, &str),
        token: &str,
    ) -> Result<Joined, JoinError> {
        let joining = joining(self.addr, (service, id), token);
        tokio::time::timeout(TIMEOUT, joining.join(None)).await.expect("the registry answers")
    }

    /// An unnamed directory, which no departure waits for.
    pub fn follow(&self) -> Following {
        let client = self.client_as("gateway", "follower");
        Following::start(client, None, DirectorySettings::default())
    }

    /// A gateway that acknowledges what it has seen.
    pub fn acknowledging(&self, name: &str) -> Following {
        let watching = self.watch(name);
        watching.acknowledge_all();
        watching
    }

    /// A named directory, which departures wait for.
    pub fn watch(&self, name: &str) -> Following {
        let client = self.client_as("gateway", name);
        Following::start(client, Some(name), DirectorySettings::default())
    }

    pub async fn list(&self) -> Snapshot {
        self.client("reader").list(None).await.unwrap()
    }

    /// The sum of a counter's values whose labels contain `label`.
    pub async fn counted(&self, counter: &str, label: &str) -> u64 {
        let url = format!("http://{}/metrics", self.addr);
        let metrics = plain().get(url).send().await.unwrap().text().await.unwrap();
        let lines = metrics.lines().filter(|line| line.starts_with(counter));
        let values = lines.filter(|line| line.contains(label)).filter_map(|line| {
            let (_, value) = line.rsplit_once(' ')?;
            // Gauges are written with a fraction.
            Some(value.parse::<f64>().ok()? as u64)
        });
        values.sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.begin();
    }
}

/// A client for plain HTTP.
pub fn plain() -> Client {
    http_client::client(TIMEOUT).unwrap()
}

pub fn http_of(workload: &Workload) -> Client {
    http_client::mesh_client(workload.client_config(REGISTRY).unwrap(), None).unwrap()
}

pub fn client_of(workload: &Workload, addr: SocketAddr) -> RegistryClient {
    client_of_all(workload, &[addr])
}

/// A client of several registries.
pub fn client_of_all(workload: &Workload, addrs: &[SocketAddr]) -> RegistryClient {
    let urls: Vec<_> = addrs.iter().map(|addr| format!("https://{addr}")).collect();
    RegistryClient::new(http_of(workload), &urls.join(",")).unwrap()
}

pub fn joining(addr: SocketAddr, (service, id): (&str, &str), token: &str) -> Joining {
    let token = token.to_owned();
    Joining::new(
        (
            format!("https://{addr}"),
            Arc::new(move || Ok(token.clone())),
            http_client::registry_client,
        ),
        (service, id),
    )
}

/// A directory and the task that keeps it.
pub struct Following {
    pub directory: Directory,
    _stop: DropGuard,
}

impl Following {
    pub fn start(client: RegistryClient, name: Option<&str>, settings: DirectorySettings) -> Self {
        let stop = CancellationToken::new();
        let name = name.map(str::to_owned);
        let (directory, task) = Directory::with_settings(client, name, settings, stop.clone());
        tokio::spawn(task);
        Self { directory, _stop: stop.drop_guard() }
    }

    /// Acknowledges every change from now on.
    pub fn acknowledge_all(&self) {
        let directory = self.directory.clone();
        tokio::spawn(async move {
            let mut changed = directory.changed();
            loop {
                let version = *changed.borrow_and_update();
                directory.acknowledge(version);
                if changed.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Waits until the directory knows exactly these instances of `core` as up.
    pub async fn sees(&self, ids: &[&str]) {
        self.until(|directory| ids_up(directory) == ids, &format!("{ids:?} are up")).await;
    }

    pub async fn until(&self, is_so: impl Fn(&Directory) -> bool, what: &str) {
        let mut changed = self.directory.changed();
        let waiting = async {
            loop {
                changed.mark_unchanged();
                if is_so(&self.directory) {
                    return;
                }
                changed.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(TIMEOUT, waiting).await.is_err() {
            panic!("never: {what}; known: {:?}", self.directory.all());
        }
    }
}

pub fn ids_up(directory: &Directory) -> Vec<String> {
    directory.instances("core").iter().map(|i| i.id.clone()).collect()
}

pub fn instance(id: &str, port: u16) -> Instance {
    Instance::new("core", id, ([127, 0, 0, 1], port).into())
}

/// An instance that registers and sends heartbeats. Dropping it is what a kill looks like.
pub fn start(client: RegistryClient, instance: Instance) -> Registration {
    Registration::start(client, instance, HEARTBEAT, LEASE, CancellationToken::new())
}

/// The same for many at once. An attempt ends after a heartbeat, which all their handshakes together
/// take longer than.
pub fn start_among_many(client: RegistryClient, instance: Instance) -> Registration {
    let (heartbeat, lease) = (Duration::from_secs(2), Duration::from_secs(10));
    Registration::start(client, instance, heartbeat, lease, CancellationToken::new())
}

/// Reads the next `count` events of a watch.
pub async fn events(response: &mut Response, parser: &mut Parser, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    let reading = async {
        while events.len() < count {
            let piece = response.chunk().await.unwrap().expect("the watch is open");
            events.extend(parser.push(&piece).unwrap());
        }
    };
    tokio::time::timeout(TIMEOUT, reading).await.expect("the events come");
    events
}
