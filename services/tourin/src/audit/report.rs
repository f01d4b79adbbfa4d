//! The report of an audit.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use super::backlog::Backlog;
use super::comparison::{Comparison, Row};
use super::schedule::RequestStats;
use super::settling::WaitOutcome;

/// Exit code when all differences may be late effects.
const OPEN: u8 = 3;
/// Maximum number of differences that are printed.
const NAMED: usize = 20;

/// The table's columns. Late effects are also found.
const COLUMNS: [&str; 8] =
    ["acknowledged", "unknown", "found", "late", "waiting", "missing", "doubled", "uncaused"];

/// The report.
#[derive(Debug)]
pub struct Report {
    /// The last comparison.
    pub comparison: Comparison,
    /// Statistics of the requests.
    pub stats: RequestStats,
    /// Attempts without a response or with a 5xx status; a request may have several.
    pub failed_attempts: u64,
    /// Attempts after the first of a request.
    pub retries: u64,
    /// From the last response until effects had arrived, or until the wait ended.
    pub settled_in: Duration,
    /// Why the wait for effects ended.
    pub outcome: WaitOutcome,
    /// The last backlog, if it could be read.
    pub backlog: Option<Backlog>,
    /// Time after the last response in which effects were due.
    pub due_in: Duration,
    /// From the last response until the last late effect.
    pub late_by: Option<Duration>,
    /// Why the last observation failed, if it did.
    pub unseen: Option<String>,
    /// Notes for the reader.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether everything was observed and agrees.
    pub fn is_clean(&self) -> bool {
        self.unseen.is_none() && self.comparison.differences.is_empty()
    }

    /// Whether all differences may be effects that are still to come.
    pub fn is_open(&self) -> bool {
        let Comparison { differences, mendable, .. } = &self.comparison;
        let has_ended_early = matches!(self.outcome, WaitOutcome::Stalled | WaitOutcome::OutOfTime);
        has_ended_early
            && self.unseen.is_none()
            && !self.is_clean()
            && differences.len() == *mendable
    }

    /// 0 without a difference, 3 when all may be effects that are still to come, else 1.
    pub fn exit_code(&self) -> ExitCode {
        if self.is_clean() {
            ExitCode::SUCCESS
        } else if self.is_open() {
            ExitCode::from(OPEN)
        } else {
            ExitCode::FAILURE
        }
    }

    fn lateness(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(late_by) = self.late_by {
            writeln!(
                f,
                "late: effects were due {:.1} s after the last answer, and the last came after {:.1} s",
                self.due_in.as_secs_f64(),
                late_by.as_secs_f64()
            )?;
        }
        let why = match self.outcome {
            WaitOutcome::Agreed | WaitOutcome::Drained => return Ok(()),
            WaitOutcome::Stalled => "nothing has moved any more",
            WaitOutcome::OutOfTime => "the longest wait is over (--max-wait)",
        };
        match self.backlog {
            Some(backlog) => writeln!(f, "still in flight: {backlog}; {why}"),
            None => writeln!(f, "it is not known what is still in flight; {why}"),
        }
    }

    /// Requests that failed after all attempts.
    pub fn failed(&self) -> u64 {
        self.stats.failed.values().sum()
    }

    /// The latency of this quantile of the successful requests.
    pub fn latency(&self, share: f64) -> Duration {
        let mut sorted = self.stats.latencies.clone();
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
        for column in COLUMNS {
            write!(f, " {column:>12}")?;
        }
        writeln!(f)?;
        for (name, row) in rows {
            let Row { acknowledged, unknown, found, late, waiting, missing, doubled, uncaused } =
                row;
            write!(f, "{name:<16}")?;
            for count in [acknowledged, unknown, found, late, waiting, missing, doubled, uncaused] {
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
        let RequestStats { requests, not_made, failed, .. } = &self.stats;
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
        self.lateness(f)?;
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
        if self.is_open() {
            writeln!(f, "{} effects may still come, or are lost:", differences.len())?;
        } else {
            writeln!(f, "{} differences:", differences.len())?;
        }
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
            stats: RequestStats {
                requests: 100,
                latencies: (1..=100).map(Duration::from_millis).collect(),
                ..RequestStats::default()
            },
            failed_attempts: 0,
            retries: 0,
            settled_in: Duration::from_secs(1),
            outcome: WaitOutcome::Drained,
            backlog: None,
            due_in: Duration::from_secs(30),
            late_by: None,
            unseen: None,
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_clean_report_is_printed_as_clean() {
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
    fn an_incomplete_observation_is_not_clean() {
        let report = Report { unseen: Some("no registry".to_owned()), ..report(Vec::new()) };
        assert!(!report.is_clean());
        assert!(!report.to_string().contains("no difference"));
    }

    #[test]
    fn a_late_effect_is_no_difference() {
        let late = Report { late_by: Some(Duration::from_secs(90)), ..report(Vec::new()) };
        assert!(late.is_clean());
        let text = late.to_string();
        assert!(text.contains("due 30.0 s after") && text.contains("came after 90.0 s"), "{text}");
        assert!(text.ends_with("no difference\n"), "{text}");
    }

    #[test]
    fn pending_effects_are_neither_clean_nor_lost() {
        let mut open = report(vec!["a bookmark less".to_owned()]);
        open.comparison.mendable = 1;
        assert!(!open.is_open(), "nothing waits any more");
        open.outcome = WaitOutcome::Stalled;
        open.backlog = Some(Backlog { outbox: 3, queues: 9, handled: 1, is_drained: false });
        assert!(open.is_open() && !open.is_clean());
        let text = open.to_string();
        assert!(text.contains("3 events in core's outbox, 9 with consumers"), "{text}");
        assert!(text.contains("1 effects may still come, or are lost:"), "{text}");
        open.comparison.differences.push("listed 2 times".to_owned());
        assert!(!open.is_open(), "no event mends that");
    }
}
