//! How listings look: a line per event that begins with its id, so that it can be piped on.

use std::io::Write;

use chrono::{DateTime, SecondsFormat, Utc};

/// Prints lines to standard output, and a closing word to standard error, so that it does not get
/// into what is piped on.
///
/// # Errors
/// When standard output takes no more.
pub fn print(lines: &[String], closing: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    writeln!(std::io::stderr(), "{closing}")
}

/// A time to the millisecond.
pub fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// An error's text in one line, whatever it has in it.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
