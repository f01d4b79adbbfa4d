//! The mesh in one process: start, run, stop.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use serde_json::Value;
use tokio::task::JoinHandle;
use tourin_chassis::http_client;
use tourin_chassis::shutdown::Shutdown;
use tourin_chassis::telemetry::{self, memory::MemoryStore};
use tourin_recommendation::Recommendation;

use crate::data_dir::DataDir;
use crate::parts::{self, ServiceContext, StatelessParts};
use crate::up::UpSettings;

/// Time for the parts to become ready at the start, in milliseconds.
const READY_TIMEOUT_MS: u64 = 10_000;
/// The longest report of readiness, in bytes.
const MAX_REPORT_BYTES: usize = 64 * 1024;
/// Time for the whole stop, in milliseconds, unless the parts' drain time-outs together are longer. What
/// is left is dropped.
const STOP_TIMEOUT_MS: u64 = 4_500;

/// A running mesh.
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

/// The kinds of parts, in the order of their stop: callers before the called.
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

/// A running part of the mesh.
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
    /// Starts every part and waits until the gateway is ready. A service that waits for its server does
    /// not block the others. `stop` ends the wait; the mesh may then lack services.
    ///
    /// # Errors
    /// A bad setting, a folder or an address that cannot be used, or parts that do not become ready in
    /// time.
    pub async fn start(settings: UpSettings, stop: Shutdown) -> anyhow::Result<Self> {
        Self::start_with(settings, None, stop).await
    }

    /// Like [`Mesh::start`], and shows the process's traces, which are in `traces`.
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
            mesh_file,
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
                Part::start(Role::Operator, |stop| async move {
                    tokio::select! {
                        ended = operator.run_until_stopped(stop) => ended,
                        never = mesh_file.keep() => match never {},
                    }
                }),
            ],
            stop_timeout: stop_timeout(&settings),
        };
        let whole = async {
            mesh.start_services(&settings, &mut context).await?;
            // Embedded stores are ready at once. For servers the wait has no limit; the log names them.
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
        // A server may be away for long.
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

    /// Starts core and recommendation, each as soon as its stores are open.
    async fn start_services(
        &mut self,
        settings: &UpSettings,
        context: &mut ServiceContext,
    ) -> anyhow::Result<()> {
        // Reserved until here, so that no other process takes them.
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

    /// The registry's URL.
    pub fn registry_url(&self) -> String {
        self.registry_url.clone()
    }

    /// The operators' URL: metrics, readiness, and traces that are kept in memory.
    pub fn operator_url(&self) -> String {
        self.operator_url.clone()
    }

    /// The data folder.
    pub fn data_dir(&self) -> &DataDir {
        &self.data_dir
    }

    /// Waits until a part ends by itself, which is a failure; says which and why. The other parts run on
    /// until [`Mesh::stop`].
    pub async fn part_ended(&mut self) -> anyhow::Error {
        first_ended(&mut self.parts).await
    }

    /// Stops the parts, callers first, so that requests in flight finish.
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

/// Removes the first part that ends; says which and why.
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

/// Whether a missing service is not run here, so that the start does not wait for it. Its calls are
/// answered 503.
fn is_external(missing: &str) -> bool {
    !["core", "recommendation", "keys", "sessions", "gateway", "certificate"].contains(&missing)
}

/// Whether the gateway's readiness report lacks nothing that is run here.
fn is_complete(report: &str) -> bool {
    let report: Value = serde_json::from_str(report).unwrap_or_default();
    let missing = report["unready"].as_object();
    missing.is_some_and(|missing| missing.keys().all(|name| is_external(name)))
}

/// Waits until the gateway is ready for all that is run here.
async fn ready(url: &str, limit: Duration) -> anyhow::Result<()> {
    let client = http_client::client(Duration::from_secs(1))?;
    let mut last = String::from("no answer yet");
    let poll = async {
        loop {
            last = match http_client::send(client.get(url), MAX_REPORT_BYTES).await {
                Ok(answer) => String::from_utf8_lossy(answer.body()).into_owned(),
                Err(error) => error.to_string(),
            };
            if is_complete(&last) {
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

/// `tourin up`: runs until it is stopped.
///
/// # Errors
/// As [`Mesh::start`]. A later failure, or a stop that takes too long, is logged and gives exit code 1.
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
    // Also after a failure, so that the other parts write what they have buffered.
    let failed = failed.or(mesh.stop().await.err());
    Ok(match failed {
        None => ExitCode::SUCCESS,
        Some(error) => {
            tracing::error!(error = format!("{error:#}"), "stopped with a failure");
            ExitCode::FAILURE
        }
    })
}

/// Prints the addresses, and three commands to try.
fn print_banner(mesh: &Mesh) -> std::io::Result<()> {
    let (url, data) = (&mesh.url, mesh.data_dir.path().display());
    let operator = &mesh.operator_url;
    let destinations = telemetry::destinations();
    let traces = match destinations.endpoints.as_slice() {
        _ if mesh.shows_traces => operator.clone(),
        [] => "sent nowhere".to_owned(),
        endpoints => endpoints.join(" and "),
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
    fn an_external_service_is_not_waited_for() {
        for (report, expected) in [
            (r#"{"status":"ready","unready":{}}"#, true),
            (r#"{"status":"unready","unready":{"images":"no instance is up"}}"#, true),
            (r#"{"status":"unready","unready":{"images":"no instance is up","keys":"x"}}"#, false),
            (r#"{"status":"degraded","unready":{"recommendation":"no instance is up"}}"#, false),
            ("no answer yet", false),
            ("{}", false),
        ] {
            assert_eq!(is_complete(report), expected, "{report}");
        }
    }
}
