//! The load of `deploy/bench/search.sh`: asks core itself for the paths of a file, one a line, in their
//! order, as the gateway, by mTLS, over kept-alive connections.
//!
//! Core answers nobody else, and common programs for load, such as wrk, have no client's certificate. This
//! one does TLS on the processors that core has too: its requests per second are not to be compared with
//! those of a program over plain HTTP. Core's processor time for a request is taken apart from it.
//!
//! Prints a line of JSON: requests per second, mean and percentiles in milliseconds, failures, and how many
//! of the requests asked for a path for the first time.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use tokio::task::JoinSet;
use tourin_bench::load::{Connection, Target, get};
use tourin_bench::quantile;
use tourin_chassis::config::MeshAccess;
use tourin_chassis::peer::GATEWAY;
use tourin_registry_api::Joining;

/// Searches as the gateway does.
#[derive(Debug, Parser)]
struct Settings {
    /// Core's address
    #[arg(long, value_name = "ADDR")]
    core: SocketAddr,
    /// File with paths, one a line
    #[arg(long, value_name = "FILE")]
    paths: PathBuf,
    /// Connections that ask at once
    #[arg(long, value_name = "N", default_value_t = 100)]
    connections: usize,
    /// Seconds
    #[arg(long, value_name = "S", default_value_t = 20)]
    duration_s: u64,
    /// The mesh, and the token of a gateway
    #[command(flatten)]
    mesh: MeshAccess,
}

/// What one connection has seen.
#[derive(Default)]
struct Seen {
    took: Vec<Duration>,
    failed: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let joining = Joining::new(settings.mesh.registry(), (GATEWAY, "search-load"));
    let workload = joining.join(None).await?.workload;
    let tls = Some(Arc::new(workload.client_config("core")?));
    let target = Target { addr: settings.core, tls };
    let paths = std::fs::read_to_string(&settings.paths)?;
    let requests: Arc<[Vec<u8>]> = paths.lines().map(|path| get(path, "")).collect();
    anyhow::ensure!(!requests.is_empty(), "{} has no paths", settings.paths.display());

    // Handshakes are none of the searches.
    let mut connections = Vec::new();
    for _ in 0..settings.connections {
        connections.push(Connection::open(&target).await?);
    }
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let until = began + Duration::from_secs(settings.duration_s);
    let mut asking = JoinSet::new();
    for connection in connections {
        let (requests, next) = (Arc::clone(&requests), Arc::clone(&next));
        asking.spawn(ask((target.clone(), connection), requests, next, until));
    }
    let mut all = Seen::default();
    while let Some(seen) = asking.join_next().await {
        let seen = seen??;
        all.took.extend(seen.took);
        all.failed += seen.failed;
    }
    let seconds = began.elapsed().as_secs_f64();
    report(&mut all, seconds, requests.len())
}

async fn ask(
    (target, mut connection): (Target, Connection),
    requests: Arc<[Vec<u8>]>,
    next: Arc<AtomicUsize>,
    until: Instant,
) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    loop {
        let asked = Instant::now();
        if asked >= until {
            return Ok(seen);
        }
        let request = &requests[next.fetch_add(1, Ordering::Relaxed) % requests.len()];
        if connection.ask(request).await.is_ok() {
            seen.took.push(asked.elapsed());
        } else {
            seen.failed += 1;
            connection = Connection::open(&target).await?;
        }
    }
}

fn report(seen: &mut Seen, seconds: f64, paths: usize) -> anyhow::Result<()> {
    let answered = seen.took.len();
    let in_ms = |time: Duration| (time.as_secs_f64() * 1e5).round() / 1e2;
    let mean = seen.took.iter().sum::<Duration>() / u32::try_from(answered.max(1))?;
    let mut below = |part: f64| in_ms(quantile(&mut seen.took, part).unwrap_or_default());
    let requests = answered + seen.failed;
    let figures = json!({
        "requests_per_s": (answered as f64 / seconds).round() as u64,
        "mean_ms": in_ms(mean),
        "p50_ms": below(0.5),
        "p95_ms": below(0.95),
        "p99_ms": below(0.99),
        "max_ms": below(1.0),
        "failed": seen.failed,
        "requests": requests,
        "first": requests.min(paths),
    });
    writeln!(std::io::stdout(), "{figures}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn its_arguments_do_not_clash() {
        Settings::command().debug_assert();
    }
}
