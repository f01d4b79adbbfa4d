//! The gateway as a process of its own.

use std::process::ExitCode;

use clap::Parser;
use tourin_chassis::config::{ConfigFile, LogSettings, parse};
use tourin_chassis::process;
use tourin_gateway::{Gateway, Settings};

/// Tourin's gateway: one URL in front of the services
#[derive(Debug, Parser)]
#[command(name = "gateway", version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    log: LogSettings,
    #[command(flatten)]
    file: ConfigFile,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = parse();
    process::run(&cli.log, Gateway::build(cli.settings), Gateway::run_until_stopped).await
}
