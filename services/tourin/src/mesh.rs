//! The whole mesh in one process: every service on its own loopback listener, as separate processes
//! would have it, with the in-process bus between them.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::task::JoinHandle;
use tourin_chassis::clock::{SharedClock, SystemClock};
use tourin_chassis::config::MeshSettings;
use tourin_chassis::shutdown::Shutdown;
use tourin_core::Core;
use tourin_gateway::Gateway;
use tourin_recommendation::{Recommendation, open_stores};
use tourin_registry::Registry;
use tourin_shared_events::bus::in_process::InProcessBus;

use crate::data_dir::DataDir;
use crate::dead_letters;
use crate::up::UpSettings;

/// How long the parts may take to find each other at the start, in milliseconds.
const READY_TIMEOUT_MS: u64 = 10_000;
/// How long the whole stop may take, in milliseconds; what is left then is dropped.
const STOP_TIMEOUT_MS: u64 = 4_500;
const FREE_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A mesh that runs.
#[derive(Debug)]
pub struct Mesh {
    url: String,
    registry_url: String,
    data_dir: DataDir,
    /// In the order in which they stop: who calls before who is called.
    parts: Vec<Part>,
}

/// One service of the mesh, running.
#[derive(Debug)]
struct Part {
    name: &'static str,
    stop: Shutdown,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Part {
    fn start<F>(name: &'static str, run: impl FnOnce(Shutdown) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = Shutdown::new();
        Self { name, running: tokio::spawn(run(stop.clone())), stop }
    }
}

impl Mesh {
    /// Starts every part and waits until the gateway can serve.
    ///
    /// # Errors
    /// When a setting is bad, the folder or the address cannot be had, or the parts do not find each
    /// other in time. `stop`, when given meanwhile, ends the wait.
    pub async fn start(settings: UpSettings, stop: Shutdown) -> anyhow::Result<Self> {
        let data_dir = if settings.ephemeral {
            DataDir::temporary()?
        } else {
            DataDir::open(&settings.data_dir)?
        };
        let secret = data_dir.secret()?;
        let clock: SharedClock = Arc::new(SystemClock);

        let registry =
            Registry::build(tourin_registry::Settings::new(FREE_PORT, secret.clone())).await?;
        let registry_url = format!("http://{}", registry.addr());
        let mesh = MeshSettings::new(registry_url.clone(), secret);

        // The gateway's address first: of all that can be taken, it is the one that a user chose.
        let gateway = Gateway::build(gateway_settings(&settings, mesh.clone())).await?;
        let url = format!("http://{}", local(gateway.addr()));

        let letters = dead_letters::open(data_dir.path()).await?;
        let bus = Arc::new(InProcessBus::new(Arc::new(letters)));
        // Before anything is published: what is confirmed was offered to every queue.
        for subscription in tourin_recommendation::subscriptions() {
            bus.declare(subscription)?;
        }
        let core = Core::build(
            core_settings(&settings, &data_dir, mesh.clone()),
            tourin_core::Dependencies { publisher: Some(bus.clone()), clock: clock.clone() },
        )
        .await?;
        let recommendation_settings = recommendation_settings(&settings, &data_dir, mesh);
        let stores = open_stores(&recommendation_settings, clock.clone()).await?;
        let mut replicas = Vec::new();
        for _ in 0..settings.replicas.recommendation {
            let dependencies = tourin_recommendation::Dependencies {
                events: Some(bus.clone()),
                stores: Some(stores.clone()),
                clock: clock.clone(),
            };
            replicas
                .push(Recommendation::build(recommendation_settings.clone(), dependencies).await?);
        }

        let mut parts = vec![Part::start("gateway", |stop| gateway.run_until_stopped(stop))];
        parts.push(Part::start("core", |stop| core.run_until_stopped(stop)));
        for replica in replicas {
            parts.push(Part::start("recommendation", |stop| replica.run_until_stopped(stop)));
        }
        parts.push(Part::start("registry", |stop| registry.run_until_stopped(stop)));

        let gateway_url = url.clone();
        let mut mesh = Self { url, registry_url, data_dir, parts };
        tokio::select! {
            ready = ready(&gateway_url) => ready?,
            failed = mesh.part_ended() => bail!(failed),
            () = stop.begun() => {}
        }
        Ok(mesh)
    }

    /// The one URL that clients know.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Where the registry answers.
    pub fn registry_url(&self) -> String {
        self.registry_url.clone()
    }

    /// The folder that keeps the data.
    pub fn data_dir(&self) -> &DataDir {
        &self.data_dir
    }

    /// Waits until a part ends by itself, which none should; says which and why. The part is gone
    /// then; the others run on until [`Mesh::stop`].
    pub async fn part_ended(&mut self) -> anyhow::Error {
        let running = self.parts.iter_mut().map(|part| &mut part.running);
        let (ended, index, _) = futures::future::select_all(running).await;
        let part = self.parts.remove(index);
        let reason = match ended {
            Ok(Ok(())) => anyhow!("it ended"),
            Ok(Err(error)) => error,
            Err(error) => anyhow!(error),
        };
        reason.context(format!("{} stopped unasked", part.name))
    }

    /// Stops the parts, who calls before who is called, so that what is in flight finishes.
    ///
    /// # Errors
    /// When a part failed, or did not stop in time.
    pub async fn stop(self) -> anyhow::Result<()> {
        let drain = async {
            let mut failures = Vec::new();
            for part in self.parts {
                part.stop.begin();
                match part.running.await {
                    Ok(Ok(())) => tracing::debug!(part = part.name, "stopped"),
                    Ok(Err(error)) => failures.push(error.context(part.name)),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => failures.push(anyhow!(error).context(part.name)),
                }
            }
            failures
        };
        let limit = Duration::from_millis(STOP_TIMEOUT_MS);
        let failures = tokio::time::timeout(limit, drain)
            .await
            .map_err(|_| anyhow!("still busy after {STOP_TIMEOUT_MS} ms; stopped all the same"))?;
        match failures.into_iter().next() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

/// Waits until the gateway says that it can serve.
async fn ready(gateway: &str) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(1)).build()?;
    let url = format!("{gateway}/readyz");
    let limit = Duration::from_millis(READY_TIMEOUT_MS);
    let mut last = String::from("no answer yet");
    let poll = async {
        loop {
            match client.get(&url).send().await {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) => last = answer.text().await.unwrap_or_default(),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(limit, poll).await.is_err() {
        bail!("the mesh is not ready after {READY_TIMEOUT_MS} ms: {last}");
    }
    Ok(())
}

fn gateway_settings(settings: &UpSettings, mesh: MeshSettings) -> tourin_gateway::Settings {
    let mut gateway = tourin_gateway::Settings::new(mesh);
    gateway.listen = settings.listen;
    gateway.allowed_origins.clone_from(&settings.allowed_origins);
    gateway.trusted_proxies.clone_from(&settings.trusted_proxies);
    gateway.routes.clone_from(&settings.routes);
    gateway
}

fn core_settings(
    settings: &UpSettings,
    data_dir: &DataDir,
    mesh: MeshSettings,
) -> tourin_core::Settings {
    let mut core = tourin_core::Settings::new(FREE_PORT, data_dir.path(), mesh);
    core.no_demo = settings.no_demo;
    core.tokens.cookie_secure = settings.cookie_secure;
    core
}

fn recommendation_settings(
    settings: &UpSettings,
    data_dir: &DataDir,
    mesh: MeshSettings,
) -> tourin_recommendation::Settings {
    let mut recommendation = tourin_recommendation::Settings::new(FREE_PORT, data_dir.path(), mesh);
    recommendation.rules.trend_half_life_ms = settings.trend_half_life_ms;
    recommendation
}

/// `tourin up`: runs until told to stop.
///
/// # Errors
/// As [`Mesh::start`]. What fails later is logged, and the exit code is 1.
pub async fn up(settings: UpSettings, stop: Shutdown) -> anyhow::Result<ExitCode> {
    let mut mesh = Mesh::start(settings, stop.clone()).await?;
    if !stop.is_begun() {
        greet(&mesh).context("cannot write to standard output")?;
    }
    let failed = tokio::select! {
        () = stop.begun() => None,
        failed = mesh.part_ended() => Some(failed),
    };
    // Also after a failure: what the other parts hold (views not yet written) is still good.
    let failed = failed.or(mesh.stop().await.err());
    Ok(match failed {
        None => ExitCode::SUCCESS,
        Some(error) => {
            tracing::error!(error = format!("{error:#}"), "stopped with a failure");
            ExitCode::FAILURE
        }
    })
}

/// The address at which this machine itself reaches a listener.
fn local(listening: SocketAddr) -> SocketAddr {
    match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, listening.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, listening.port()).into(),
        _ => listening,
    }
}

/// Says where everything is, and three lines that a newcomer can paste.
fn greet(mesh: &Mesh) -> std::io::Result<()> {
    let (url, data) = (&mesh.url, mesh.data_dir.path().display());
    let mut out = std::io::stdout().lock();
    write!(
        out,
        r#"Tourin is ready.

  URL   {url}
  data  {data}

Try, in another terminal:

  curl -s '{url}/api/tour-spots?query=%EA%B2%BD%EB%B3%B5'
  curl -s -H 'Content-Type: application/json' -d '{{"id":"newcomer1","password":"Tour1n!pass","name":"New Comer","email":"new@example.com"}}' {url}/api/auth/signup; curl -s -o /dev/null -c /tmp/tourin.jar -H 'Content-Type: application/json' -d '{{"id":"newcomer1","password":"Tour1n!pass"}}' {url}/api/auth/login
  curl -s -b /tmp/tourin.jar -o /dev/null {url}/api/tour-spots/1 && sleep 1 && curl -s -b /tmp/tourin.jar '{url}/api/recommendations/trend?k=3'

Ctrl-C stops it.
"#
    )?;
    out.flush()
}
