//! The settings of this process as they are in effect, for operators.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use serde::Serialize;

/// In the place of a secret.
const HIDDEN: &str = "(hidden)";

static EFFECTIVE: OnceLock<Vec<EffectiveSetting>> = OnceLock::new();

/// A setting in effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EffectiveSetting {
    /// The flag's name, without dashes.
    pub name: String,
    /// Its values; several for a flag that can be repeated. Secrets, and URLs that may have one in them,
    /// are hidden.
    pub values: Vec<String>,
    /// Where they are from: `default`, `file`, `environment` or `flag`; `unset` without a value.
    pub source: &'static str,
}

/// The settings that [`super::parse`] read; empty in a process that did not call it.
pub fn effective_settings() -> &'static [EffectiveSetting] {
    EFFECTIVE.get().map(Vec::as_slice).unwrap_or_default()
}

/// Keeps the settings of this process. The first ones stay.
pub(super) fn keep(settings: Vec<EffectiveSetting>) {
    EFFECTIVE.set(settings).ok();
}

/// The settings of the command that was given. Those in `in_file` came from the configuration file.
pub(super) fn of(
    mut command: &Command,
    mut matches: &ArgMatches,
    in_file: &BTreeSet<String>,
) -> Vec<EffectiveSetting> {
    while let Some((name, inner)) = matches.subcommand() {
        let Some(found) = command.find_subcommand(name) else { break };
        (command, matches) = (found, inner);
    }
    let setting = |arg: &clap::Arg| {
        let name = arg.get_long().filter(|name| !["help", "version"].contains(name))?;
        let id = arg.get_id().as_str();
        let values = matches.try_get_raw(id).ok().flatten().into_iter().flatten();
        let values: Vec<_> = values
            .map(|value| match arg.is_hide_env_values_set() {
                true => HIDDEN.to_owned(),
                false => value.to_string_lossy().into_owned(),
            })
            .collect();
        let source = match matches.value_source(id) {
            Some(ValueSource::DefaultValue) => "default",
            Some(ValueSource::EnvVariable) => "environment",
            Some(_) if in_file.contains(name) => "file",
            Some(_) => "flag",
            None => "unset",
        };
        Some(EffectiveSetting { name: name.to_owned(), values, source })
    };
    command.get_arguments().filter_map(setting).collect()
}
