//! The gateway with everything on, beside what people run today, in one run: nginx, HAProxy that verifies
//! tokens, Envoy that verifies and remembers them, and a Pingora proxy with nothing on. Run it by
//! `deploy/bench.sh gateway`.
//!
//! All have one worker and the same two nginx upstreams, which answer a page of 1 KiB, and get the same
//! requests from `wrk`, one after the other, in another order each round. The figure that counts is the
//! processor time of the proxy's process for each request, and of it the ratios within a round: what else
//! the machine does makes all of a round dearer.

#[path = "gateway_peers/compare.rs"]
mod compare;
#[path = "gateway_peers/flatness.rs"]
mod flatness;
#[path = "gateway_peers/load.rs"]
mod load;
#[path = "gateway_peers/proxies.rs"]
mod proxies;
#[path = "gateway_peers/surroundings.rs"]
mod surroundings;
#[path = "gateway_peers/tokens.rs"]
mod tokens;

use std::path::PathBuf;

use clap::{Args, Parser};

/// Measures the gateway beside other proxies.
#[derive(Debug, Parser)]
enum Command {
    /// Processor time, requests per second, latency and memory, beside the peers'
    Compare(compare::Settings),
    /// Instructions of the gateway for each request, with few and many instances and routes
    Flatness(flatness::Settings),
}

/// The programs to run.
#[derive(Debug, Args)]
struct Programs {
    /// The `bench-gateway` program
    #[arg(long, value_name = "FILE")]
    gateway: PathBuf,
    /// The `bare-pingora` program with cargo's own release settings and the system's allocator
    #[arg(long, value_name = "FILE")]
    bare_pingora: PathBuf,
    /// The same as the gateway is built, for the least that a Pingora proxy costs; left out when absent
    #[arg(long, value_name = "FILE")]
    best_pingora: Option<PathBuf>,
    /// Envoy; left out when absent
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Compare(settings) => compare::run(&settings).await,
        Command::Flatness(settings) => flatness::run(&settings).await,
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
