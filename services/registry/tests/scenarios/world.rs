//! A registry on its own port, with clients.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use reqwest::Response;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tourin_chassis::http_client;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry::{Registry, Settings};
use tourin_registry_api::sse::{Event, Parser};
use tourin_registry_api::{
    Directory, DirectorySettings, Instance, Registration, RegistryClient, Snapshot,
};
pub use tourin_testbed::Proxy;

pub const SECRET: &str = "scenario-secret-0123456789";
/// The time limit of every wait, also on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(10);
pub const HEARTBEAT: Duration = Duration::from_millis(100);
pub const LEASE: Duration = Duration::from_millis(800);

pub fn settings() -> Settings {
    Settings::new(([127, 0, 0, 1], 0).into(), SECRET.parse().unwrap())
}

/// A registry that runs until it is stopped or dropped.
pub struct Running {
    pub addr: SocketAddr,
    stop: Shutdown,
    task: JoinHandle<()>,
}

impl Running {
    pub async fn start() -> Self {
        Self::start_with(settings()).await
    }

    pub async fn start_with(settings: Settings) -> Self {
        let registry = Registry::build(settings).await.unwrap();
        let (addr, stop) = (registry.addr(), Shutdown::new());
        let running = stop.clone();
        let task = tokio::spawn(async move {
            registry.run_until_stopped(running).await.unwrap();
        });
        Self { addr, stop, task }
    }

    /// Stops it and waits until it has ended; returns how long that took.
    pub async fn stop(mut self) -> Duration {
        let start = Instant::now();
        self.stop.begin();
        tokio::time::timeout(TIMEOUT, &mut self.task).await.expect("it ends").unwrap();
        start.elapsed()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub fn client(&self) -> RegistryClient {
        client_of(self.addr)
    }

    /// An unnamed directory, which no departure waits for.
    pub fn follow(&self) -> Following {
        Following::start(self.client(), None, DirectorySettings::default())
    }

    /// A named directory, which departures wait for.
    pub fn watch(&self, name: &str) -> Following {
        Following::start(self.client(), Some(name), DirectorySettings::default())
    }

    pub async fn list(&self) -> Snapshot {
        self.client().list(None).await.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.begin();
    }
}

pub fn client_of(addr: SocketAddr) -> RegistryClient {
    RegistryClient::new(http_client::client(None).unwrap(), &format!("http://{addr}"), SECRET)
        .unwrap()
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
