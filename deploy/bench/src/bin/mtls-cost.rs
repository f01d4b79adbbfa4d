//! What mTLS between the gateway and its services costs. Run it by `deploy/bench.sh mtls`.
//!
//! - Processor time of the gateway for each request over kept-alive connections, with mTLS and without. Each
//!   case is a gateway in a process of its own, in front of the same service. No setting of a gateway
//!   switches mTLS off, so the processes are this program, which builds the same gateway with or without it.
//!   How sets and rounds are taken, `tracing-cost` says.
//! - Handshakes per second, both ends on one core.
//! - What it takes to sign and verify the identity of a caller, beside the former way: a shared secret.

#[path = "mtls_cost/gateway.rs"]
mod gateway;
#[path = "mtls_cost/handshakes.rs"]
mod handshakes;
#[path = "mtls_cost/identities.rs"]
mod identities;

use std::process::ExitCode;

use clap::{Args, Parser};
use tourin_bench::mesh::Mesh;

/// As in the gateway's own program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures what mTLS costs.
#[derive(Debug, Parser)]
enum Command {
    /// Prints the figures
    Measure(Settings),
    /// Runs a gateway, which `measure` does
    #[command(hide = true)]
    Gateway(Box<gateway::ProcessSettings>),
}

#[derive(Debug, Args)]
struct Settings {
    /// Sets of rounds, each with new processes
    #[arg(long, value_name = "N", default_value_t = 8)]
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
    /// Handshakes
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    handshakes: u32,
    /// Identities that are signed and verified
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    identities: u32,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Gateway(settings) => Ok(gateway::run(*settings).await),
        Command::Measure(settings) => {
            let mesh = Mesh::start().await?;
            gateway::measure(&settings, &mesh).await?;
            let (client, server) = (mesh.as_gateway("core")?, mesh.workload("core", "bench")?);
            let count = settings.handshakes;
            // Nothing else is on the thread, whose processor time is taken.
            tokio::task::spawn_blocking(move || handshakes::measure(client, &server, count))
                .await??;
            let gateway = mesh.gateway().clone();
            let count = settings.identities;
            tokio::task::spawn_blocking(move || identities::measure(&gateway, count)).await??;
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn its_arguments_do_not_clash() {
        Command::command().debug_assert();
    }
}
