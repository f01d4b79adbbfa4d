//! The command line.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tourin_chassis::config::{self, ConfigFile, LogSettings};
use tourin_chassis::process;
use tourin_chassis::shutdown::Shutdown;
use tourin_chassis::telemetry::memory::MemoryStore;
use tourin_chassis::telemetry::{self, TelemetrySettings};

use crate::audit::{self, AuditSettings};
use crate::authority::{self, JoinTokenSettings, RotateRootSettings};
use crate::certificate::{self, CertificateSettings};
use crate::ctl::{self, CtlCommand};
use crate::demo_traffic::{self, DemoTrafficSettings};
use crate::events::{self, EventsCommand};
use crate::import::{self, ImportSettings};
use crate::log_level::{self, LogLevelSettings};
use crate::mesh;
use crate::part_settings::with_parts_variables;
use crate::up::UpSettings;

/// Runs the command that the process's arguments name, until it ends or a signal ends it.
pub fn main() -> ExitCode {
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
        Command::Ctl(run) => ctl::run(&run.settings, &stop).await,
        Command::JoinToken(run) => authority::join_token(&run.settings).await,
        Command::RotateRoot(run) => authority::rotate_root(&run.settings).await,
        Command::Certificate(run) => certificate::run(&run.settings).await,
    };
    telemetry::flush(process::LAST_SPANS).await;
    ended
}

/// Tourin: a tour-spot service as a mesh of small services behind one URL.
///
/// Without a command it runs `up`. Every flag can also be given as the variable shown beside it, or
/// as a key in a TOML file (--config): defaults < file < environment < flags.
#[derive(Debug, Parser)]
#[command(name = "tourin", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole mesh in one process: gateway, registry, core, recommendation
    Up(Box<Run<UpSettings, TelemetrySettings>>),
    /// Load tour spots from a CSV or NDJSON file; a mesh may be running on the same data
    Import(Box<Run<ImportSettings, TelemetrySettings>>),
    /// Simulate members who browse and bookmark, through a gateway
    DemoTraffic(Run<DemoTrafficSettings>),
    /// Check that no acknowledged write is lost and none has its effect twice
    Audit(Run<AuditSettings>),
    /// List waiting events and dead letters; replay or discard them
    Events(Box<Run<EventsCommand>>),
    /// Show or change what a running service logs
    LogLevel(Run<LogLevelSettings>),
    /// See the instances in the registry, drain and enable them, weigh them, and report on scaling
    Ctl(Run<CtlCommand>),
    /// Make a join token, by which instances of a service get their first certificate
    JoinToken(Run<JoinTokenSettings>),
    /// Replace the root of the mesh's certificates, while everything runs
    RotateRoot(Run<RotateRootSettings>),
    /// Write an operator's certificate to files, for a Prometheus on another machine; run it again before
    /// the certificate ends
    Certificate(Run<CertificateSettings>),
}

/// A command's settings, with those that all commands have. Most commands make no traces and have log
/// settings alone; an import's trace continues in the mesh.
#[derive(Debug, clap::Args)]
pub struct Run<S: clap::Args, T: clap::Args = LogSettings> {
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub settings: S,
    /// The configuration file; read by [`tourin_chassis::config`].
    #[command(flatten)]
    pub file: ConfigFile,
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten, next_help_heading = "Logs and traces")]
    pub telemetry: T,
}

impl Command {
    /// How this command logs and traces.
    pub fn telemetry(&self) -> TelemetrySettings {
        let log = match self {
            Self::Up(run) => return run.telemetry.clone(),
            Self::Import(run) => return run.telemetry.clone(),
            Self::DemoTraffic(run) => &run.telemetry,
            Self::Audit(run) => &run.telemetry,
            Self::Events(run) => &run.telemetry,
            Self::LogLevel(run) => &run.telemetry,
            Self::Ctl(run) => &run.telemetry,
            Self::JoinToken(run) => &run.telemetry,
            Self::RotateRoot(run) => &run.telemetry,
            Self::Certificate(run) => &run.telemetry,
        };
        log.into()
    }

    /// The memory store of this command's traces, if it has one.
    pub fn trace_store(&self) -> Option<MemoryStore> {
        match self {
            Self::Up(run) => run.settings.operator.trace_store(&run.telemetry.traces),
            _ => None,
        }
    }
}

/// Inserts `up` into `args` if they have no command.
pub fn with_default_command(mut args: Vec<OsString>) -> Vec<OsString> {
    let is_for_all =
        |arg: &OsString| ["-h", "--help", "-V", "--version"].iter().any(|known| arg == known);
    let names_none = match args.get(1) {
        None => true,
        Some(first) => first.to_string_lossy().starts_with('-') && !is_for_all(first),
    };
    if names_none {
        args.insert(1.min(args.len()), "up".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        line.split(' ').map(Into::into).collect()
    }

    #[test]
    fn no_command_is_up() {
        assert_eq!(with_default_command(args("tourin")), args("tourin up"));
        assert_eq!(with_default_command(args("tourin --ephemeral")), args("tourin up --ephemeral"));
        for untouched in ["tourin import x.csv", "tourin --help", "tourin -V"] {
            assert_eq!(with_default_command(args(untouched)), args(untouched));
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
