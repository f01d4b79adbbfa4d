//! Counts log-ins and renewals by outcome, so that waves of guesses or of stolen refresh tokens
//! become visible.

use tourin_chassis::metrics::{Counter, Metrics};

/// The outcome of a log-in or of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Succeeded,
    /// The password or the token is not right.
    Refused,
    /// The refresh token had been used before, so its session has ended.
    Reused,
    TooManyAttempts,
    Failed,
}

impl Outcome {
    /// In the order of the variants.
    const LABELS: [&'static str; 5] =
        ["succeeded", "refused", "reused", "too_many_attempts", "failed"];
}

/// Counts by outcome. Clones share them.
#[derive(Clone, Debug)]
pub struct Outcomes {
    log_ins: [Counter; Outcome::LABELS.len()],
    renewals: [Counter; Outcome::LABELS.len()],
}

impl Outcomes {
    /// Zero for each outcome, in the service's `metrics`.
    pub fn register(metrics: &Metrics) -> Self {
        let by_outcome = |name, help| {
            let counters = metrics.counters(name, help);
            Outcome::LABELS.map(|outcome| counters.of([("outcome", outcome)]))
        };
        Self {
            log_ins: by_outcome("tourin_log_ins", "Log-ins by outcome"),
            renewals: by_outcome(
                "tourin_token_renewals",
                "Exchanges of refresh tokens by outcome; reused ones ended their session",
            ),
        }
    }

    pub(super) fn count_log_in(&self, outcome: Outcome) {
        self.log_ins[outcome as usize].increase();
    }

    pub(super) fn count_renewal(&self, outcome: Outcome) {
        self.renewals[outcome as usize].increase();
    }
}
