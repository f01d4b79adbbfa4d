//! The recommendation service as a process of its own.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tourin_chassis::clock::SystemClock;
use tourin_chassis::config::{ConfigFile, parse};
use tourin_chassis::process;
use tourin_chassis::telemetry::TelemetrySettings;
use tourin_recommendation::{Dependencies, Recommendation, Settings};

/// Tourin's recommendation service: trend, similar spots, personal recommendations
#[derive(Debug, Parser)]
#[command(name = "recommendation", version)]
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
    // Separate stores: on the servers of the settings, or in a file.
    let build = Recommendation::build(cli.settings, Dependencies::new(Arc::new(SystemClock)));
    process::run(cli.telemetry, build, Recommendation::run_until_stopped).await
}
