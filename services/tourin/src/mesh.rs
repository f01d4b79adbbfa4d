//! The whole mesh in one process, from its start to its stop.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use serde_json::Value;
use tokio::task::JoinHandle;
use tourin_chassis::shutdown::Shutdown;
use tourin_chassis::telemetry::{self, memory::MemoryStore};
use tourin_recommendation::Recommendation;

use crate::data_dir::DataDir;
use crate::parts::{self, ServiceContext, StatelessParts};
use crate::up::UpSettings;

/// How long the parts may take to find each other at the start, in milliseconds.
const READY_TIMEOUT_MS: u64 = 10_000;
/// How long the whole stop may take, in milliseconds, unless the parts' drain time-outs together are
/// longer; what is left then is dropped.
const STOP_TIMEOUT_MS: u64 = 4_500;

/// A mesh that runs.
#[derive(Debug)]
pub struct Mesh {
    url: String,
    registry_url: String,
    operator_url: String,
    shows_traces: bool,
    data_dir: DataDir,
    parts: Vec<Part>,
    stop_timeout: Duration,
}

/// What a part is, in the order in which they stop: who calls before who is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Operator,
    Gateway,
    Core,
    Recommendation,
    Registry,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Operator => "operators' page",
            Self::Gateway => "gateway",
            Self::Core => "core",
            Self::Recommendation => "recommendation",
            Self::Registry => "registry",
        }
    }
}

/// One service of the mesh, running.
#[derive(Debug)]
struct Part {
    role: Role,
    stop: Shutdown,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Part {
    fn start<F>(role: Role, run: impl FnOnce(Shutdown) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = Shutdown::new();
        Self { role, running: tokio::spawn(run(stop.clone())), stop }
    }
}

impl Mesh {
    /// Starts every part and waits until the gateway can serve. A service that waits for its server
    /// keeps nobody else from answering. `stop` ends the wait: then services may be missing from the
    /// mesh, which is there to be stopped.
    ///
    /// # Errors
    /// When a setting is bad, the folder or the address cannot be had, or the parts do not find each
    /// other in time.
    pub async fn start(settings: UpSettings, stop: Shutdown) -> anyhow::Result<Self> {
        Self::start_with(settings, None, stop).await
    }

    /// [`Mesh::start`], and shows the traces in `traces`, into which the process's spans go.
    ///
    /// # Errors
    /// Those of [`Mesh::start`].
    pub async fn start_with(
        settings: UpSettings,
        traces: Option<MemoryStore>,
        stop: Shutdown,
    ) -> anyhow::Result<Self> {
        let data_dir = if settings.ephemeral {
            DataDir::temporary()?
        } else {
            DataDir::open(&settings.data_dir)?
        };
        let stateless = parts::stateless(&settings, traces.as_ref(), &data_dir).await?;
        tracing::info!("traces go {}", telemetry::destinations());
        let StatelessParts {
            url,
            registry_url,
            readiness_url,
            gateway,
            registry,
            operator,
            mut context,
        } = stateless;
        let mut mesh = Self {
            url,
            registry_url,
            operator_url: format!("http://{}", parts::local(operator.addr)),
            shows_traces: traces.is_some(),
            data_dir,
            parts: vec![
                Part::start(Role::Registry, |stop| registry.run_until_stopped(stop)),
                Part::start(Role::Gateway, |stop| gateway.run_until_stopped(stop)),
                Part::start(Role::Operator, |stop| operator.run_until_stopped(stop)),
            ],
            stop_timeout: stop_timeout(&settings),
        };
        let whole = async {
            mesh.start_services(&settings, &mut context).await?;
            // What is embedded is there at once. A server is waited for, whose logs say so.
            let limit = if settings.parts.has_servers() {
                Duration::MAX
            } else {
                Duration::from_millis(READY_TIMEOUT_MS)
            };
            tokio::select! {
                ready = ready(&readiness_url, limit) => ready,
                failed = mesh.part_ended() => Err(failed),
            }
        };
        // A server may be away for as long as it likes; whoever waits may not like it.
        let whole = tokio::select! {
            whole = whole => whole,
            () = stop.begun() => Ok(()),
        };
        let Err(error) = whole else { return Ok(mesh) };
        if let Err(another) = mesh.stop().await {
            tracing::debug!(error = format!("{another:#}"), "stopped after a failed start");
        }
        Err(error)
    }

    /// Starts core and recommendation, each as soon as it has what it needs.
    async fn start_services(
        &mut self,
        settings: &UpSettings,
        context: &mut ServiceContext,
    ) -> anyhow::Result<()> {
        // Reserved until here, so that nobody else takes them while the front is built.
        let addresses = context.take_addresses(settings);
        let context = &*context;
        let Self { data_dir, parts, .. } = self;
        let data_dir = &*data_dir;
        let core = async {
            let core = parts::core(settings, data_dir, (context, addresses.core)).await?;
            anyhow::Ok(vec![Part::start(Role::Core, |stop| core.run_until_stopped(stop))])
        };
        let replicas = async {
            let replicas =
                parts::replicas(settings, data_dir, (context, &addresses.replicas)).await?;
            let start = |replica: Recommendation| {
                Part::start(Role::Recommendation, |stop| replica.run_until_stopped(stop))
            };
            anyhow::Ok(replicas.into_iter().map(start).collect())
        };
        let mut starting = FuturesUnordered::from_iter([core.boxed(), replicas.boxed()]);
        while !starting.is_empty() {
            tokio::select! {
                Some(started) = starting.next() => parts.extend(started?),
                failed = first_ended(parts) => return Err(failed),
            }
        }
        Ok(())
    }

    /// The one URL that clients know.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Where the registry answers.
    pub fn registry_url(&self) -> String {
        self.registry_url.clone()
    }

    /// Where metrics and readiness are shown, and traces where they are kept here.
    pub fn operator_url(&self) -> String {
        self.operator_url.clone()
    }

    /// The folder that keeps the data.
    pub fn data_dir(&self) -> &DataDir {
        &self.data_dir
    }

    /// Waits until a part ends by itself, which none should; says which and why. The part is gone
    /// then; the others run on until [`Mesh::stop`].
    pub async fn part_ended(&mut self) -> anyhow::Error {
        first_ended(&mut self.parts).await
    }

    /// Stops the parts, who calls before who is called, so that what is in flight finishes.
    ///
    /// # Errors
    /// When a part failed, or did not stop in time.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.parts.sort_by_key(|part| part.role);
        let drain = async {
            let mut failures = Vec::new();
            for part in self.parts {
                part.stop.begin();
                match part.running.await {
                    Ok(Ok(())) => tracing::debug!(part = part.role.name(), "stopped"),
                    Ok(Err(error)) => failures.push(error.context(part.role.name())),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => failures.push(anyhow!(error).context(part.role.name())),
                }
            }
            failures
        };
        let limit = self.stop_timeout;
        let failures = tokio::time::timeout(limit, drain).await.map_err(|_| {
            anyhow!("still busy after {} ms; stopped all the same", limit.as_millis())
        })?;
        match failures.into_iter().next() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

/// The parts stop one after the other.
fn stop_timeout(settings: &UpSettings) -> Duration {
    let parts = &settings.parts;
    let drains = parts.gateway.drain_timeout_ms
        + parts.core.drain_timeout_ms
        + parts.recommendation.drain_timeout_ms;
    Duration::from_millis(drains.max(STOP_TIMEOUT_MS))
}

/// Takes the first part out that ends; says which and why.
async fn first_ended(parts: &mut Vec<Part>) -> anyhow::Error {
    let running = parts.iter_mut().map(|part| &mut part.running);
    let (ended, index, _) = futures::future::select_all(running).await;
    let part = parts.remove(index);
    let reason = match ended {
        Ok(Ok(())) => anyhow!("it ended"),
        Ok(Err(error)) => error,
        Err(error) => anyhow!(error),
    };
    reason.context(format!("{} stopped unasked", part.role.name()))
}

/// What the gateway may be without when the start is over: services that a route names and that are
/// not run here. Their calls are answered 503.
fn is_elsewhere(missing: &str) -> bool {
    !["core", "recommendation", "keys", "sessions", "gateway"].contains(&missing)
}

/// Whether the gateway's report on its readiness names nothing that is to be waited for.
fn is_whole(report: &str) -> bool {
    let report: Value = serde_json::from_str(report).unwrap_or_default();
    let missing = report["unready"].as_object();
    missing.is_some_and(|missing| missing.keys().all(|name| is_elsewhere(name)))
}

/// Waits until the gateway says that it can serve what is run here.
async fn ready(url: &str, limit: Duration) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(1)).build()?;
    let mut last = String::from("no answer yet");
    let poll = async {
        loop {
            match client.get(url).send().await {
                Ok(answer) => last = answer.text().await.unwrap_or_default(),
                Err(error) => last = error.to_string(),
            }
            if is_whole(&last) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(limit, poll).await.is_err() {
        bail!("the mesh is not ready after {} ms: {last}", limit.as_millis());
    }
    Ok(())
}

/// `tourin up`: runs until told to stop.
///
/// # Errors
/// As [`Mesh::start`]. What fails later, a stop that takes too long among it, is logged, and the exit
/// code is 1.
pub async fn up(
    settings: UpSettings,
    traces: Option<MemoryStore>,
    stop: Shutdown,
) -> anyhow::Result<ExitCode> {
    let mut mesh = Mesh::start_with(settings, traces, stop.clone()).await?;
    if !stop.is_begun() {
        print_banner(&mesh).context("cannot write to standard output")?;
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

/// Says where everything is, and three lines that a newcomer can paste.
fn print_banner(mesh: &Mesh) -> std::io::Result<()> {
    let (url, data) = (&mesh.url, mesh.data_dir.path().display());
    let operator = &mesh.operator_url;
    let destinations = telemetry::destinations();
    let traces = match destinations.places.as_slice() {
        _ if mesh.shows_traces => operator.clone(),
        [] => "sent nowhere".to_owned(),
        places => places.join(" and "),
    };
    let ratio = destinations.ratio;
    let mut out = std::io::stdout().lock();
    write!(
        out,
        r#"Tourin is ready.

  URL      {url}
  traces   {traces}
  ratio    {ratio} of the traces, by --trace-ratio
  metrics  {operator}/metrics
  data     {data}

Try, in another terminal:

  curl -s '{url}/api/tour-spots?query=%EA%B2%BD%EB%B3%B5'
  curl -s -H 'Content-Type: application/json' -d '{{"id":"newcomer1","password":"Tour1n!pass","name":"New Comer","email":"new@example.com"}}' {url}/api/auth/signup; curl -s -o /dev/null -c /tmp/tourin.jar -H 'Content-Type: application/json' -d '{{"id":"newcomer1","password":"Tour1n!pass"}}' {url}/api/auth/login
  curl -s -b /tmp/tourin.jar -o /dev/null {url}/api/tour-spots/1 && sleep 1 && curl -s -b /tmp/tourin.jar '{url}/api/recommendations/trend?k=3'

Ctrl-C stops it.
"#
    )?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_from_elsewhere_is_not_waited_for() {
        for (report, expected) in [
            (r#"{"status":"ready","unready":{}}"#, true),
            (r#"{"status":"unready","unready":{"images":"no instance is up"}}"#, true),
            (r#"{"status":"unready","unready":{"images":"no instance is up","keys":"x"}}"#, false),
            (r#"{"status":"degraded","unready":{"recommendation":"no instance is up"}}"#, false),
            ("no answer yet", false),
            ("{}", false),
        ] {
            assert_eq!(is_whole(report), expected, "{report}");
        }
    }
}
