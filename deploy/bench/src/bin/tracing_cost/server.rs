//! A gateway or a core as a process, and its processor time.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use tempfile::TempDir;
use tourin_bench::load::Target;
use tourin_bench::{free_address, thread_times, without_settings};
use tourin_chassis::http_client;

use crate::mesh::Surroundings;

/// How long a server may take to be ready.
const START: Duration = Duration::from_secs(15);

/// The collector of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exporter {
    None,
    /// A collector that accepts spans.
    Up,
    /// A collector that does not answer.
    Dead,
}

/// A configuration to compare.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub ratio: f64,
    pub exporter: Exporter,
    /// Whether the spans of unsampled requests are buffered, to be exported if the request fails or is slow.
    pub keeps_back: bool,
}

impl Case {
    /// Whether the bound is on this case: 10 % of the traces, with failed and slow ones kept.
    pub fn is_bounded(&self) -> bool {
        (self.ratio - 0.1).abs() < f64::EPSILON && self.keeps_back
    }
}

/// Processor time used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    pub all: Duration,
    /// By the thread that exports spans.
    pub export: Duration,
}

/// The name of the SDK's thread for it, as far as Linux keeps it.
const EXPORT_THREAD: &str = "OpenTelemetry.T";

/// Spans taken by the collector, and lost on the way.
#[derive(Debug, Clone, Copy, Default)]
pub struct SpanCounts {
    pub exported: u64,
    pub dropped: u64,
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    /// Where and how it is asked.
    pub target: Target,
    metrics: String,
    /// Core's data.
    _folder: Option<TempDir>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Server {
    /// Starts a gateway and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start in time.
    pub async fn gateway(
        program: &Path,
        case: Case,
        around: &Surroundings,
        log: &str,
    ) -> anyhow::Result<Self> {
        let (addr, admin) = (free_address()?, free_address()?);
        let mut command = command((program, "gateway"), case, around, log, addr)?;
        command.args(["--admin-listen", &admin.to_string(), "--gateway-threads", "1"]);
        let metrics = format!("http://{admin}/metrics");
        let target = Target { addr, tls: None };
        Self::start(command, target, "/readyz", metrics, None).await
    }

    /// Starts a core with the built-in catalogue on SQLite, and waits until it answers.
    ///
    /// # Errors
    /// When it does not start in time.
    pub async fn core(
        program: &Path,
        case: Case,
        around: &Surroundings,
        log: &str,
    ) -> anyhow::Result<Self> {
        let addr = free_address()?;
        let folder = tempfile::tempdir()?;
        let mut command = command((program, "core"), case, around, log, addr)?;
        command
            .env("TOKIO_WORKER_THREADS", "1")
            .env("TOURIN_AMQP_URL", &around.amqp_url)
            .args(["--amqp-prefix", &around.amqp_prefix])
            .arg("--data-dir")
            .arg(folder.path());
        let metrics = format!("http://{addr}/metrics");
        let target = Target { addr, tls: Some(around.mesh.as_gateway("core")?) };
        Self::start(command, target, "/healthz", metrics, Some(folder)).await
    }

    async fn start(
        mut command: Command,
        target: Target,
        probe: &str,
        metrics: String,
        folder: Option<TempDir>,
    ) -> anyhow::Result<Self> {
        let child = command.spawn().with_context(|| format!("{:?}", command.get_program()))?;
        // Plain HTTP: this machine may ask for probes without a certificate.
        let url = format!("http://{}{probe}", target.addr);
        let server = Self { child, target, metrics, _folder: folder };
        let started = Instant::now();
        let client = http_client::client(Duration::from_secs(5))?;
        loop {
            let ready = client.get(&url).send().await;
            if ready.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(server);
            }
            anyhow::ensure!(started.elapsed() < START, "{url} is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The processor time of its threads, to the nanosecond.
    ///
    /// # Errors
    /// Where there is no `/proc/PID/task/*/schedstat`.
    pub fn processor_time(&self) -> anyhow::Result<Used> {
        let mut used = Used::default();
        for (thread, on_cpu) in thread_times(self.child.id())? {
            used.all += on_cpu;
            if thread == EXPORT_THREAD {
                used.export += on_cpu;
            }
        }
        Ok(used)
    }

    /// The counts in its metrics.
    ///
    /// # Errors
    /// When the metrics cannot be read.
    pub async fn span_counts(&self) -> anyhow::Result<SpanCounts> {
        let client = http_client::client(Duration::from_secs(5))?;
        let text = client.get(&self.metrics).send().await?.text().await?;
        let sum = |name: &str| -> u64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            // Counts: whole and never negative.
            values.sum::<f64>() as u64
        };
        Ok(SpanCounts {
            exported: sum("tourin_trace_spans_exported_total"),
            dropped: sum("tourin_trace_spans_dropped_total"),
        })
    }
}

/// The command of a program, which is a service, with the arguments that all cases share.
fn command(
    (program, service): (&Path, &str),
    case: Case,
    around: &Surroundings,
    log: &str,
    listen: SocketAddr,
) -> anyhow::Result<Command> {
    let mut command = Command::new(program);
    without_settings(&mut command)
        .env("TOURIN_JOIN_TOKEN", around.mesh.join_token(service)?)
        .args(["--registry-url", &around.mesh.registry_url, "--log", log])
        .args(["--listen", &listen.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let collector = match case.exporter {
        Exporter::None => None,
        Exporter::Up => Some(around.collector),
        Exporter::Dead => Some(around.dead),
    };
    if let Some(collector) = collector {
        command.args(["--zipkin-url", &format!("http://{collector}")]);
        command.args(["--trace-ratio", &case.ratio.to_string()]);
    }
    if !case.keeps_back {
        command.args(["--trace-keep-failed=false", "--trace-slow-ms=0"]);
    }
    Ok(command)
}
