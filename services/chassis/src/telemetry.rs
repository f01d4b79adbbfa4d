//! Logs: structured, human or JSON, on standard error so that standard output stays the program's
//! own.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{LogFormat, LogSettings};

/// What nobody's filter may switch on: it would log whole messages, which are about people.
const NEVER: &str = "lapin::returned_messages=off";

fn filter(text: &str) -> Result<EnvFilter, ParseError> {
    Ok(EnvFilter::builder().parse(text)?.add_directive(NEVER.parse()?))
}

/// Starts logging for this process. A second call (tests start several services) changes nothing.
///
/// # Errors
/// When the filter is not one, with what is wrong in it.
pub fn init(settings: &LogSettings) -> Result<(), String> {
    let filter = filter(&settings.log)
        .map_err(|error| format!("invalid value '{}' for '--log': {error}", settings.log))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Colours are for a person's terminal, not for a file or a pipe.
        .with_ansi(std::io::stderr().is_terminal());
    // An error here means only that a subscriber is installed already.
    match settings.log_format {
        LogFormat::Text => builder.with_target(false).try_init().ok(),
        LogFormat::Json => builder.json().flatten_event(true).try_init().ok(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_filter_lets_whole_messages_into_the_log() {
        for text in ["warn", "trace", "lapin::returned_messages=warn", "info,lapin=debug"] {
            let filter = filter(text).unwrap().to_string();
            assert!(filter.contains(NEVER), "{text}: {filter}");
            assert!(!filter.contains("lapin::returned_messages=warn"), "{text}: {filter}");
        }
        assert!(filter("a=b=c").is_err());
    }
}
