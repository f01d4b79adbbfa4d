//! What an audit came to, for people and for exit codes.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use super::comparison::{Comparison, Row};
use super::schedule::Played;

/// Differences that are named; the rest are counted.
const NAMED: usize = 20;

/// What an audit came to.
#[derive(Debug)]
pub struct Report {
    /// The table; of what could be read last.
    pub comparison: Comparison,
    /// How the requests went.
    pub played: Played,
    /// Attempts that were not answered, or with a 5xx status; a request may have had several.
    pub failed_attempts: u64,
    /// Attempts after the first of a request.
    pub retries: u64,
    /// From the last answer until effects had arrived, or until the audit gave up.
    pub settled_in: Duration,
    /// Why the mesh could not be looked at in the end, if it could not.
    pub unseen: Option<String>,
    /// What else a reader should know.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether everything was looked at and is as it should be.
    pub fn is_clean(&self) -> bool {
        self.unseen.is_none() && self.comparison.differences.is_empty()
    }

    /// 0 when there is no difference, 1 otherwise.
    pub fn exit_code(&self) -> ExitCode {
        if self.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Requests that were not answered with success in the end.
    pub fn failed(&self) -> u64 {
        self.played.failed.values().sum()
    }

    /// The time within which this share of the successful requests was answered.
    pub fn latency(&self, share: f64) -> Duration {
        let mut sorted = self.played.latencies.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison {
            bookmarks,
            removals,
            reviews,
            deleted_reviews,
            trend_effects,
            replica_entries,
            ..
        } = &self.comparison;
        let rows: [(&str, &Row); 6] = [
            ("bookmarks", bookmarks),
            ("removals", removals),
            ("reviews", reviews),
            ("deleted reviews", deleted_reviews),
            ("trend effects", trend_effects),
            ("replica entries", replica_entries),
        ];
        write!(f, "{:<16}", "")?;
        for column in ["acknowledged", "unknown", "found", "missing", "doubled", "uncaused"] {
            write!(f, " {column:>12}")?;
        }
        writeln!(f)?;
        for (name, row) in rows {
            let Row { acknowledged, unknown, found, missing, doubled, uncaused } = row;
            write!(f, "{name:<16}")?;
            for count in [acknowledged, unknown, found, missing, doubled, uncaused] {
                write!(f, " {count:>12}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table(f)?;
        writeln!(f)?;
        let Played { requests, not_made, failed, .. } = &self.played;
        write!(f, "{requests} requests, {} failed", self.failed())?;
        if !failed.is_empty() {
            let kinds: Vec<_> = failed.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
            write!(f, " ({})", kinds.join("; "))?;
        }
        writeln!(
            f,
            "; {} attempts failed, {} retries; {not_made} not made",
            self.failed_attempts, self.retries
        )?;
        writeln!(
            f,
            "latency p50 {:.1} ms, p99 {:.1} ms; settled in {:.1} s",
            self.latency(0.5).as_secs_f64() * 1e3,
            self.latency(0.99).as_secs_f64() * 1e3,
            self.settled_in.as_secs_f64()
        )?;
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        if let Some(reason) = &self.unseen {
            writeln!(f, "the mesh could not be looked at: {reason}")?;
        }
        let differences = &self.comparison.differences;
        if differences.is_empty() {
            return match self.unseen {
                None => writeln!(f, "no difference"),
                Some(_) => Ok(()),
            };
        }
        writeln!(f, "{} differences:", differences.len())?;
        for difference in differences.iter().take(NAMED) {
            writeln!(f, "  {difference}")?;
        }
        if differences.len() > NAMED {
            writeln!(f, "  and {} more", differences.len() - NAMED)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(differences: Vec<String>) -> Report {
        Report {
            comparison: Comparison { differences, ..Comparison::default() },
            played: Played {
                requests: 100,
                latencies: (1..=100).map(Duration::from_millis).collect(),
                ..Played::default()
            },
            failed_attempts: 0,
            retries: 0,
            settled_in: Duration::from_secs(1),
            unseen: None,
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_clean_report_says_so() {
        let report = report(Vec::new());
        assert!(report.is_clean());
        assert!(report.to_string().ends_with("no difference\n"), "{report}");
        assert_eq!(report.latency(0.5), Duration::from_millis(50));
        assert_eq!(report.latency(0.99), Duration::from_millis(99));
    }

    #[test]
    fn the_first_differences_are_named() {
        let report = report((1..=25).map(|number| format!("difference {number}.")).collect());
        assert!(!report.is_clean());
        let text = report.to_string();
        assert!(text.contains("25 differences:") && text.contains("difference 20."), "{text}");
        assert!(!text.contains("difference 21.") && text.contains("and 5 more"), "{text}");
    }

    #[test]
    fn what_could_not_be_seen_is_not_clean() {
        let report = Report { unseen: Some("no registry".to_owned()), ..report(Vec::new()) };
        assert!(!report.is_clean());
        assert!(!report.to_string().contains("no difference"));
    }
}
