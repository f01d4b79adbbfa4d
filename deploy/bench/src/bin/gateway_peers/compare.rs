//! The comparison, in rounds.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use rand::seq::SliceRandom;
use tourin_bench::quantile_of;

use crate::Programs;
use crate::load::Wrk;
use crate::proxies::{Kind, Proxy};
use crate::surroundings::Surroundings;

const WARM_UP: Duration = Duration::from_secs(1);
const MIB: f64 = 1_048_576.0;
/// How many different tokens requests have.
const TOKENS: [usize; 2] = [1, 10_000];

#[derive(Debug, Args)]
pub struct Settings {
    #[command(flatten)]
    programs: Programs,
    /// Rounds, in each of which each proxy is loaded once for each number of tokens
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
    /// Seconds of load on a proxy in a round
    #[arg(long, value_name = "S", default_value_t = 2)]
    load_s: u64,
    /// Connections that ask at once
    #[arg(long, value_name = "N", default_value_t = 32)]
    connections: usize,
    /// Requests with 10,000 tokens after which the gateway's memory is read
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    memory_requests: u64,
}

/// One proxy's figures of every round, with one number of tokens.
#[derive(Debug, Default)]
struct Rounds {
    per_second: Vec<f64>,
    cpu_us: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    resident: Vec<f64>,
}

/// Measures and prints.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let around = Surroundings::start(2).await?;
    let wrk = Wrk::new(around.folder(), settings.connections)?;
    let [one, many] = TOKENS.map(|count| around.tokens(count));
    let tokens = [one?, many?];
    let first = fs::read_to_string(&tokens[0])?;
    let mut proxies = Vec::new();
    for kind in Kind::ALL {
        let started = Proxy::start(kind, &settings.programs, &around, first.trim()).await;
        if let Some(proxy) = started.with_context(|| kind.name())? {
            wrk.run(proxy.addr, &tokens[0], WARM_UP).await?;
            proxies.push(proxy);
        }
    }
    let mut figures: [Vec<Rounds>; 2] =
        TOKENS.map(|_| proxies.iter().map(|_| Rounds::default()).collect());
    let mut order: Vec<usize> = (0..proxies.len()).collect();
    for _ in 0..settings.rounds {
        for (tokens, figures) in tokens.iter().zip(&mut figures) {
            order.shuffle(&mut rand::rng());
            for index in order.iter().copied() {
                let time = Duration::from_secs(settings.load_s);
                measure(&proxies[index], &wrk, tokens, time, &mut figures[index]).await?;
            }
        }
    }
    let kinds: Vec<Kind> = proxies.iter().map(|proxy| proxy.kind).collect();
    report(settings, &kinds, &figures)?;
    let gateway = proxies.iter().find(|proxy| proxy.kind == Kind::Everything);
    if let Some(gateway) = gateway.filter(|_| settings.memory_requests > 0) {
        memory(settings.memory_requests, gateway, &wrk, &tokens[1]).await?;
    }
    ratios(&kinds, &figures)
}

async fn measure(
    proxy: &Proxy,
    wrk: &Wrk,
    tokens: &Path,
    time: Duration,
    rounds: &mut Rounds,
) -> anyhow::Result<()> {
    let before = proxy.process.processor_time()?;
    let figures = wrk.run(proxy.addr, tokens, time).await.with_context(|| proxy.kind.name())?;
    let used = proxy.process.processor_time()?.saturating_sub(before);
    rounds.per_second.push(figures.per_second);
    rounds.cpu_us.push(used.as_secs_f64() * 1e6 / figures.requests as f64);
    rounds.p50_us.push(figures.p50_us);
    rounds.p99_us.push(figures.p99_us);
    rounds.resident.push(proxy.process.resident()? as f64 / MIB);
    Ok(())
}

fn report(settings: &Settings, kinds: &[Kind], figures: &[Vec<Rounds>; 2]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let Settings { rounds, load_s, connections, .. } = settings;
    writeln!(
        out,
        "a page of 1 KiB by one worker: {rounds} rounds of {load_s} s, {connections} connections; medians"
    )?;
    writeln!(
        out,
        "{:<28} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "proxy", "tokens", "req/s", "CPU us", "p50 us", "p99 us", "MiB"
    )?;
    for (count, figures) in TOKENS.iter().zip(figures) {
        for (kind, rounds) in kinds.iter().zip(figures) {
            let median = |values: &[f64]| quantile_of(&mut values.to_vec(), 0.5);
            writeln!(
                out,
                "{:<28} {count:>6} {:>8.0} {:>8.1} {:>8.0} {:>8.0} {:>8.1}",
                kind.name(),
                median(&rounds.per_second),
                median(&rounds.cpu_us),
                median(&rounds.p50_us),
                median(&rounds.p99_us),
                median(&rounds.resident),
            )?;
        }
    }
    Ok(())
}

/// What the gateway holds after many requests.
async fn memory(count: u64, gateway: &Proxy, wrk: &Wrk, tokens: &Path) -> anyhow::Result<()> {
    let mut asked = 0;
    while asked < count {
        asked += wrk.run(gateway.addr, tokens, Duration::from_secs(5)).await?.requests;
    }
    writeln!(
        std::io::stdout(),
        "resident after {asked} more requests with {} tokens: {:.1} MiB",
        TOKENS[1],
        gateway.process.resident()? as f64 / MIB
    )?;
    Ok(())
}

/// Medians of the ratios within each round.
fn ratios(kinds: &[Kind], figures: &[Vec<Rounds>; 2]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for (count, figures) in TOKENS.iter().zip(figures).rev() {
        let of = |kind| kinds.iter().position(|known| *known == kind).map(|at| &figures[at]);
        let ratio = |kind, other, value: fn(&Rounds) -> &Vec<f64>| {
            let (one, other) = (value(of(kind)?), value(of(other)?));
            let mut ratios: Vec<_> =
                one.iter().zip(other).map(|(one, other)| one / other).collect();
            Some(quantile_of(&mut ratios, 0.5))
        };
        let written = |ratio: Option<f64>| ratio.map_or("none".to_owned(), |r| format!("{r:.2}"));
        let cpu = |kind, other| written(ratio(kind, other, |rounds| &rounds.cpu_us));
        writeln!(
            out,
            "{count} tokens: everything-on/LTO-pingora={} mTLS/everything-on={} p50 everything-on/bare-pingora={}",
            cpu(Kind::Everything, Kind::BestPingora),
            cpu(Kind::EverythingMtls, Kind::Everything),
            written(ratio(Kind::Everything, Kind::BarePingora, |rounds| &rounds.p50_us)),
        )?;
        writeln!(
            out,
            "{count} tokens: everything-on/bare-pingora={} everything-on/envoy-jwt-cache={} everything-on/haproxy-jwt={}",
            cpu(Kind::Everything, Kind::BarePingora),
            cpu(Kind::Everything, Kind::EnvoyJwtCache),
            cpu(Kind::Everything, Kind::HaproxyJwt),
        )?;
    }
    Ok(())
}
