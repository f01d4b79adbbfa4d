//! How soon a session that ends at one gateway is refused by all others, under load. Run it by
//! `deploy/bench.sh revocation`.
//!
//! Core and the gateways are processes of their own; accounts are on MySQL and sessions on Redis, whose
//! stream the gateways read. The time is taken from the 204 that the member gets until another gateway's
//! first refusal has been received, so it has one round trip of a request in it. All times are of this
//! process's clock.

#[path = "revocation_lag/ends.rs"]
mod ends;
#[path = "revocation_lag/mesh.rs"]
mod mesh;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tourin_bench::quantile;

use crate::ends::{Kind, Member};
use crate::mesh::Mesh;

/// The most that 99 of 100 ends may take.
const BOUND: Duration = Duration::from_millis(10);

/// Measures how soon an ended session is refused everywhere.
#[derive(Debug, Parser)]
struct Settings {
    /// The `core` program; it takes its servers from the environment
    #[arg(long, value_name = "FILE")]
    core: PathBuf,
    /// The `gateway` program
    #[arg(long, value_name = "FILE")]
    gateway: PathBuf,
    /// Gateways
    #[arg(long, value_name = "N", default_value_t = 10)]
    gateways: usize,
    /// Sessions that are ended in each of the four ways
    #[arg(long, value_name = "N", default_value_t = 100)]
    ends: usize,
    /// Requests per second meanwhile, over all gateways
    #[arg(long, value_name = "PER_SECOND", default_value_t = 300)]
    rate: u32,
    /// Milliseconds between two canary sessions of each gateway
    #[arg(long, value_name = "MS", default_value_t = 500)]
    canary_ms: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    anyhow::ensure!(settings.gateways >= 2, "--gateways {}: at least 2", settings.gateways);
    let mesh = Arc::new(Mesh::start(&settings).await?);
    let failures = Arc::new(AtomicU64::new(0));
    let load = tokio::spawn(load(Arc::clone(&mesh), settings.rate, Arc::clone(&failures)));
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} gateways, {} ends of each kind, {} requests/s meanwhile; from the 204 to the first refusal at each other gateway",
        settings.gateways, settings.ends, settings.rate
    )?;
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let mut lags = Vec::new();
        for number in 0..settings.ends {
            lags.extend(ends::measure(&mesh, kind, number).await?);
        }
        writeln!(out, "{:<22} {}", kind.name(), percentiles(&mut lags))?;
        all.extend(lags);
    }
    load.abort();
    let canaries = mesh.canaries().await?;
    writeln!(out, "{:<22} {canaries}", "canary sessions")?;
    let failed = failures.load(Ordering::Relaxed);
    let p99 = quantile(&mut all, 0.99).unwrap_or_default();
    writeln!(out, "{:<22} {}, {failed} requests of the load failed", "all", percentiles(&mut all))?;
    writeln!(
        out,
        "an end to its refusal by another gateway, p99: {:.1} ms (at most {} ms)",
        p99.as_secs_f64() * 1e3,
        BOUND.as_millis()
    )?;
    anyhow::ensure!(p99 <= BOUND, "the bound is missed");
    Ok(())
}

/// Reads a member's own account through the gateways in turn, at this rate.
async fn load(mesh: Arc<Mesh>, rate: u32, failures: Arc<AtomicU64>) -> anyhow::Result<()> {
    let member = Member::sign_up(&mesh, 0).await?;
    let token = member.log_in(&mesh, 0).await?;
    let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut requests = JoinSet::new();
    for number in 0.. {
        ticks.tick().await;
        while requests.try_join_next().is_some() {}
        let (mesh, token, failures) = (Arc::clone(&mesh), token.clone(), Arc::clone(&failures));
        requests.spawn(async move {
            if !matches!(mesh.is_let_in(number, &token).await, Ok(true)) {
                failures.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    Ok(())
}

fn percentiles(lags: &mut [Duration]) -> String {
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0]
        .map(|part| quantile(lags, part).unwrap_or_default().as_secs_f64() * 1e3);
    format!("p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms of {}", lags.len())
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
