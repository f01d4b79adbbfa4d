//! Configuration, by the usual precedence: defaults < file < environment < flags.
//!
//! A binary's settings are one clap struct. Flags and `TOURIN_*` variables are clap's. This module
//! adds the file: TOML whose keys are the long flags' names (`listen = "127.0.0.1:8080"`). An
//! invalid value stops the start with one line that names it, and exit code 2.

mod effective;
mod file;
mod plaintext;
mod server_url;
mod servers;
mod variables;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, CommandFactory, FromArgMatches, Parser, ValueEnum};

pub use self::effective::{EffectiveSetting, effective_settings};
pub use self::plaintext::PlaintextSettings;
pub use self::server_url::{ServerAddress, ServerUrl, Unquoted};
pub use self::servers::{AmqpSettings, MysqlSettings};
pub use self::variables::{VARIABLES, warn_of_unknown_variables};
use crate::http_client;
use crate::secret::Secret;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// Logging, the same in every binary.
#[derive(Debug, Clone, Args)]
pub struct LogSettings {
    /// How log lines look
    #[arg(long, env = "TOURIN_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged: a level, or `target=level` pairs separated by commas. Libraries log no more than
    /// `info`, and less if they would show complete requests and messages
    #[arg(long, env = "TOURIN_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

/// How often a service checks its stores, the same in every service with stores.
#[derive(Debug, Clone, Args)]
pub struct ReadinessSettings {
    /// Milliseconds between two small writes to each store and to the broker, by which /readyz knows whether
    /// they accept writes
    #[arg(long, env = "TOURIN_READINESS_INTERVAL_MS", value_name = "MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    pub readiness_interval_ms: u64,
}

impl Default for ReadinessSettings {
    fn default() -> Self {
        defaults(&[])
    }
}

impl ReadinessSettings {
    /// The interval between checks.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.readiness_interval_ms)
    }
}

/// The configuration file, the same in every binary.
#[derive(Debug, Clone, Args)]
pub struct ConfigFile {
    /// TOML file whose keys are the names of these flags; flags and environment win over it
    #[arg(long, env = "TOURIN_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
}

/// Where the registry listens by default.
pub const REGISTRY_ADDRESS: &str = "127.0.0.1:8500";

/// The default of `--session-cookie-idle-s`, in seconds: core and every gateway have the flag, and the
/// same value.
pub const SESSION_COOKIE_IDLE_S: u32 = 1_800;

/// The registry of a mesh, and the proof of who joins, for services and operators' commands.
#[derive(Debug, Clone, Args)]
pub struct MeshAccess {
    /// Where the registry answers; several registries that share their state with commas between them: the
    /// next one is asked when one does not answer
    #[arg(
        long,
        env = "TOURIN_REGISTRY_URL",
        value_name = "URL",
        default_value_t = format!("https://{REGISTRY_ADDRESS}")
    )]
    pub registry_url: String,
    /// File with the join token by which the registry issues this process its certificate; read at each
    /// use. `tourin join-token SERVICE` makes one, and the registry keeps some with --join-tokens. `tourin
    /// up` writes an operator's and the registry's URL into mesh.toml in its data folder, for the --config
    /// of commands
    #[arg(long, env = "TOURIN_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// The join token itself, where no file is given
    #[arg(long, env = "TOURIN_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true, value_parser = Unquoted::<Secret>::parser())]
    pub join_token: Option<Secret>,
}

impl MeshAccess {
    /// Access to the registry at `registry_url`, without a join token.
    pub fn new(registry_url: impl Into<String>) -> Self {
        Self { registry_url: registry_url.into(), join_token_file: None, join_token: None }
    }

    /// The registry's URL, what reads the join token at each call, and how an HTTP client is set up.
    #[allow(clippy::type_complexity, reason = "the registry's client names the parts")]
    pub fn registry(
        &self,
    ) -> (
        String,
        Arc<dyn Fn() -> Result<String, String> + Send + Sync>,
        fn(rustls::ClientConfig) -> Result<reqwest::Client, String>,
    ) {
        let access = self.clone();
        let token = Arc::new(move || access.join_token());
        (self.registry_url.clone(), token, http_client::registry_client)
    }

    /// The join token.
    ///
    /// # Errors
    /// When there is none, or its file cannot be read.
    pub fn join_token(&self) -> Result<String, String> {
        match (&self.join_token_file, &self.join_token) {
            (Some(file), _) => std::fs::read_to_string(file)
                .map_err(|error| format!("--join-token-file {}: {error}", file.display())),
            (None, Some(token)) => Ok(token.expose().to_owned()),
            (None, None) => {
                Err("--join-token-file is not set: an instance joins the mesh by a token, \
                                 which `tourin join-token` makes"
                    .to_owned())
            }
        }
    }
}

/// A service's place in the mesh, the same in every service.
#[derive(Debug, Clone, Args)]
pub struct MeshSettings {
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub access: MeshAccess,
    /// Address at which others reach this instance [default: the address it listens on; when that is
    /// all of them, this machine's towards the registry]
    #[arg(long, env = "TOURIN_ADVERTISE", value_name = "ADDR")]
    pub advertise: Option<SocketAddr>,
    /// Name of this instance, unique in its service [default: the service's name and a random part]
    #[arg(long, env = "TOURIN_INSTANCE_ID", value_name = "ID")]
    pub instance_id: Option<String>,
    /// Milliseconds between two heartbeats to the registry
    #[arg(long, env = "TOURIN_HEARTBEAT_MS", value_name = "MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    pub heartbeat_ms: u64,
    /// Milliseconds after the last heartbeat at which the registry drops this instance
    #[arg(long, env = "TOURIN_LEASE_MS", value_name = "MS", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(200..=300_000))]
    pub lease_ms: u64,
    /// This instance's share of requests among the instances of its service: 0 to 1000; an operator may
    /// change it by `tourin ctl weights` [default: 100]
    #[arg(long, env = "TOURIN_WEIGHT", value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub weight: Option<u32>,
    /// Zone in which this instance runs; gateways that know their own may prefer its instances
    #[arg(long, env = "TOURIN_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
    /// Version of the program that this instance runs, as routes and operators name it, such as v2 or a
    /// commit
    #[arg(long, env = "TOURIN_VERSION_LABEL", value_name = "LABEL")]
    pub version_label: Option<String>,
}

impl MeshSettings {
    /// Settings of an instance in the registry at `registry_url`, with defaults for the rest.
    pub fn new(registry_url: impl Into<String>) -> Self {
        Self { access: MeshAccess::new(registry_url), ..defaults(&[]) }
    }

    /// The address at which others reach an instance that listens on `listening`: the configured
    /// one, or else `listening`. For a wildcard address it is this machine's address towards the
    /// registry (found by a UDP socket that sends nothing), or loopback if there is none.
    pub fn advertised(&self, listening: SocketAddr) -> SocketAddr {
        if let Some(address) = self.advertise {
            return address;
        }
        if !listening.ip().is_unspecified() {
            return listening;
        }
        let towards_registry = || {
            let url = self.access.registry_url.strip_prefix("https://")?;
            let registry = url.split(['/', ',']).next()?.to_socket_addrs().ok()?.next()?;
            let any: IpAddr = if registry.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            };
            let socket = UdpSocket::bind((any, 0)).ok()?;
            socket.connect(registry).ok()?;
            socket.local_addr().ok().map(|local| local.ip())
        };
        SocketAddr::new(towards_registry().unwrap_or(Ipv4Addr::LOCALHOST.into()), listening.port())
    }

    /// What others may know about this instance, as pairs of the registry's metadata.
    pub fn metadata(&self) -> impl Iterator<Item = (String, String)> + use<> {
        let weight = self.weight.map(|weight| weight.to_string());
        let pairs = [
            ("weight", weight),
            ("zone", self.zone.clone()),
            ("version", self.version_label.clone()),
        ];
        pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)))
    }

    /// The configured name of this instance of `service`, or a new random one.
    pub fn instance_id_or_new(&self, service: &str) -> String {
        self.instance_id.clone().unwrap_or_else(|| {
            let random = uuid::Uuid::now_v7().simple().to_string();
            // A UUIDv7 begins with the time; its end is random.
            format!("{service}-{}", &random[20..])
        })
    }
}

/// The settings from `arguments` and the flags' defaults, without the environment, so that a
/// default stands only at its flag.
///
/// # Panics
/// When a missing flag has no default.
pub fn defaults<S: Args>(arguments: &[&str]) -> S {
    let command = S::augment_args(clap::Command::new("defaults").no_binary_name(true))
        .mut_args(|arg| arg.env(None::<&'static str>));
    let settings = command.try_get_matches_from(arguments).and_then(|m| S::from_arg_matches(&m));
    settings.expect("every flag that is not given has a default")
}

/// A policy's default as the number type of its flag, so that it stands only at the policy.
///
/// # Panics
/// When the default is too large for the flag.
pub fn flag_default<U>(default: impl TryInto<U>) -> U {
    default.try_into().ok().expect("a default that fits its flag")
}

/// Parses the settings of this process. Otherwise ends it: with exit code 2 and one line that names
/// the invalid value, or with code 0 after `--help` and `--version`.
pub fn parse<C: Parser>() -> C {
    parse_args(&std::env::args_os().collect::<Vec<_>>())
}

/// [`parse`] with arguments that the binary has already read.
pub fn parse_args<C: Parser>(args: &[OsString]) -> C {
    match read::<C>(args, |name| std::env::var_os(name).is_some(), config_from_env()) {
        Ok((settings, effective)) => {
            effective::keep(effective);
            settings
        }
        Err(error) => exit_with(&error),
    }
}

fn config_from_env() -> Option<PathBuf> {
    std::env::var_os("TOURIN_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Why the settings are invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// clap's own report: an invalid value, a missing argument, or a request for help.
    #[error("{}", one_line(.0))]
    Arguments(#[from] clap::Error),
    /// A setting without a default is missing.
    #[error("{0}")]
    Missing(String),
    /// The configuration file cannot be read, is not TOML, or has an unknown key or an invalid
    /// value.
    #[error("{0}")]
    File(String),
    /// A server on another machine would be reached without TLS.
    #[error("{0}")]
    Plaintext(String),
}

/// [`parse`] with given arguments, for tests; `is_set` returns whether an environment variable is
/// set.
///
/// # Errors
/// When a value is invalid, a key is unknown or the file is unreadable, or a server on another machine
/// would be reached without TLS. Also for `--help`, which clap reports as a special error.
pub fn try_parse_from<C: CommandFactory + FromArgMatches>(
    args: &[OsString],
    is_set: impl Fn(&str) -> bool,
    config_from_env: Option<PathBuf>,
) -> Result<C, ConfigError> {
    read(args, is_set, config_from_env).map(|(settings, _)| settings)
}

fn read<C: CommandFactory + FromArgMatches>(
    args: &[OsString],
    is_set: impl Fn(&str) -> bool,
    config_from_env: Option<PathBuf>,
) -> Result<(C, Vec<EffectiveSetting>), ConfigError> {
    let command = with_switches_from_variables(C::command());
    let (args, in_file) = match file::path_in(args).or(config_from_env) {
        Some(path) => file::merge(&command, args, &path, is_set)?,
        None => (args.to_vec(), BTreeSet::new()),
    };
    let matches = command.clone().try_get_matches_from(args).map_err(|error| {
        if error.kind() == clap::error::ErrorKind::MissingRequiredArgument {
            return ConfigError::Missing(with_variables(&command, one_line(&error)));
        }
        error.into()
    })?;
    plaintext::refuse(&command, &matches)?;
    let effective = effective::of(&command, &matches, &in_file);
    Ok((C::from_arg_matches(&matches)?, effective))
}

/// A switch's variable may be `1`, `yes` or `on` as well as `true`.
fn with_switches_from_variables(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_action() {
        clap::ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
        _ => arg,
    });
    command.mut_subcommands(with_switches_from_variables)
}

/// Prints an error in the form of every Tourin binary and ends the process.
#[allow(clippy::print_stderr, reason = "logging is not set up yet; it is the process's last word")]
fn exit_with(error: &ConfigError) -> ! {
    if let ConfigError::Arguments(error) = error
        && !error.use_stderr()
    {
        error.exit(); // --help and --version
    }
    eprintln!("error: {error}");
    std::process::exit(2)
}

/// A report of missing flags, with the variables that can replace them.
fn with_variables(command: &clap::Command, report: String) -> String {
    let variables: Vec<_> = command
        .get_arguments()
        .filter(|arg| {
            arg.get_long().is_some_and(|long| {
                report.split_whitespace().any(|word| word.strip_prefix("--") == Some(long))
            })
        })
        .filter_map(|arg| arg.get_env()?.to_str())
        .collect();
    if variables.is_empty() {
        return report;
    }
    format!("{report} (or the environment variable {})", variables.join(", "))
}

/// clap's report without its usage lines, on one line.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut words = String::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        }
        if !line.is_empty() {
            words.push_str(if words.is_empty() { "" } else { " " });
            words.push_str(line);
        }
    }
    words.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests;
