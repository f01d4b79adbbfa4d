//! Listings: one line per event, which begins with its id, so that the output can be piped.

use std::io::Write;

use chrono::{DateTime, SecondsFormat, Utc};

/// Prints lines to standard output, and a summary to standard error, which is not piped. A closed pipe
/// (`| head`) ends the output without an error.
///
/// # Errors
/// When writing fails for another reason.
pub fn print(lines: &[String], closing: &str) -> std::io::Result<()> {
    match print_lines(lines) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
        printed => printed?,
    }
    // Standard error may be closed.
    writeln!(std::io::stderr(), "{closing}").ok();
    Ok(())
}

fn print_lines(lines: &[String]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

/// A time to the millisecond.
pub fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// An error's text in one line.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
