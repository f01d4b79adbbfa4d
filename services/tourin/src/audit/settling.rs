//! The wait for effects.
//!
//! Effects are due some time after the last response. One that comes later is *late*. One that has not
//! come when no event waits any more, in core's outbox or for a consumer, is *missing*: an effect is
//! committed before its event leaves the backlog. If the backlog stands still, or remains after the
//! longest wait, it is open which of the two it is.

use std::time::Duration;

use super::backlog::Backlog;
use super::comparison::Comparison;

/// One observation of the mesh.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample<'a> {
    /// Time since the last response.
    pub elapsed: Duration,
    /// The backlog, read first; `None` if it could not be read.
    pub backlog: Option<Backlog>,
    /// The comparison; `None` if the mesh could not be observed.
    pub seen: Option<&'a Comparison>,
}

/// Why the wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitOutcome {
    /// Everything agreed twice in a row.
    Agreed,
    /// No event waits any more.
    Drained,
    /// Events may wait, and nothing has changed for the time in which effects are due.
    Stalled,
    /// Events still move at the end of the longest wait.
    OutOfTime,
}

/// The progress of the wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Time since the last response.
    pub elapsed: Duration,
    /// Whether effects that come from now on are late.
    pub is_overdue: bool,
    /// Differences in the last observation.
    pub differences: usize,
    /// The backlog, if it could be read.
    pub backlog: Option<Backlog>,
}

/// The wait.
#[derive(Debug)]
pub(super) struct Settling {
    settle: Duration,
    max_wait: Duration,
    /// The comparison when effects were due.
    due: Option<Comparison>,
    /// The time of the last observation, if everything agreed in it.
    agreed_at: Option<Duration>,
    moved_at: Duration,
    /// When a missing effect last came.
    came_at: Duration,
    progress: Progress,
}

impl Settling {
    /// Effects are due after `settle`; the wait ends after `max_wait` at the latest.
    pub fn new(settle: Duration, max_wait: Duration) -> Self {
        Self {
            settle,
            max_wait,
            due: None,
            agreed_at: None,
            moved_at: Duration::ZERO,
            came_at: Duration::ZERO,
            progress: Progress::default(),
        }
    }

    /// Takes an observation. `Some` ends the wait.
    pub fn sample(&mut self, sample: Sample<'_>) -> Option<WaitOutcome> {
        let Sample { elapsed, backlog, seen } = sample;
        let before = self.progress;
        let is_overdue = elapsed >= self.settle;
        let differences = seen.map_or(before.differences, |seen| seen.differences.len());
        self.progress = Progress { elapsed, is_overdue, differences, backlog };
        if differences < before.differences {
            self.came_at = elapsed;
        }
        if differences != before.differences || backlog != before.backlog {
            self.moved_at = elapsed;
        }
        let agrees = seen.is_some_and(|seen| seen.differences.is_empty());
        if agrees && self.agreed_at.is_some() {
            return Some(WaitOutcome::Agreed);
        }
        self.agreed_at = agrees.then_some(elapsed);
        if !is_overdue || agrees {
            return None;
        }
        if self.due.is_none() {
            self.due = seen.cloned();
        }
        let is_drained = backlog.is_some_and(|backlog| backlog.is_drained);
        if is_drained && seen.is_some() {
            Some(WaitOutcome::Drained)
        } else if elapsed >= self.moved_at.max(self.settle) + self.settle {
            Some(WaitOutcome::Stalled)
        } else if elapsed >= self.max_wait {
            Some(WaitOutcome::OutOfTime)
        } else {
            None
        }
    }

    /// Time from the last response until everything agreed, or until the wait ended.
    pub fn settled_in(&self) -> Duration {
        self.agreed_at.unwrap_or(self.progress.elapsed)
    }

    /// The progress.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Time from the last response until the last late effect.
    pub fn late_by(&self) -> Option<Duration> {
        self.due.as_ref().and(Some(self.came_at)).filter(|came_at| *came_at >= self.settle)
    }

    /// Marks the late effects in the last comparison.
    pub fn mark_late(&self, comparison: &mut Comparison) {
        if let Some(due) = &self.due {
            comparison.trend_effects.late_since(due.trend_effects);
            comparison.replica_entries.late_since(due.replica_entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: u64 = 30;
    const MAX_WAIT: u64 = 600;

    fn missing(count: u64) -> Comparison {
        let mut comparison = Comparison::default();
        comparison.trend_effects.missing = count;
        comparison.differences = (0..count).map(|number| number.to_string()).collect();
        comparison
    }

    fn waiting(events: u64) -> Option<Backlog> {
        Some(Backlog { outbox: events, queues: 0, handled: 0, is_drained: events == 0 })
    }

    struct Wait(Settling);

    impl Wait {
        fn new() -> Self {
            let seconds = Duration::from_secs;
            Self(Settling::new(seconds(SETTLE), seconds(MAX_WAIT)))
        }

        fn at(&mut self, second: u64, lost: u64, backlog: Option<Backlog>) -> Option<WaitOutcome> {
            let seen = missing(lost);
            let elapsed = Duration::from_secs(second);
            self.0.sample(Sample { elapsed, backlog, seen: Some(&seen) })
        }
    }

    #[test]
    fn two_agreements_in_a_row_end_the_wait() {
        let mut wait = Wait::new();
        assert_eq!(wait.at(1, 3, waiting(3)), None);
        assert_eq!(wait.at(2, 0, waiting(0)), None);
        assert_eq!(wait.at(4, 0, waiting(0)), Some(WaitOutcome::Agreed));
        assert_eq!(wait.0.late_by(), None);
    }

    #[test]
    fn a_single_agreement_does_not_end_the_wait() {
        let mut wait = Wait::new();
        assert_eq!(wait.at(1, 0, waiting(0)), None);
        assert_eq!(wait.at(3, 1, waiting(0)), None);
        assert_eq!(wait.at(4, 0, waiting(0)), None);
        assert_eq!(wait.at(6, 0, waiting(0)), Some(WaitOutcome::Agreed));
    }

    #[test]
    fn an_effect_after_its_deadline_is_late_and_not_missing() {
        let mut wait = Wait::new();
        // By the old rule this was the end, with 1,724 effects missing.
        assert_eq!(wait.at(30, 1_724, waiting(3_000)), None);
        assert!(wait.0.progress().is_overdue);
        assert_eq!(wait.at(80, 2, waiting(9)), None);
        assert_eq!(wait.at(90, 0, waiting(0)), None);
        assert_eq!(wait.at(92, 0, waiting(0)), Some(WaitOutcome::Agreed));
        assert_eq!(wait.0.late_by(), Some(Duration::from_secs(90)));
        let mut seen = missing(0);
        wait.0.mark_late(&mut seen);
        assert_eq!((seen.trend_effects.late, seen.replica_entries.late), (1_724, 0));
    }

    #[test]
    fn effects_absent_after_the_backlog_drained_are_missing() {
        let mut wait = Wait::new();
        assert_eq!(wait.at(29, 2, waiting(0)), None, "it is not due");
        assert_eq!(wait.at(30, 2, waiting(1)), None, "something waits");
        assert_eq!(wait.at(40, 1, waiting(0)), Some(WaitOutcome::Drained));
        assert_eq!(wait.0.late_by(), Some(Duration::from_secs(40)));
        let mut seen = missing(1);
        wait.0.mark_late(&mut seen);
        assert_eq!((seen.trend_effects.late, seen.trend_effects.missing), (1, 1));
    }

    #[test]
    fn a_backlog_that_stands_still_leaves_it_open() {
        let mut wait = Wait::new();
        assert_eq!(wait.at(10, 5, waiting(7)), None);
        assert_eq!(wait.at(59, 5, waiting(7)), None);
        assert_eq!(wait.at(60, 5, waiting(7)), Some(WaitOutcome::Stalled));
        assert_eq!(wait.0.late_by(), None);
    }

    #[test]
    fn a_backlog_that_moves_is_waited_for_within_bounds() {
        let mut wait = Wait::new();
        for second in (0..MAX_WAIT).step_by(10) {
            assert_eq!(wait.at(second, 5, waiting(10_000 - second)), None, "{second} s");
        }
        assert_eq!(wait.at(MAX_WAIT, 5, waiting(1)), Some(WaitOutcome::OutOfTime));
    }

    #[test]
    fn waiting_for_an_unreadable_state_is_bounded() {
        let mut wait = Wait::new();
        let blind =
            |second| Sample { elapsed: Duration::from_secs(second), backlog: None, seen: None };
        assert_eq!(wait.0.sample(blind(1)), None);
        assert_eq!(wait.0.sample(blind(59)), None);
        assert_eq!(wait.0.sample(blind(60)), Some(WaitOutcome::Stalled));
    }
}
