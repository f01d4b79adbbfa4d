//! How listings look: a line per event that begins with its id, so that it can be piped on.

use std::io::Write;

use chrono::{DateTime, SecondsFormat, Utc};

/// Prints lines to standard output, and a closing word to standard error, so that it does not get
/// into what is piped on. A reader that has read enough (`| head`) ends it.
///
/// # Errors
/// When standard output takes no more for another reason.
pub fn print(lines: &[String], closing: &str) -> std::io::Result<()> {
    match print_lines(lines) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
        printed => printed?,
    }
    // Nobody needs it who has closed standard error.
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

/// An error's text in one line, whatever it has in it.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
