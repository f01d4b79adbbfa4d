//! The gateway as a process of its own.

use std::process::ExitCode;

use clap::Parser;
use tourin_chassis::config::{ConfigFile, parse};
use tourin_chassis::process;
use tourin_chassis::telemetry::TelemetrySettings;
use tourin_gateway::{Gateway, Settings};

/// A request allocates some hundreds of times; docs/decisions/0010-allocator.md says what mimalloc saves.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tourin's gateway: one URL in front of the services
#[derive(Debug, Parser)]
#[command(name = "gateway", version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
    #[command(flatten)]
    file: ConfigFile,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = parse();
    process::run(&cli.telemetry, Gateway::build(cli.settings), Gateway::run_until_stopped).await
}
