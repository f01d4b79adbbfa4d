//! The settings of the mesh's parts, as settings of `tourin up`.
//!
//! The flags, variables and file keys of `up` are generated from the parts' commands, which also parse
//! the values. So a new setting of a part is one of `up` without more code. [`MANAGED`] lists the
//! exceptions.
//!
//! A flag that several parts have with the same variable, such as `--redis-url`, is one setting. If each
//! part has its own variable, as for `--drain-timeout-ms`, `up` has the flag for all parts, and one per
//! part with the part's name in front (`--core-drain-timeout-ms`), which wins.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use tourin_chassis::config::MeshSettings;

const GATEWAY: &str = "gateway";
const CORE: &str = "core";
const RECOMMENDATION: &str = "recommendation";
const REGISTRY: &str = "registry";

/// A part, and how its arguments are added to a command.
struct Part {
    name: &'static str,
    heading: &'static str,
    augment: fn(Command) -> Command,
}

const PARTS: [Part; 4] = [
    Part { name: GATEWAY, heading: "Gateway", augment: tourin_gateway::Settings::augment_args },
    Part { name: CORE, heading: "Core", augment: tourin_core::Settings::augment_args },
    Part {
        name: RECOMMENDATION,
        heading: "Recommendation",
        augment: tourin_recommendation::Settings::augment_args,
    },
    Part { name: REGISTRY, heading: "Registry", augment: tourin_registry::Settings::augment_args },
];

/// The help's heading of flags that several parts have.
const SEVERAL: &str = "Several parts";

/// Flags of parts that `up` sets itself, and why.
const MANAGED: [(&str, &[&str], &str); 11] = [
    ("listen", &[CORE, RECOMMENDATION, REGISTRY], "only the gateway and operators are for others"),
    ("data-dir", &[CORE, RECOMMENDATION, REGISTRY], "the --data-dir of `up` keeps all data"),
    ("registry-url", &[GATEWAY, CORE, RECOMMENDATION], "the registry is in the same process"),
    ("join-token", &[GATEWAY, CORE, RECOMMENDATION], "the registry is in the same process"),
    ("join-token-file", &[GATEWAY, CORE, RECOMMENDATION], "the registry is in the same process"),
    ("join-tokens", &[REGISTRY], "mesh.toml in the data folder has an operator's"),
    ("advertise", &[GATEWAY, CORE, RECOMMENDATION], "the parts reach each other by loopback"),
    ("handover-socket", &[GATEWAY], "the other parts have no hand-over"),
    ("handover-drain-ms", &[GATEWAY], "the other parts have no hand-over"),
    ("handover-ready-ms", &[GATEWAY], "the other parts have no hand-over"),
    ("instance-id", &[GATEWAY, CORE, RECOMMENDATION], "one name would be that of every instance"),
];

/// Shorter variables, which `up` reads before the part's own.
const SHORT_VARIABLES: [(&str, &str); 4] = [
    ("listen", "TOURIN_LISTEN"),
    ("routes", "TOURIN_ROUTES"),
    ("allowed-origin", "TOURIN_ALLOWED_ORIGIN"),
    ("trusted-proxies", "TOURIN_TRUSTED_PROXIES"),
];

/// Flags of parts that `up -h` shows; `up --help` shows all.
const COMMON_FLAGS: [&str; 13] = [
    "listen",
    "no-demo",
    "cookie-secure",
    "allowed-origin",
    "trusted-proxies",
    "routes",
    "access-token-s",
    "session-idle-s",
    "trend-half-life-ms",
    "mysql-url",
    "redis-url",
    "mongodb-url",
    "amqp-url",
];

/// Help of flags whose meaning differs between parts.
const SHARED_HELP: [(&str, &str); 2] = [
    (
        "redis-url",
        "Redis for the trend, and for sessions where accounts are on a server too: \
         redis://[USER:PASSWORD@]HOST:PORT[/DATABASE], rediss:// for TLS \
         [default: SQLite in the data folder]",
    ),
    (
        "amqp-url",
        "RabbitMQ for events: amqp://USER:PASSWORD@HOST:PORT/VHOST, amqps for TLS \
         [default: a bus in this process]",
    ),
];

/// The settings of each part, without those that `up` sets itself.
#[derive(Debug, Clone)]
pub struct PartSettings {
    /// The gateway's.
    pub gateway: tourin_gateway::Settings,
    /// Core's.
    pub core: tourin_core::Settings,
    /// Those of each instance of recommendation.
    pub recommendation: tourin_recommendation::Settings,
    /// The registry's.
    pub registry: tourin_registry::Settings,
}

impl Default for PartSettings {
    /// The defaults of each part.
    fn default() -> Self {
        // `up` replaces all of these.
        let mesh = MeshSettings::new("");
        let anywhere = || std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            gateway: tourin_gateway::Settings::new(mesh.clone()),
            core: tourin_core::Settings::new(anywhere(), "", mesh.clone()),
            recommendation: tourin_recommendation::Settings::new(anywhere(), "", mesh),
            registry: tourin_registry::Settings::new(anywhere(), ""),
        }
    }
}

impl PartSettings {
    /// The settings by these flags of `up`, and by the environment for others.
    ///
    /// # Errors
    /// When a flag is unknown, or its value is bad.
    pub fn from_flags<T: Into<OsString> + Clone>(
        flags: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let command = Self::augment_args(Command::new("up").no_binary_name(true));
        Self::from_arg_matches(&command.try_get_matches_from(flags)?)
    }

    /// Whether events go through a broker.
    pub fn has_broker(&self) -> bool {
        self.core.events.url().is_some()
    }

    /// Whether any server is used.
    pub fn has_servers(&self) -> bool {
        let servers = &self.recommendation.servers;
        self.has_broker()
            || self.core.database.mysql().is_some()
            || servers.redis().is_some()
            || servers.mongodb().is_some()
    }
}

struct PartFlag {
    part: &'static Part,
    /// The flag in the part's own command.
    own: Arg,
    /// The flag of `up` for this part alone, if several parts have the flag with different variables.
    qualified: Option<String>,
}

impl PartFlag {
    fn long(&self) -> &str {
        self.own.get_long().unwrap_or_default()
    }
}

/// The id of a flag in `up`, distinct from the fields of its own settings.
fn id(long: &str) -> String {
    format!("part:{long}")
}

/// The parts' flags, without managed ones.
fn part_flags() -> Vec<PartFlag> {
    let mut all: Vec<PartFlag> = Vec::new();
    for part in &PARTS {
        let command = (part.augment)(Command::new(part.name));
        for own in command.get_arguments() {
            let long = own.get_long().unwrap_or_default();
            if !is_managed(part.name, long) {
                all.push(PartFlag { part, own: own.clone(), qualified: None });
            }
        }
    }
    let qualified = |one: &PartFlag| {
        let is_another = |other: &PartFlag| {
            other.long() == one.long() && other.own.get_env() != one.own.get_env()
        };
        all.iter().any(is_another).then(|| format!("{}-{}", one.part.name, one.long()))
    };
    let names: Vec<_> = all.iter().map(qualified).collect();
    for (one, name) in all.iter_mut().zip(names) {
        one.qualified = name;
    }
    all
}

fn is_managed(part: &str, long: &str) -> bool {
    MANAGED.iter().any(|(flag, parts, _)| *flag == long && parts.contains(&part))
}

/// The arguments of `up` for the parts' flags, each once.
fn arguments() -> Vec<Arg> {
    let part_flags = part_flags();
    let mut arguments: Vec<Arg> = Vec::new();
    for one in &part_flags {
        let long = one.long().to_owned();
        let sharing = part_flags.iter().filter(|other| other.long() == long).count();
        if let Some(qualified) = &one.qualified {
            let argument = one.own.clone().id(id(qualified)).long(qualified.clone());
            arguments.push(argument.help_heading(one.part.heading).hide_short_help(true));
        }
        if arguments.iter().any(|known| known.get_long() == Some(&long)) {
            continue;
        }
        let mut argument = one.own.clone().id(id(&long));
        if one.qualified.is_some() {
            // Each part checks its own bounds.
            argument = Arg::new(id(&long))
                .action(one.own.get_action().clone())
                .long(long.clone())
                .help("For each part that has it; one with a part's name in front wins");
            if let Some(names) = one.own.get_value_names() {
                argument = argument.value_names(names.to_vec());
            }
        }
        if let Some((_, variable)) = SHORT_VARIABLES.iter().find(|(flag, _)| *flag == long) {
            argument = argument.env(*variable);
        }
        if let Some((_, meaning)) = SHARED_HELP.iter().find(|(flag, _)| *flag == long) {
            argument = argument.help(*meaning);
        }
        let is_common = COMMON_FLAGS.contains(&long.as_str());
        argument = match (is_common, sharing) {
            (true, _) => argument,
            (false, 1) => argument.help_heading(one.part.heading),
            (false, _) => argument.help_heading(SEVERAL),
        };
        arguments.push(argument.hide_short_help(!is_common));
    }
    arguments
}

impl Args for PartSettings {
    fn augment_args(command: Command) -> Command {
        // In the order in which they are added here.
        command.args(arguments().into_iter().map(|arg| arg.display_order(None::<usize>)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for PartSettings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let part_flags = part_flags();
        Ok(Self {
            gateway: parse_part(&part_flags, GATEWAY, matches)?,
            core: parse_part(&part_flags, CORE, matches)?,
            recommendation: parse_part(&part_flags, RECOMMENDATION, matches)?,
            registry: parse_part(&part_flags, REGISTRY, matches)?,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Parses a part's settings from the arguments of `up`.
fn parse_part<S: Args>(
    part_flags: &[PartFlag],
    part: &str,
    given: &ArgMatches,
) -> Result<S, clap::Error> {
    let mut passed_on = Vec::new();
    for one in part_flags.iter().filter(|one| one.part.name == part) {
        let names = [one.qualified.as_deref(), Some(one.long())];
        let id = names.into_iter().flatten().map(id).find(|id| is_given(given, id));
        if let Some(id) = id {
            passed_on.extend(flags(&one.own, &id, given));
        }
    }
    // `up` has already read the environment.
    let command = S::augment_args(Command::new("up").no_binary_name(true))
        .mut_args(|arg| arg.env(None::<&'static str>));
    S::from_arg_matches(&command.try_get_matches_from(passed_on)?)
}

fn is_given(matches: &ArgMatches, id: &str) -> bool {
    matches!(matches.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

/// The value of a flag, as arguments of the part's command.
fn flags(own: &Arg, id: &str, given: &ArgMatches) -> Vec<OsString> {
    let flag = format!("--{}", own.get_long().unwrap_or_default());
    if matches!(own.get_action(), ArgAction::SetTrue) {
        return if given.get_flag(id) { vec![flag.into()] } else { Vec::new() };
    }
    let with = |value: &std::ffi::OsStr| {
        let mut whole = OsString::from(format!("{flag}="));
        whole.push(value);
        whole
    };
    given.get_raw(id).into_iter().flatten().map(with).collect()
}

/// Adds flags for variables of parts for which `up` has a shorter one, if neither that nor the flag is
/// given. `value_of` reads a variable.
pub fn with_parts_variables(
    mut args: Vec<OsString>,
    value_of: impl Fn(&str) -> Option<OsString>,
) -> Vec<OsString> {
    if args.get(1).is_none_or(|command| command != "up") {
        return args;
    }
    for one in part_flags() {
        let (long, own) = (one.long(), one.own.get_env().and_then(|name| name.to_str()));
        let shorter = SHORT_VARIABLES.iter().find(|(flag, _)| *flag == long).map(|(_, name)| *name);
        let (Some(shorter), Some(own)) = (shorter, own) else { continue };
        let flag = format!("--{long}");
        let is_flag = |arg: &OsString| {
            let arg = arg.to_string_lossy();
            arg.strip_prefix(&flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        if value_of(shorter).is_some() || args.iter().any(is_flag) {
            continue;
        }
        if let Some(value) = value_of(own) {
            let mut whole = OsString::from(format!("{flag}="));
            whole.push(value);
            args.insert(2, whole);
        }
    }
    args
}

#[cfg(test)]
mod tests;
