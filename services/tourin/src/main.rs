//! `tourin`: the all-in-one and the operator's command line.

use std::process::ExitCode;

use tourin::cli::{Cli, Command, with_default_command};
use tourin::part_settings::with_parts_variables;
use tourin::{audit, demo_traffic, events, import, log_level, mesh};
use tourin_chassis::shutdown::Shutdown;
use tourin_chassis::{config, process, telemetry};

fn main() -> ExitCode {
    let args = with_default_command(std::env::args_os().collect());
    let args = with_parts_variables(args, |name| std::env::var_os(name));
    let cli: Cli = config::parse_args(&args);
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => process::refuse(&error),
    }
}

#[tokio::main]
async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let traces = command.trace_store();
    telemetry::init_with(command.telemetry(), traces.clone()).map_err(anyhow::Error::msg)?;
    config::warn_of_unknown_variables();
    let stop = Shutdown::on_signals()?;
    let ended = match command {
        Command::Up(run) => mesh::up(run.settings, traces, stop).await,
        Command::Import(run) => import::run(&run.settings, &stop).await,
        Command::DemoTraffic(run) => demo_traffic::run_and_print(&run.settings, &stop).await,
        Command::Audit(mut run) => {
            run.settings.mesh_file = run.file.config;
            audit::run_and_print(run.settings, &stop).await
        }
        Command::Events(run) => events::run(&run.settings).await,
        Command::LogLevel(run) => log_level::run(&run.settings).await,
    };
    telemetry::flush(process::LAST_SPANS).await;
    ended
}
