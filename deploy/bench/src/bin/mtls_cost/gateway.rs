//! Gateways as processes, and their processor time for each request.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use rand::seq::SliceRandom;
use tourin_bench::load::{Load, Requests, Target, get};
use tourin_bench::mesh::Mesh;
use tourin_bench::{free_address, quantile_of, thread_times, without_settings};
use tourin_chassis::peer::GATEWAY;
use tourin_chassis::telemetry::TelemetrySettings;
use tourin_chassis::{http_client, process};
use tourin_gateway::Gateway;

use crate::Settings;

/// How long a gateway may take to be ready.
const START: Duration = Duration::from_secs(15);
const WARM_UP: Duration = Duration::from_millis(500);
/// The most that a request may take with mTLS, as a part of what it takes without.
const BOUND: f64 = 1.08;

/// The settings of a gateway's process.
#[derive(Debug, Args)]
pub struct ProcessSettings {
    /// Plain HTTP to instances
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    gateway: tourin_gateway::Settings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

/// Is a gateway until it is stopped.
pub async fn run(settings: ProcessSettings) -> ExitCode {
    let ProcessSettings { plain, gateway, telemetry } = settings;
    let build = async move {
        let built = Gateway::build(gateway, None).await?;
        Ok(if plain { built.with_plain_upstreams() } else { built })
    };
    process::run(&telemetry, build, Gateway::run_until_stopped).await
}

#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    is_plain: bool,
}

const CASES: [Case; 3] = [
    Case { name: "plain HTTP", is_plain: true },
    Case { name: "plain HTTP, again", is_plain: true },
    Case { name: "mTLS", is_plain: false },
];
/// Those without mTLS.
const PLAIN: [usize; 2] = [0, 1];
const MTLS: usize = 2;

/// A running gateway; killed when dropped.
struct Server {
    child: Child,
    target: Target,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Server {
    async fn start(case: Case, mesh: &Mesh) -> anyhow::Result<Self> {
        let (addr, admin) = (free_address()?, free_address()?);
        let mut command = Command::new(std::env::current_exe()?);
        without_settings(&mut command)
            .env("TOURIN_JOIN_TOKEN", mesh.join_token(GATEWAY)?)
            .args(["gateway", "--registry-url", &mesh.registry_url, "--log", "error"])
            .args(["--listen", &addr.to_string(), "--admin-listen", &admin.to_string()])
            .args(["--gateway-threads", "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if case.is_plain {
            command.arg("--plain");
        }
        let server = Self { child: command.spawn()?, target: Target { addr, tls: None } };
        server.ready(admin).await?;
        Ok(server)
    }

    async fn ready(&self, admin: SocketAddr) -> anyhow::Result<()> {
        let (client, started) = (http_client::client(Duration::from_secs(1))?, Instant::now());
        let url = format!("http://{admin}/readyz");
        loop {
            let ready = client.get(&url).send().await;
            if ready.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            ensure!(started.elapsed() < START, "{url} is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn processor_time(&self) -> anyhow::Result<Duration> {
        Ok(thread_times(self.child.id())?.into_iter().map(|(_, time)| time).sum())
    }
}

/// One case's figures of every set, or of the rounds of one.
#[derive(Debug, Default)]
struct Figures {
    cpu_us: Vec<f64>,
    per_second: Vec<f64>,
}

/// Measures and prints.
pub async fn measure(settings: &Settings, mesh: &Mesh) -> anyhow::Result<()> {
    let mut figures: [Figures; CASES.len()] = Default::default();
    for _ in 0..settings.sets {
        let mut set = one_set(settings, mesh).await?;
        for (figures, set) in figures.iter_mut().zip(&mut set) {
            // What else the machine does only makes a round dearer: the quieter quarter counts.
            figures.cpu_us.push(quantile_of(&mut set.cpu_us, 0.25));
            figures.per_second.push(quantile_of(&mut set.per_second, 0.75));
        }
    }
    report(settings, &figures)
}

async fn one_set(settings: &Settings, mesh: &Mesh) -> anyhow::Result<[Figures; CASES.len()]> {
    let page: Requests = Arc::from([get("/api/tour-spots?query=palace", "")]);
    let requests = vec![page; settings.connections];
    let mut servers = Vec::new();
    for case in CASES {
        let server = Server::start(case, mesh).await?;
        // Connections to the service are opened here, and kept.
        Load::open(&server.target, &requests).await?.run(WARM_UP).await?;
        servers.push((case, server));
    }
    let time = Duration::from_millis(settings.load_ms);
    let mut set: [Figures; CASES.len()] = Default::default();
    let mut order: Vec<usize> = (0..servers.len()).collect();
    for _ in 0..settings.rounds {
        order.shuffle(&mut rand::rng());
        for index in order.iter().copied() {
            let (case, server) = &servers[index];
            let mut load = Load::open(&server.target, &requests).await?;
            let (pages, before) = (mesh.pages.counted(), server.processor_time()?);
            let answered = load.run(time).await?;
            let used = server.processor_time()?.saturating_sub(before);
            let (to_peers, to_others) = mesh.pages.counted();
            let expected = if case.is_plain { (0, answered) } else { (answered, 0) };
            ensure!(
                (to_peers - pages.0, to_others - pages.1) == expected,
                "{}: the gateway has not called its services as it should",
                case.name
            );
            set[index].cpu_us.push(used.as_secs_f64() * 1e6 / answered as f64);
            set[index].per_second.push(answered as f64 / time.as_secs_f64());
        }
    }
    Ok(set)
}

fn report(settings: &Settings, figures: &[Figures; CASES.len()]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "gateway, a page of 1 KiB: {} sets of {} rounds of {} ms, {} connections, one thread for requests; medians of sets of which the quieter quarter counts, ratios to the mean of both without mTLS of the same set [10th to 90th percentile]",
        settings.sets, settings.rounds, settings.load_ms, settings.connections
    )?;
    writeln!(
        out,
        "{:<20} {:>8} {:>22} {:>9} {:>22}",
        "case", "CPU us", "CPU ratio", "req/s", "req/s ratio"
    )?;
    for (case, of_case) in CASES.iter().zip(figures) {
        writeln!(
            out,
            "{:<20} {:>8.1} {:>22} {:>9.0} {:>22}",
            case.name,
            quantile_of(&mut of_case.cpu_us.clone(), 0.5),
            spread(ratios(figures, of_case, |of| &of.cpu_us)),
            quantile_of(&mut of_case.per_second.clone(), 0.5),
            spread(ratios(figures, of_case, |of| &of.per_second)),
        )?;
    }
    let mut cost = ratios(figures, &figures[MTLS], |of| &of.cpu_us);
    writeln!(
        out,
        "the gateway's processor time for a request, with mTLS / without: {:.3} (at most {BOUND})",
        quantile_of(&mut cost, 0.5)
    )?;
    Ok(())
}

/// By set, to the mean without mTLS.
fn ratios(
    figures: &[Figures; CASES.len()],
    case: &Figures,
    of: impl Fn(&Figures) -> &Vec<f64>,
) -> Vec<f64> {
    let [one, other] = PLAIN.map(|plain| of(&figures[plain]));
    let plain = one.iter().zip(other).map(|(one, other)| f64::midpoint(*one, *other));
    of(case).iter().zip(plain).map(|(case, plain)| case / plain).collect()
}

fn spread(mut ratios: Vec<f64>) -> String {
    let [low, middle, high] = [0.1, 0.5, 0.9].map(|part| quantile_of(&mut ratios, part));
    format!("{middle:.3} [{low:.3} to {high:.3}]")
}
