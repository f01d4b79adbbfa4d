//! The registry as a process of its own.

use std::process::ExitCode;

use clap::Parser;
use tourin_chassis::config::{ConfigFile, parse};
use tourin_chassis::process;
use tourin_chassis::telemetry::TelemetrySettings;
use tourin_registry::{Registry, Settings};

/// Tourin's registry: service discovery with leases and watches, and the mesh's certificates
#[derive(Debug, Parser)]
#[command(name = "registry", version)]
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
    process::run(&cli.telemetry, Registry::build(cli.settings), Registry::run_until_stopped).await
}
