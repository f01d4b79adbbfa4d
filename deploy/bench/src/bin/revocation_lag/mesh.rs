//! A core and several gateways as processes.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tourin_bench::mesh::Mesh as Surroundings;
use tourin_bench::{free_address, without_settings};
use tourin_chassis::http_client;
use uuid::Uuid;

use crate::Settings;

/// How long a process may take to be ready.
const START: Duration = Duration::from_secs(60);
const LAG: &str = "tourin_gateway_revocation_lag_seconds_bucket{le=\"";
const SEEN: &str = "tourin_gateway_revocation_canaries_total{outcome=\"";

/// A process; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

struct Gateway {
    url: String,
    admin: SocketAddr,
}

/// The mesh under measurement.
pub struct Mesh {
    gateways: Vec<Gateway>,
    http: Client,
    _kept: (Vec<Process>, Surroundings, TempDir),
}

impl Mesh {
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let around = Surroundings::of(&["recommendation"]).await?;
        let http = http_client::client(Duration::from_secs(10))?;
        let folder = tempfile::tempdir()?;
        let core = free_address()?;
        let mut command = command(&settings.core, "core", &around, core)?;
        command
            .env("TOURIN_MYSQL_URL", given("TOURIN_MYSQL_URL")?)
            .env("TOURIN_REDIS_URL", given("TOURIN_REDIS_CORE_URL")?)
            .env("TOURIN_AMQP_URL", given("TOURIN_AMQP_URL")?)
            .args(["--amqp-prefix", &format!("bench-{}.", Uuid::now_v7().simple())])
            // Hashing passwords is not what is measured.
            .args(["--password-memory-kib", "16", "--password-iterations", "1", "--no-demo"])
            .arg("--data-dir")
            .arg(folder.path());
        let mut processes = vec![Process(command.spawn().context("core")?)];
        ready(&http, core).await?;
        let mut gateways = Vec::new();
        for _ in 0..settings.gateways {
            let (addr, admin) = (free_address()?, free_address()?);
            let mut command = self::command(&settings.gateway, "gateway", &around, addr)?;
            command
                .env("TOURIN_REDIS_URL", given("TOURIN_REDIS_GATEWAY_URL")?)
                .args(["--admin-listen", &admin.to_string(), "--gateway-threads", "1"])
                .args(["--revocation-canary-ms", &settings.canary_ms.to_string()]);
            processes.push(Process(command.spawn().context("gateway")?));
            gateways.push(Gateway { url: format!("http://{addr}"), admin });
        }
        for gateway in &gateways {
            ready(&http, gateway.admin).await?;
        }
        Ok(Self { gateways, http, _kept: (processes, around, folder) })
    }

    /// Gateways.
    pub fn count(&self) -> usize {
        self.gateways.len()
    }

    fn url(&self, gateway: usize) -> &str {
        &self.gateways[gateway % self.gateways.len()].url
    }

    /// Posts to a path below `/api/auth/`.
    pub async fn post(
        &self,
        gateway: usize,
        path: &str,
        token: Option<&str>,
        body: &Value,
    ) -> anyhow::Result<Response> {
        let mut request = self.http.post(format!("{}/api/auth/{path}", self.url(gateway)));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        Ok(request.json(body).send().await?)
    }

    /// Whether a gateway serves the session of a token, and does not refuse it.
    pub async fn is_let_in(&self, gateway: usize, token: &str) -> anyhow::Result<bool> {
        let url = format!("{}/api/auth/me", self.url(gateway));
        let answer = self.http.get(url).bearer_auth(token).send().await?;
        let status = answer.status();
        // So that the connection is kept.
        answer.bytes().await?;
        match status {
            StatusCode::OK => Ok(true),
            StatusCode::UNAUTHORIZED => Ok(false),
            other => anyhow::bail!("a gateway answers {other}"),
        }
    }

    /// What the gateways have measured themselves, together.
    pub async fn canaries(&self) -> anyhow::Result<String> {
        let mut buckets: Vec<(String, f64)> = Vec::new();
        let mut outcomes: Vec<(String, f64)> = Vec::new();
        for gateway in &self.gateways {
            let url = format!("http://{}/metrics", gateway.admin);
            let text = self.http.get(url).send().await?.text().await?;
            for line in text.lines() {
                add(&mut buckets, line, LAG);
                add(&mut outcomes, line, SEEN);
            }
        }
        let all = buckets.last().map_or(0.0, |(_, count)| *count);
        let below = |part: f64| {
            let bucket = buckets.iter().find(|(_, count)| *count >= all * part);
            bucket.map_or("no", |(bound, _)| bound)
        };
        let (p50, p99) = (below(0.5), below(0.99));
        let outcomes: Vec<_> =
            outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        Ok(format!("p50 at most {p50} s, p99 at most {p99} s: {}", outcomes.join(", ")))
    }
}

/// Adds the value of a metric's line by what stands between the prefix and the next quotation mark.
fn add(sums: &mut Vec<(String, f64)>, line: &str, prefix: &str) {
    let parsed = line.strip_prefix(prefix).and_then(|rest| {
        let (label, rest) = rest.split_once('"')?;
        Some((label, rest.rsplit(' ').next()?.parse::<f64>().ok()?))
    });
    let Some((label, value)) = parsed else { return };
    match sums.iter_mut().find(|(known, _)| known == label) {
        Some((_, sum)) => *sum += value,
        None => sums.push((label.to_owned(), value)),
    }
}

fn given(variable: &str) -> anyhow::Result<String> {
    std::env::var(variable).with_context(|| format!("{variable}; run this by deploy/bench.sh"))
}

fn command(
    program: &Path,
    service: &str,
    around: &Surroundings,
    listen: SocketAddr,
) -> anyhow::Result<Command> {
    let mut command = Command::new(program);
    without_settings(&mut command)
        .env("TOURIN_JOIN_TOKEN", around.join_token(service)?)
        .args(["--registry-url", &around.registry_url, "--log", "error"])
        .args(["--listen", &listen.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command)
}

/// Waits until a process's probe, in plain HTTP, says that it is ready.
async fn ready(http: &Client, at: SocketAddr) -> anyhow::Result<()> {
    let (url, started) = (format!("http://{at}/readyz"), Instant::now());
    loop {
        let ready = http.get(&url).send().await;
        if ready.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        ensure!(started.elapsed() < START, "{url} is not ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
