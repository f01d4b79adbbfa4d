//! Maps MongoDB's errors to [`PortError`], with reasons for operators.

use anyhow::anyhow;
use mongodb::error::{Error, ErrorKind, WriteFailure};

use crate::app::ports::PortError;
use crate::operation::Refusal;

/// Whether every other operation would fail in the same way.
fn is_down(error: &Error) -> bool {
    error.contains_label("RetryableWriteError")
        || error.contains_label("TransientTransactionError")
        || match error.kind.as_ref() {
            ErrorKind::Io(_)
            | ErrorKind::ServerSelection { .. }
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::DnsResolve { .. }
            | ErrorKind::Authentication { .. }
            | ErrorKind::Write(WriteFailure::WriteConcernError(_)) => true,
            ErrorKind::Write(WriteFailure::WriteError(error)) => DOWN.contains(&error.code),
            ErrorKind::Command(error) => DOWN.contains(&error.code),
            _ => false,
        }
}

/// MongoDB's codes for outages. The server cannot be reached (6, 7, 89, 9001), is shutting down (91,
/// 11600), is not the primary (189, 10107, 11602, 13435, 13436), has no disk space (14031), has too
/// few members to confirm a write (64, 100), takes too long (50, 262), or refuses the login (18).
pub(super) const DOWN: [i32; 17] = [
    6, 7, 18, 50, 64, 89, 91, 100, 189, 262, 9_001, 10_107, 11_600, 11_602, 13_435, 13_436, 14_031,
];

pub(super) fn failed(error: Error) -> PortError {
    let (is_down, code) = (is_down(&error), code_of(&error));
    let error = match error.kind.as_ref() {
        // The error's own text would include the complete reply as bytes.
        ErrorKind::Command(error) => {
            anyhow!("mongodb: {} ({} {})", error.message, error.code, error.code_name)
        }
        kind => anyhow!("mongodb: {kind}"),
    };
    port_error(code, is_down, error)
}

/// MongoDB's code, if the server has replied.
fn code_of(error: &Error) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteError(error)) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(error)) => Some(error.code),
        _ => None,
    }
}

/// Why a server that answers refuses, for operators.
fn refusal(code: i32) -> Option<&'static str> {
    match code {
        13 | 18 => Some("no access"),
        64 | 100 => Some("no majority confirms writes"),
        50 | 262 => Some("it takes too long"),
        189 | 10_107 | 11_602 | 13_435 | 13_436 => Some("read-only: it is no primary"),
        // MongoDB's OutOfDiskSpace, and WiredTiger's ENOSPC.
        14_031 | 28 => Some("disk full"),
        _ => None,
    }
}

pub(super) fn port_error(code: Option<i32>, is_down: bool, error: anyhow::Error) -> PortError {
    let error = match code.and_then(refusal) {
        Some(reason) => error.context(Refusal(reason)),
        None => error,
    };
    if is_down { PortError::unavailable(error) } else { PortError::failed(error) }
}
