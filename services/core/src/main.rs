//! The core service as a process of its own.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tourin_chassis::clock::SystemClock;
use tourin_chassis::config::{ConfigFile, parse};
use tourin_chassis::process;
use tourin_chassis::telemetry::TelemetrySettings;
use tourin_core::{Core, Dependencies, Settings};

/// Tourin's core service: accounts and tokens, tour spots, reviews, bookmarks
#[derive(Debug, Parser)]
#[command(name = "core", version)]
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
    // Events go to the broker in the settings.
    let dependencies =
        Dependencies { publisher: None, clock: Arc::new(SystemClock), workload: None };
    let build = Core::build(cli.settings, dependencies);
    process::run(cli.telemetry, build, Core::run_until_stopped).await
}
