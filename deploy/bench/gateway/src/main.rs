//! The gateway's program as benchmarks run it. No setting of the real one switches mTLS off, and the peers
//! that it is compared with have no certificates of a mesh. It is a crate of its own, so that the profile
//! `dist` compiles no more than the real one has.

use std::process::ExitCode;

use clap::Parser;
use tourin_chassis::process;
use tourin_chassis::telemetry::TelemetrySettings;
use tourin_gateway::{Gateway, Settings};

/// As in the gateway's own program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The gateway, for benchmarks
#[derive(Debug, Parser)]
struct Cli {
    /// Plain HTTP to instances
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let build = async move {
        let built = Gateway::build(cli.settings, None).await?;
        Ok(if cli.plain { built.with_plain_upstreams() } else { built })
    };
    process::run(&cli.telemetry, build, Gateway::run_until_stopped).await
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn its_arguments_do_not_clash() {
        Cli::command().debug_assert();
    }
}
