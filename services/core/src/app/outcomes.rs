//! Counts log-ins and renewals by outcome, so that waves of guesses or of stolen refresh tokens
//! become visible.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::sessions::{LoggedIn, SessionError, TokenPair};

const KINDS: [&str; 5] = ["succeeded", "refused", "reused", "too_many_attempts", "failed"];

/// Counts since the start. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Outcomes(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    log_ins: [AtomicU64; KINDS.len()],
    renewals: [AtomicU64; KINDS.len()],
}

fn kind<T>(outcome: &Result<T, SessionError>) -> usize {
    match outcome {
        Ok(_) => 0,
        Err(SessionError::WrongCredentials | SessionError::Refused { ended: None }) => 1,
        Err(SessionError::Refused { ended: Some(_) }) => 2,
        Err(SessionError::TooManyAttempts(_)) => 3,
        Err(SessionError::Hashing(_) | SessionError::Store(_) | SessionError::Token(_)) => 4,
    }
}

impl Outcomes {
    pub(super) fn count_log_in(&self, outcome: &Result<LoggedIn, SessionError>) {
        self.0.log_ins[kind(outcome)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_renewal(&self, outcome: &Result<TokenPair, SessionError>) {
        self.0.renewals[kind(outcome)].fetch_add(1, Ordering::Relaxed);
    }

    /// Log-ins by their outcome.
    pub fn log_ins(&self) -> [(&'static str, u64); KINDS.len()] {
        read(&self.0.log_ins)
    }

    /// Exchanges of refresh tokens by their outcome.
    pub fn renewals(&self) -> [(&'static str, u64); KINDS.len()] {
        read(&self.0.renewals)
    }
}

fn read(counts: &[AtomicU64; KINDS.len()]) -> [(&'static str, u64); KINDS.len()] {
    std::array::from_fn(|kind| (KINDS[kind], counts[kind].load(Ordering::Relaxed)))
}
