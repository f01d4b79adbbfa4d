//! What tracing costs the gateway: processor time for each request and requests per second, with
//! tracing off, at 1 %, 10 % and 100 %, with a collector that takes the spans and with one that does
//! not answer. Run it by `deploy/bench.sh tracing`.
//!
//! Each case is a gateway process of its own, all in one mesh. They are loaded one after the other,
//! in another order each round. Where a process lies in memory makes it faster or slower by a few
//! percent for as long as it lives, so that each set of rounds has processes of its own. What else
//! the machine does only ever makes a round dearer: of a set's rounds the quieter quarter counts (the
//! first quartile). The figure is the ratio to the mean of both `off` of the same set, and how far
//! those two are apart says how much of a ratio is the machine's. With a dead collector the queue is
//! full for most of a set at 100 %; at 10 % it is filling, and its spans are memory that stays.

#[path = "tracing_cost/gateway.rs"]
mod gateway;
#[path = "tracing_cost/load.rs"]
mod load;
#[path = "tracing_cost/mesh.rs"]
mod mesh;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use rand::seq::SliceRandom;

use crate::gateway::{Case, Exporter, GatewayProcess, SpanCounts};
use crate::mesh::Mesh;

/// The most that 10 % of the traces may cost, as a part of the gateway's processor time.
const BOUND: f64 = 0.05;

/// Measures what tracing costs the gateway.
#[derive(Debug, Parser)]
struct Settings {
    /// The `gateway` program
    #[arg(long, value_name = "FILE")]
    gateway: PathBuf,
    /// Sets of rounds, each with new processes
    #[arg(long, value_name = "N", default_value_t = 24)]
    sets: usize,
    /// Rounds in a set
    #[arg(long, value_name = "N", default_value_t = 16)]
    rounds: usize,
    /// Milliseconds of load on each gateway in a round
    #[arg(long, value_name = "MS", default_value_t = 60)]
    load_ms: u64,
    /// Connections that ask at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    connections: usize,
    /// What the gateways log; a line for each request (info) is not part of tracing
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    gateway_log: String,
}

/// One case's figures of every set, and of the rounds of one.
#[derive(Debug, Default)]
struct Figures {
    cpu_us: Vec<f64>,
    /// Of which by the thread that exports.
    export_us: Vec<f64>,
    per_second: Vec<f64>,
}

impl Figures {
    /// Takes in a set by its quieter rounds.
    fn add(&mut self, set: &mut Self) {
        self.cpu_us.push(quantile(&mut set.cpu_us, 0.25));
        self.export_us.push(quantile(&mut set.export_us, 0.5));
        self.per_second.push(quantile(&mut set.per_second, 0.75));
    }
}

const CASES: [Case; 9] = [
    case("off", 0.0, Exporter::None),
    case("off, again", 0.0, Exporter::None),
    case("1 %", 0.01, Exporter::Up),
    case("10 %", 0.1, Exporter::Up),
    case("100 %", 1.0, Exporter::Up),
    case("1 %, dead", 0.01, Exporter::Dead),
    case("10 %, dead", 0.1, Exporter::Dead),
    case("100 %, dead", 1.0, Exporter::Dead),
    // What it is without the spans of unsampled requests, which wait for a failure or slowness.
    Case { keeps_back: false, ..case("10 %, none kept back", 0.1, Exporter::Up) },
];
const OFF: [usize; 2] = [0, 1];
const TEN_PERCENT: [usize; 2] = [3, 6];

const fn case(name: &'static str, ratio: f64, exporter: Exporter) -> Case {
    Case { name, ratio, exporter, keeps_back: true }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let mesh = Mesh::start().await?;
    let mut figures: Vec<Figures> = CASES.iter().map(|_| Figures::default()).collect();
    let mut counts = vec![SpanCounts::default(); CASES.len()];
    for _ in 0..settings.sets {
        measure(&settings, &mesh, &mut figures, &mut counts).await?;
    }
    report(&settings, &figures, &counts)?;
    let worst = TEN_PERCENT
        .iter()
        .map(|case| median(&mut ratios(&figures[*case].cpu_us, &off(&figures, |of| &of.cpu_us))))
        .fold(0.0, f64::max);
    anyhow::ensure!(
        worst <= 1.0 + BOUND,
        "10 % of the traces cost {:.1} % of the gateway's processor time; the bound is {:.0} %",
        (worst - 1.0) * 100.0,
        BOUND * 100.0
    );
    Ok(())
}

/// One set of rounds.
async fn measure(
    settings: &Settings,
    mesh: &Mesh,
    figures: &mut [Figures],
    counts: &mut [SpanCounts],
) -> anyhow::Result<()> {
    let mut gateways = Vec::new();
    for case in CASES {
        gateways.push(
            GatewayProcess::start(&settings.gateway, case, mesh, &settings.gateway_log).await?,
        );
    }
    let load = Duration::from_millis(settings.load_ms);
    // Connections, caches and the branch predictor are warm when it counts.
    for gateway in &gateways {
        load::run(gateway.addr, settings.connections, Duration::from_millis(500)).await?;
    }
    let mut set: Vec<Figures> = CASES.iter().map(|_| Figures::default()).collect();
    for _ in 0..settings.rounds {
        let mut order: Vec<usize> = (0..CASES.len()).collect();
        order.shuffle(&mut rand::rng());
        for index in order {
            let gateway = &gateways[index];
            let before = gateway.processor_time()?;
            let answered = load::run(gateway.addr, settings.connections, load).await?;
            let after = gateway.processor_time()?;
            let per_request = |from: Duration, to: Duration| {
                to.saturating_sub(from).as_secs_f64() * 1e6 / answered as f64
            };
            let figures = &mut set[index];
            figures.cpu_us.push(per_request(before.all, after.all));
            figures.export_us.push(per_request(before.export, after.export));
            figures.per_second.push(answered as f64 / load.as_secs_f64());
        }
    }
    for (figures, set) in figures.iter_mut().zip(&mut set) {
        figures.add(set);
    }
    for (gateway, counts) in gateways.iter().zip(counts) {
        let of_process = gateway.span_counts().await?;
        counts.exported += of_process.exported;
        counts.dropped += of_process.dropped;
    }
    Ok(())
}

/// What it is without tracing, by set.
fn off(figures: &[Figures], of: impl Fn(&Figures) -> &Vec<f64>) -> Vec<f64> {
    let [one, other] = OFF.map(|case| of(&figures[case]));
    one.iter().zip(other).map(|(one, other)| f64::midpoint(*one, *other)).collect()
}

fn ratios(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of / to).collect()
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    // A rank: never negative, never above the last.
    values[((values.len() - 1) as f64 * part).round() as usize]
}

fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

fn report(settings: &Settings, figures: &[Figures], counts: &[SpanCounts]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} sets of {} rounds of {} ms, {} connections, one gateway thread; medians of sets of which the quieter quarter counts, ratios to the mean of both off of the same set [10th to 90th percentile]",
        settings.sets, settings.rounds, settings.load_ms, settings.connections
    )?;
    writeln!(
        out,
        "{:<20} {:>8} {:>9} {:>22} {:>9} {:>22} {:>9} {:>9}",
        "case", "CPU us", "export us", "CPU ratio", "req/s", "req/s ratio", "exported", "dropped"
    )?;
    for ((case, figures_of), counts) in CASES.iter().zip(figures).zip(counts) {
        let spread = |of: &[f64], to: &[f64]| {
            let mut ratios = ratios(of, to);
            let middle = median(&mut ratios);
            let (low, high) = (quantile(&mut ratios, 0.1), quantile(&mut ratios, 0.9));
            format!("{middle:.3} [{low:.3} to {high:.3}]")
        };
        writeln!(
            out,
            "{:<20} {:>8.1} {:>9.1} {:>22} {:>9.0} {:>22} {:>9} {:>9}",
            case.name,
            median(&mut figures_of.cpu_us.clone()),
            median(&mut figures_of.export_us.clone()),
            spread(&figures_of.cpu_us, &off(figures, |of| &of.cpu_us)),
            median(&mut figures_of.per_second.clone()),
            spread(&figures_of.per_second, &off(figures, |of| &of.per_second)),
            counts.exported,
            counts.dropped,
        )?;
    }
    Ok(())
}
