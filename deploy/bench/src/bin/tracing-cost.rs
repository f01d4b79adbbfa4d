//! What tracing costs the gateway and core: processor time for each request and requests per second,
//! with tracing off and at several ratios, with a collector that takes the spans and with one that
//! does not answer. Run it by `deploy/bench.sh tracing`.
//!
//! Each case is a process of its own, all in one mesh. They are loaded one after the other,
//! in another order each round. Where a process lies in memory makes it faster or slower by a few
//! percent for as long as it lives, so that each set of rounds has processes of its own. What else
//! the machine does only ever makes a round dearer: of a set's rounds the quieter quarter counts (the
//! first quartile). The figure is the ratio to the mean of both `off` of the same set, and how far
//! those two are apart says how much of a ratio is the machine's. With a dead collector the queue is
//! full for most of a set at 100 %; at 10 % it is filling, and its spans are memory that stays.

#[path = "tracing_cost/mesh.rs"]
mod mesh;
#[path = "tracing_cost/server.rs"]
mod server;
#[path = "tracing_cost/subject.rs"]
mod subject;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use rand::seq::SliceRandom;
use tourin_bench::load::Load;
use tourin_bench::quantile_of as quantile;

use crate::mesh::Surroundings;
use crate::server::SpanCounts;
use crate::subject::{Subject, subjects};

/// Measures what tracing costs the gateway and core.
#[derive(Parser)]
struct Settings {
    /// The `gateway` program; not measured when absent
    #[arg(long, value_name = "FILE")]
    gateway: Option<PathBuf>,
    /// The `core` program; not measured when absent
    #[arg(long, value_name = "FILE")]
    core: Option<PathBuf>,
    /// RabbitMQ, for core's events
    #[arg(long, env = "TOURIN_AMQP_URL", value_name = "URL", hide_env_values = true)]
    amqp_url: String,
    /// Sets of rounds, each with new processes
    #[arg(long, value_name = "N", default_value_t = 24)]
    sets: usize,
    /// Rounds in a set
    #[arg(long, value_name = "N", default_value_t = 16)]
    rounds: usize,
    /// Milliseconds of load on each process in a round
    #[arg(long, value_name = "MS", default_value_t = 60)]
    load_ms: u64,
    /// Connections that ask at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    connections: usize,
    /// What the programs log; a line for each request (info) is not part of tracing
    #[arg(long, value_name = "FILTER", default_value = "error")]
    programs_log: String,
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
    /// Adds a set, by its quieter rounds.
    fn add(&mut self, set: &mut Self) {
        self.cpu_us.push(quantile(&mut set.cpu_us, 0.25));
        self.export_us.push(quantile(&mut set.export_us, 0.5));
        self.per_second.push(quantile(&mut set.per_second, 0.75));
    }
}

/// The cases without tracing.
const OFF: [usize; 2] = [0, 1];

/// The figures of one subject, by case, and the counts of spans.
struct Measured {
    figures: Vec<Figures>,
    counts: Vec<SpanCounts>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let around = Surroundings::start(&settings.amqp_url).await?;
    let mut above = Vec::new();
    for subject in subjects(settings.gateway.as_deref(), settings.core.as_deref()) {
        let mut measured = Measured {
            figures: subject.cases.iter().map(|_| Figures::default()).collect(),
            counts: vec![SpanCounts::default(); subject.cases.len()],
        };
        for _ in 0..settings.sets {
            measure(&settings, &around, &subject, &mut measured).await?;
        }
        report(&settings, &subject, &measured)?;
        let off = off(&measured.figures, |of| &of.cpu_us);
        for (case, figures) in subject.cases.iter().zip(&measured.figures) {
            let cost = median(&mut ratios(&figures.cpu_us, &off)) - 1.0;
            if case.is_bounded() && cost > subject.bound {
                above.push(format!(
                    "{}, {}: {:.1} % of its processor time; the bound is {:.0} %",
                    subject.name,
                    case.name,
                    cost * 100.0,
                    subject.bound * 100.0
                ));
            }
        }
    }
    anyhow::ensure!(above.is_empty(), "tracing costs too much: {}", above.join("; "));
    Ok(())
}

/// One set of rounds.
async fn measure(
    settings: &Settings,
    around: &Surroundings,
    subject: &Subject,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    let mut servers = Vec::new();
    for case in subject.cases {
        servers.push(subject.start(*case, around, &settings.programs_log).await?);
    }
    let load = Duration::from_millis(settings.load_ms);
    // A warm-up of connections, caches and the branch predictor.
    for server in &servers {
        let requests = subject.requests(server, &around.mesh, settings.connections).await?;
        Load::open(&server.target, &requests).await?.run(Duration::from_millis(500)).await?;
    }
    tokio::time::sleep(subject.settling).await;
    let mut set: Vec<Figures> = servers.iter().map(|_| Figures::default()).collect();
    for _ in 0..settings.rounds {
        let mut order: Vec<usize> = (0..servers.len()).collect();
        order.shuffle(&mut rand::rng());
        for index in order {
            let server = &servers[index];
            let requests = subject.requests(server, &around.mesh, settings.connections).await?;
            let mut connections = Load::open(&server.target, &requests).await?;
            let before = server.processor_time()?;
            let answered = connections.run(load).await?;
            let after = server.processor_time()?;
            let per_request = |from: Duration, to: Duration| {
                to.saturating_sub(from).as_secs_f64() * 1e6 / answered as f64
            };
            let figures = &mut set[index];
            figures.cpu_us.push(per_request(before.all, after.all));
            figures.export_us.push(per_request(before.export, after.export));
            figures.per_second.push(answered as f64 / load.as_secs_f64());
        }
    }
    for (figures, set) in measured.figures.iter_mut().zip(&mut set) {
        figures.add(set);
    }
    for (server, counts) in servers.iter().zip(&mut measured.counts) {
        let of_process = server.span_counts().await?;
        counts.exported += of_process.exported;
        counts.dropped += of_process.dropped;
    }
    Ok(())
}

/// The mean without tracing, by set.
fn off(figures: &[Figures], of: impl Fn(&Figures) -> &Vec<f64>) -> Vec<f64> {
    let [one, other] = OFF.map(|case| of(&figures[case]));
    one.iter().zip(other).map(|(one, other)| f64::midpoint(*one, *other)).collect()
}

fn ratios(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of / to).collect()
}

fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

fn report(settings: &Settings, subject: &Subject, measured: &Measured) -> anyhow::Result<()> {
    let Measured { figures, counts } = measured;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}: {} sets of {} rounds of {} ms, {} connections, one thread for requests; medians of sets of which the quieter quarter counts, ratios to the mean of both off of the same set [10th to 90th percentile]",
        subject.name, settings.sets, settings.rounds, settings.load_ms, settings.connections
    )?;
    writeln!(
        out,
        "{:<20} {:>8} {:>9} {:>22} {:>9} {:>22} {:>9} {:>9}",
        "case", "CPU us", "export us", "CPU ratio", "req/s", "req/s ratio", "exported", "dropped"
    )?;
    for ((case, figures_of), counts) in subject.cases.iter().zip(figures).zip(counts) {
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
