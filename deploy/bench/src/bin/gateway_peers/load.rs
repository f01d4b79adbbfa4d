//! Load by `wrk`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;

/// Requests with the tokens of a file in turn. Its last line has the figures: requests, the run's
/// microseconds, p50 and p99 in microseconds, and failures.
const SCRIPT: &str = r#"
local requests = {}
for token in io.lines(os.getenv("BENCH_TOKENS")) do
  requests[#requests + 1] = "GET /api/tour-spots?query=palace HTTP/1.1\r\nHost: bench\r\n" ..
    "User-Agent: bench\r\nAccept: application/json\r\nAuthorization: Bearer " .. token .. "\r\n\r\n"
end
local turn = 0
request = function()
  turn = turn % #requests + 1
  return requests[turn]
end
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format("figures %d %d %d %d %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"#;

/// What a run of `wrk` gave.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub requests: u64,
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// `wrk`, with one thread.
pub struct Wrk {
    script: PathBuf,
    connections: usize,
}

impl Wrk {
    /// Writes its script to `folder`.
    pub fn new(folder: &Path, connections: usize) -> anyhow::Result<Self> {
        let script = folder.join("requests.lua");
        fs::write(&script, SCRIPT)?;
        Ok(Self { script, connections })
    }

    /// Asks a proxy for so long, in whole seconds, with the tokens of a file.
    pub async fn run(
        &self,
        addr: SocketAddr,
        tokens: &Path,
        time: Duration,
    ) -> anyhow::Result<Figures> {
        let output = Command::new("wrk")
            .args(["--threads", "1", "--connections", &self.connections.to_string()])
            .args(["--duration", &format!("{}s", time.as_secs().max(1))])
            .arg("--script")
            .arg(&self.script)
            .arg(format!("http://{addr}/"))
            .env("BENCH_TOKENS", tokens)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("wrk does not run")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let figures = text.lines().find_map(|line| line.strip_prefix("figures "));
        let figures: Vec<u64> = figures
            .with_context(|| format!("wrk has no figures: {text}"))?
            .split(' ')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let [requests, took_us, p50, p99, failed] = figures[..] else {
            anyhow::bail!("wrk has other figures than expected: {text}");
        };
        ensure!(failed == 0, "{addr}: {failed} of {requests} requests failed");
        Ok(Figures {
            requests,
            per_second: requests as f64 * 1e6 / took_us as f64,
            p50_us: p50 as f64,
            p99_us: p99 as f64,
        })
    }
}
