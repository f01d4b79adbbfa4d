//! Every setting of every part is one of `up`, and has its effect.

use std::collections::BTreeSet;
use std::fmt::Debug;

use clap::CommandFactory;

use super::*;
use crate::cli::Cli;

/// Values: each setting accepts at least one that is not its default.
const VALUES: [&str; 24] = [
    "7",
    "61",
    "610",
    "61000",
    "700000",
    "9000000",
    "0.25",
    "true",
    "false",
    "127.0.0.1:9",
    "deny",
    "forwarded",
    "https://app.example",
    "10.0.0.0/8",
    "mysql://core:word@db.example/core",
    "redis://store.example",
    "mongodb://store.example",
    "amqp://bus.example/%2f",
    "http://there.example",
    "off",
    "some-text",
    "/some-path",
    "info",
    "json",
];

fn without_variables(command: Command) -> Command {
    command.mut_args(|arg| arg.env(None::<&'static str>))
}

fn of_up(flags: &[String]) -> Result<PartSettings, clap::Error> {
    let command = PartSettings::augment_args(Command::new("up").no_binary_name(true));
    PartSettings::from_arg_matches(&without_variables(command).try_get_matches_from(flags)?)
}

fn of_own<S: Args + Debug>(flags: &[String]) -> Result<S, clap::Error> {
    let command = without_variables(S::augment_args(Command::new("own").no_binary_name(true)));
    S::from_arg_matches(&command.try_get_matches_from(flags)?)
}

/// The settings as text.
fn shown(settings: &impl Debug) -> String {
    format!("{settings:?}")
}

/// Gives each flag of a part to `up` under its name there, and compares with the part's own command.
fn each_setting_has_its_effect<S: Args + Debug>(part: &str, of: impl Fn(PartSettings) -> S) {
    let default = shown(&of_own::<S>(&[]).unwrap());
    assert_eq!(shown(&of(of_up(&[]).unwrap())), default, "{part}: other defaults");
    let mut seen = 0;
    for one in part_flags().iter().filter(|one| one.part.name == part) {
        let long = one.long();
        let flag = |name: &str, value: &str| match one.own.get_action() {
            ArgAction::SetTrue => vec![format!("--{name}")],
            _ => vec![format!("--{name}={value}")],
        };
        let (value, expected) = VALUES
            .iter()
            .find_map(|value| {
                let own = shown(&of_own::<S>(&flag(long, value)).ok()?);
                (own != default).then_some((*value, own))
            })
            .unwrap_or_else(|| panic!("{part} --{long}: no value here is one; add one"));
        for name in [Some(long), one.qualified.as_deref()].into_iter().flatten() {
            // A flag for several parts has the bounds of all of them.
            let given = of_up(&flag(name, value)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(shown(&of(given)), expected, "up --{name}");
        }
        seen += 1;
    }
    assert!(seen > 3, "{part} has {seen} settings");
}

#[test]
fn each_setting_of_each_part_has_its_effect() {
    each_setting_has_its_effect(GATEWAY, |parts| parts.gateway);
    each_setting_has_its_effect(CORE, |parts| parts.core);
    each_setting_has_its_effect(RECOMMENDATION, |parts| parts.recommendation);
    each_setting_has_its_effect(REGISTRY, |parts| parts.registry);
}

#[test]
fn every_managed_flag_exists() {
    for (flag, parts, reason) in MANAGED {
        assert!(!reason.is_empty());
        for name in parts {
            let part = PARTS.iter().find(|part| part.name == *name).unwrap();
            let command = (part.augment)(Command::new("own"));
            let is_there = command.get_arguments().any(|arg| arg.get_long() == Some(flag));
            assert!(is_there, "{name} has no --{flag} any more");
        }
    }
    let known: BTreeSet<String> =
        arguments().iter().filter_map(Arg::get_long).map(ToOwned::to_owned).collect();
    for flag in COMMON_FLAGS.iter().chain(SHORT_VARIABLES.iter().map(|(flag, _)| flag)) {
        assert!(known.contains(*flag), "`up` has no --{flag} any more");
    }
}

#[test]
fn each_variable_of_a_part_is_one_of_up() {
    let of_up: BTreeSet<_> =
        arguments().iter().filter_map(|arg| arg.get_env().map(ToOwned::to_owned)).collect();
    for one in part_flags() {
        let (long, own) = (one.long(), one.own.get_env().unwrap());
        if SHORT_VARIABLES.iter().any(|(flag, _)| *flag == long) {
            // The part's own variable counts if nothing else is given.
            let own = own.to_str().unwrap();
            let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
            let set = |name: &str| (name == own).then(|| OsString::from("value"));
            assert_eq!(
                with_parts_variables(args("tourin up --ephemeral"), set),
                args(&format!("tourin up --{long}=value --ephemeral"))
            );
            for given in [format!("--{long}=x"), format!("--{long} x")] {
                let args = args(&format!("tourin up {given}"));
                assert_eq!(with_parts_variables(args.clone(), set), args);
            }
            let both = |_: &str| Some(OsString::from("value"));
            let nothing_more = with_parts_variables(args("tourin up"), both);
            assert!(!nothing_more.iter().any(|arg| arg.to_string_lossy().contains(long)));
        } else {
            assert!(of_up.contains(own), "{own:?}");
        }
    }
    let elsewhere = vec!["tourin".into(), "audit".into()];
    let all = |_: &str| Some(OsString::from("value"));
    assert_eq!(with_parts_variables(elsewhere.clone(), all), elsewhere);
}

/// Of a command and of all below it.
fn variables(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str());
    let below = command.get_subcommands().flat_map(variables);
    own.map(ToOwned::to_owned).chain(below).collect()
}

#[test]
fn every_program_knows_the_variables_of_all() {
    let mut read = variables(&Cli::command());
    for part in &PARTS {
        read.extend(variables(&(part.augment)(Command::new(part.name))));
    }
    let listed: BTreeSet<String> =
        tourin_chassis::config::VARIABLES.iter().map(|name| (*name).to_owned()).collect();
    let missing: Vec<_> = read.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&read).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "services/chassis/src/config/variables.rs: add {missing:?}, take out {gone:?}"
    );
}

#[test]
fn every_command_with_the_url_of_a_server_has_the_permission_for_plaintext() {
    fn check(command: &Command) -> usize {
        let has = |long: &str| command.get_arguments().any(|arg| arg.get_long() == Some(long));
        let has_server = ["mysql-url", "redis-url", "mongodb-url", "amqp-url"].into_iter().any(has);
        assert!(!has_server || has("allow-plaintext"), "{}", command.get_name());
        usize::from(has_server) + command.get_subcommands().map(check).sum::<usize>()
    }
    let parts = PARTS.iter().map(|part| check(&(part.augment)(Command::new(part.name))));
    let with_servers = check(&Cli::command()) + parts.sum::<usize>();
    assert!(with_servers > 8, "the flags have other names: {with_servers}");
}

#[test]
fn sessions_and_trend_may_be_on_different_redis_servers() {
    let parts = of_up(&[
        "--redis-url=redis://trend.example".to_owned(),
        "--session-redis-url=redis://sessions.example/1".to_owned(),
    ])
    .unwrap();
    let urls = [
        parts.gateway.sessions.redis(),
        parts.core.database.sessions.redis(),
        parts.recommendation.servers.redis(),
    ]
    .map(|url| url.unwrap().expose().to_owned());
    let sessions = "redis://sessions.example/1";
    assert_eq!(urls, [sessions, sessions, "redis://trend.example"]);
}

#[test]
fn a_flag_of_several_parts_is_for_each_and_one_with_a_name_wins() {
    let parts =
        of_up(&["--drain-timeout-ms=300".to_owned(), "--core-drain-timeout-ms=200".to_owned()]);
    let parts = parts.unwrap();
    let drains = [
        parts.gateway.drain_timeout_ms,
        parts.core.drain_timeout_ms,
        parts.recommendation.drain_timeout_ms,
    ];
    assert_eq!(drains, [300, 200, 300]);
    let error = of_up(&["--drain-timeout-ms=60000".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("--drain-timeout-ms") && error.contains("3000"), "{error}");
}

#[test]
fn a_server_s_password_does_not_show() {
    let parts = of_up(&[
        "--redis-url=redis://user:hunter2@there".to_owned(),
        "--mysql-url=mysql://user:hunter2@there/core".to_owned(),
    ]);
    assert!(!format!("{:?}", parts.unwrap()).contains("hunter2"));
}
