//! Instructions for each request under callgrind, which counts the same whatever else the machine does.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Args;
use tourin_bench::load::{Connection, Target, get};

use crate::proxies::{GatewaySetup, Proxy};
use crate::surroundings::Surroundings;

#[derive(Debug, Args)]
pub struct Settings {
    /// The `bench-gateway` program
    #[arg(long, value_name = "FILE")]
    gateway: PathBuf,
    /// Requests that are counted
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    requests: usize,
    /// Only the case with few instances and routes
    #[arg(long)]
    base_only: bool,
    /// By mTLS to the service, for the only case
    #[arg(long, requires = "base_only")]
    mtls: bool,
    /// Where callgrind's files are left [default: nowhere]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

struct Case {
    name: &'static str,
    instances: usize,
    other_routes: usize,
}

const CASES: [Case; 3] = [
    Case { name: "10 instances, 10 routes", instances: 10, other_routes: 9 },
    Case { name: "1,000 instances, 10 routes", instances: 1_000, other_routes: 9 },
    Case { name: "10 instances, 5,000 routes", instances: 10, other_routes: 4_999 },
];
/// Connections that ask in turn.
const CONNECTIONS: usize = 8;

/// Counts and prints.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let mut base = None;
    for case in &CASES[..if settings.base_only { 1 } else { CASES.len() }] {
        let each = count(settings, case).await.with_context(|| case.name)?;
        let base = *base.get_or_insert(each);
        writeln!(
            std::io::stdout(),
            "{:<28} {each:>9.0} instructions for each request, {:.3} of the first",
            case.name,
            each / base
        )?;
    }
    Ok(())
}

async fn count(settings: &Settings, case: &Case) -> anyhow::Result<f64> {
    let around = Surroundings::start(case.instances).await?;
    let tokens = around.issuer.tokens(CONNECTIONS)?;
    let folder = settings.keep.as_deref().unwrap_or_else(|| around.folder());
    fs::create_dir_all(folder)?;
    let out = folder.join(format!("callgrind-{}-{}", case.instances, case.other_routes));
    let mut program = Command::new("valgrind");
    program
        .args(["--tool=callgrind", "--instr-atstart=no", "--dump-instr=no"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(&settings.gateway);
    let log = around.folder().join("gateway.log");
    let setup = GatewaySetup {
        program,
        is_plain: !settings.mtls,
        other_routes: case.other_routes,
        log: &log,
    };
    let gateway = Proxy::gateway(setup, &around, &tokens[0]).await?;
    let requests: Vec<_> = tokens
        .iter()
        .map(|token| {
            let lines = format!("Authorization: Bearer {token}\r\n");
            get("/api/tour-spots?query=palace", &lines)
        })
        .collect();
    let target = Target { addr: gateway.addr, tls: None };
    let mut connections = Vec::new();
    for request in &requests {
        connections.push((Connection::open(&target).await?, Arc::<[u8]>::from(&**request)));
    }
    // Each instance gets its connection before it is counted.
    ask(&mut connections, 2 * case.instances + 200).await?;
    control("on", gateway.process.id())?;
    ask(&mut connections, settings.requests).await?;
    control("off", gateway.process.id())?;
    let dumped = Command::new("callgrind_control")
        .args(["--dump", &gateway.process.id().to_string()])
        .output()?;
    ensure!(dumped.status.success(), "callgrind_control cannot dump");
    drop(gateway);
    total(&out).map(|total| total as f64 / settings.requests as f64)
}

async fn ask(connections: &mut [(Connection, Arc<[u8]>)], count: usize) -> anyhow::Result<()> {
    for turn in 0..count {
        let at = turn % connections.len();
        let (connection, request) = &mut connections[at];
        connection.ask(request).await?;
    }
    Ok(())
}

fn control(instrumentation: &str, pid: u32) -> anyhow::Result<()> {
    let done = Command::new("callgrind_control")
        .args(["--instr", instrumentation, &pid.to_string()])
        .output()
        .context("callgrind_control does not run")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// The instructions in the first dump, which callgrind numbers.
fn total(out: &std::path::Path) -> anyhow::Result<u64> {
    let first = PathBuf::from(format!("{}.1", out.display()));
    let text = fs::read_to_string(&first).with_context(|| format!("no {}", first.display()))?;
    let line = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    Ok(line.context("callgrind's file has no total")?.trim().parse()?)
}
