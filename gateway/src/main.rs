//! The gateway as a process of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use tourin_chassis::config::{ConfigFile, parse};
use tourin_chassis::process;
use tourin_chassis::telemetry::TelemetrySettings;
use tourin_gateway::{Gateway, Settings, routes};

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
    /// Check a route table and end: with a summary, or with exit code 2 and the file, the line and what is
    /// wrong there
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = parse();
    if let Some(file) = &cli.check {
        return check(file);
    }
    let build = Gateway::build(cli.settings, None);
    process::run(&cli.telemetry, build, Gateway::run_until_stopped).await
}

fn check(file: &Path) -> ExitCode {
    match routes::check(file) {
        Ok(summary) => {
            // If standard output is closed, the exit code still says it.
            writeln!(std::io::stdout(), "{summary}").ok();
            ExitCode::SUCCESS
        }
        Err(error) => process::refuse(&error),
    }
}
