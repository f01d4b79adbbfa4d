//! What is still on its way from a write to its effects: in core's outbox, at the broker, in the hands
//! of the recommendation service.

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;

use super::observation::{CORE, Observer, RECOMMENDATION};

/// By how much core's clock may be ahead of the audit's for an event of the audit's to be known as one
/// that may be (milliseconds). Younger events in the outbox are somebody else's.
const CLOCKS_DIFFER_MS: i64 = 5_000;

/// What waits, as far as the mesh can tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Events that core has committed and the bus has not taken; without a bus, those that core's log
    /// is ahead of the slowest reader.
    pub outbox: u64,
    /// Events that wait for a consumer or are in its hands, at the instance that has the most.
    pub queues: u64,
    /// Events that consumers are done with.
    pub handled: u64,
    /// No event of the audit's waits anywhere.
    pub is_drained: bool,
}

/// What must be gone before nothing of the audit's is on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct DrainCheck {
    last_write: DateTime<Utc>,
    /// The end of core's log once the last write was in it.
    log_end: Option<u64>,
    is_drained: bool,
}

/// What core says.
#[derive(Debug, Clone, Copy, Deserialize)]
struct CoreBacklog {
    pending: u64,
    oldest: Option<DateTime<Utc>>,
    last: u64,
}

/// What an instance of recommendation says.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConsumerBacklog {
    waiting: u64,
    handled: u64,
    settled_to: Option<u64>,
}

impl DrainCheck {
    /// The audit has made its last write.
    pub fn now() -> Self {
        Self { last_write: Utc::now(), log_end: None, is_drained: false }
    }

    /// Weighs what core said, and after it each consumer.
    fn judge(&mut self, core: CoreBacklog, consumers: &[ConsumerBacklog]) -> Backlog {
        let queues = consumers.iter().map(|each| each.waiting).max().unwrap_or_default();
        // Consumers that follow core's log need no bus: nothing leaves the outbox then.
        let settled_to = consumers.iter().filter_map(|each| each.settled_to).min();
        let log_end = *self.log_end.get_or_insert(core.last);
        let (outbox, has_left) = match settled_to {
            Some(settled_to) => (core.last.saturating_sub(settled_to), settled_to >= log_end),
            None => {
                let last_write = self.last_write + TimeDelta::milliseconds(CLOCKS_DIFFER_MS);
                let is_younger = core.oldest.is_some_and(|oldest| oldest > last_write);
                (core.pending, core.pending == 0 || is_younger)
            }
        };
        // Once drained, what comes is of others.
        self.is_drained |= has_left && queues == 0 && !consumers.is_empty();
        Backlog {
            outbox,
            queues,
            handled: consumers.iter().map(|each| each.handled).sum(),
            is_drained: self.is_drained,
        }
    }
}

impl Observer {
    /// What waits.
    ///
    /// # Errors
    /// When an instance cannot be asked.
    pub(super) async fn backlog(&self, until: &mut DrainCheck) -> anyhow::Result<Backlog> {
        const PATH: &str = "/internal/events/backlog";
        let cores = self.instances_of(CORE).await?;
        let (_, core) = cores.first().context("no core")?;
        // First core: what has left its outbox by then is with a consumer, or done with.
        let core = self.read(CORE, *core, PATH).await.context("what waits at core")?;
        let mut consumers = Vec::new();
        for (instance, address) in self.instances_of(RECOMMENDATION).await? {
            let answer = self.read(RECOMMENDATION, address, PATH).await;
            consumers.push(answer.with_context(|| format!("what waits at {instance}"))?);
        }
        Ok(until.judge(core, &consumers))
    }
}

impl std::fmt::Display for Backlog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} events in core's outbox, {} with consumers", self.outbox, self.queues)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(pending: u64, age_ms: i64, last: u64) -> CoreBacklog {
        let oldest = (pending > 0).then(|| Utc::now() - TimeDelta::milliseconds(age_ms));
        CoreBacklog { pending, oldest, last }
    }

    fn consumer(waiting: u64, settled_to: Option<u64>) -> ConsumerBacklog {
        ConsumerBacklog { waiting, handled: 3, settled_to }
    }

    #[test]
    fn a_bus_is_drained_when_neither_outbox_nor_consumers_hold_anything_of_the_audits() {
        let is_drained = |core, consumers: &[ConsumerBacklog]| {
            DrainCheck::now().judge(core, consumers).is_drained
        };
        assert!(!is_drained(core(2, 0, 9), &[consumer(0, None)]));
        assert!(!is_drained(core(0, 0, 9), &[consumer(0, None), consumer(1, None)]));
        assert!(!is_drained(core(0, 0, 9), &[]), "nobody is there who could have");
        assert!(is_drained(core(0, 0, 9), &[consumer(0, None), consumer(0, None)]));
        // Committed long after the audit's last write.
        assert!(is_drained(core(2, -60_000, 9), &[consumer(0, None)]));
    }

    #[test]
    fn a_log_is_drained_when_its_readers_have_come_to_where_it_ended() {
        let mut until = DrainCheck::now();
        // Nothing leaves the outbox without a bus.
        let backlog = until.judge(core(40, 60_000, 40), &[consumer(3, Some(12))]);
        assert_eq!((backlog.outbox, backlog.is_drained), (28, false));
        let backlog = until.judge(core(45, 60_000, 45), &[consumer(0, Some(40))]);
        assert_eq!((backlog.outbox, backlog.is_drained), (5, true), "what came since is of others");
    }

    #[test]
    fn what_was_drained_once_stays_so() {
        let mut until = DrainCheck::now();
        assert!(until.judge(core(0, 0, 9), &[consumer(0, None)]).is_drained);
        assert!(until.judge(core(0, 0, 12), &[consumer(5, None)]).is_drained);
    }
}
