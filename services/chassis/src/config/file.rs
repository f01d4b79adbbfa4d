//! The configuration file as arguments: each key becomes `--key=value` before the real arguments,
//! unless a flag or an environment variable sets it already. So clap checks a file's values by the
//! same rules, with the same messages, as a flag's.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::ConfigError;

/// The file in `--config`, if any.
pub(super) fn path_in(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(PathBuf::from(path));
        }
    }
    None
}

/// `args` with the file's keys, which take precedence over the defaults only; and the keys that do.
pub(super) fn merge(
    command: &clap::Command,
    args: &[OsString],
    path: &Path,
    is_set: impl Fn(&str) -> bool,
) -> Result<(Vec<OsString>, BTreeSet<String>), ConfigError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::File(format!("cannot read --config {shown}: {error}")))?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        ConfigError::File(format!("{shown}:{line}: not TOML: {}", error.message()))
    })?;

    // Keys belong to the innermost named subcommand, which has the flags.
    let (mut target, mut at) = (command, 1);
    while let Some(inner) =
        args.get(at).and_then(|arg| arg.to_str()).and_then(|name| target.find_subcommand(name))
    {
        (target, at) = (inner, at + 1);
    }

    let mut merged: Vec<OsString> = args[..at.min(args.len())].to_vec();
    let mut used = BTreeSet::new();
    for (key, value) in &table {
        let Some(arg) = target.get_arguments().find(|arg| arg.get_long() == Some(key)) else {
            // One file serves all commands of a program.
            if knows(command, key) {
                continue;
            }
            return Err(unknown_key(&shown.to_string(), key, target));
        };
        let flag = format!("--{key}");
        let given = args.iter().filter_map(|arg| arg.to_str()).any(|arg| {
            arg.strip_prefix(&flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        });
        let in_environment = arg.get_env().and_then(|name| name.to_str()).is_some_and(&is_set);
        if given || in_environment || key == "config" {
            continue;
        }
        let as_arguments = arguments(arg, &flag, value).ok_or_else(|| {
            ConfigError::File(format!(
                "{shown}: key '{key}' is {}: expected a string, a number, a boolean or a list of these",
                value.type_str()
            ))
        })?;
        check(arg, &as_arguments)
            .map_err(|error| ConfigError::File(format!("{shown}: {}", super::one_line(&error))))?;
        merged.extend(as_arguments);
        used.insert(key.clone());
    }
    merged.extend(args.iter().skip(at).cloned());
    Ok((merged, used))
}

/// Whether the command or one below it has the flag.
fn knows(command: &clap::Command, key: &str) -> bool {
    command.get_arguments().any(|arg| arg.get_long() == Some(key))
        || command.get_subcommands().any(|inner| knows(inner, key))
}

fn arguments(arg: &clap::Arg, flag: &str, value: &toml::Value) -> Option<Vec<OsString>> {
    use clap::ArgAction::{SetFalse, SetTrue};
    let is_switch = matches!(arg.get_action(), SetTrue | SetFalse);
    let one = |value: &toml::Value| match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    };
    match value {
        toml::Value::Boolean(false) if is_switch => Some(Vec::new()),
        toml::Value::Boolean(true) if is_switch => Some(vec![flag.into()]),
        toml::Value::Array(values) => values
            .iter()
            .map(|value| one(value).map(|text| format!("{flag}={text}").into()))
            .collect(),
        value => one(value).map(|text| vec![format!("{flag}={text}").into()]),
    }
}

/// Has clap check one key by itself, so that the error can name the file.
fn check(arg: &clap::Arg, as_arguments: &[OsString]) -> Result<(), clap::Error> {
    clap::Command::new("file")
        .disable_help_flag(true)
        .arg(arg.clone().required(false))
        .try_get_matches_from(
            std::iter::once(OsString::from("file")).chain(as_arguments.iter().cloned()),
        )
        .map(drop)
}

fn unknown_key(shown: &str, key: &str, target: &clap::Command) -> ConfigError {
    let known: Vec<_> = target
        .get_arguments()
        .filter_map(clap::Arg::get_long)
        .filter(|long| !["help", "version", "config"].contains(long))
        .collect();
    ConfigError::File(format!("{shown}: unknown key '{key}'; known keys: {}", known.join(", ")))
}
