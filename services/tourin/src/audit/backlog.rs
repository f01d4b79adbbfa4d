//! Events between a write and its effects: in core's outbox, at the broker, in the recommendation
//! service.

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;

use super::observation::{CORE, Observer, RECOMMENDATION};

/// By how much core's clock may be ahead of the audit's (milliseconds). Events that are younger than the
/// last write by more than this are other traffic.
const CLOCKS_DIFFER_MS: i64 = 5_000;

/// The waiting events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Events that core has committed and the bus has not taken.
    pub outbox: u64,
    /// Events that wait for a consumer or are being handled, at the instance with the most.
    pub queues: u64,
    /// Events that consumers have handled.
    pub handled: u64,
    /// Whether no event of the audit waits anywhere.
    pub is_drained: bool,
}

/// Decides when no event of the audit waits any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct DrainCheck {
    last_write: DateTime<Utc>,
    is_drained: bool,
}

/// Core's response.
#[derive(Debug, Clone, Copy, Deserialize)]
struct CoreBacklog {
    pending: u64,
    oldest: Option<DateTime<Utc>>,
}

/// The response of an instance of recommendation.
#[derive(Debug, Clone, Copy, Deserialize)]
struct ConsumerBacklog {
    waiting: u64,
    handled: u64,
}

impl DrainCheck {
    /// Called after the audit's last write.
    pub fn now() -> Self {
        Self { last_write: Utc::now(), is_drained: false }
    }

    /// Combines the responses of core and, read after it, of the consumers.
    fn judge(&mut self, core: CoreBacklog, consumers: &[ConsumerBacklog]) -> Backlog {
        let queues = consumers.iter().map(|each| each.waiting).max().unwrap_or_default();
        let last_write = self.last_write + TimeDelta::milliseconds(CLOCKS_DIFFER_MS);
        let is_younger = core.oldest.is_some_and(|oldest| oldest > last_write);
        let has_left = core.pending == 0 || is_younger;
        // Once drained, what comes is of others.
        self.is_drained |= has_left && queues == 0 && !consumers.is_empty();
        Backlog {
            outbox: core.pending,
            queues,
            handled: consumers.iter().map(|each| each.handled).sum(),
            is_drained: self.is_drained,
        }
    }
}

impl Observer {
    /// Reads the backlog.
    ///
    /// # Errors
    /// When an instance cannot be asked.
    pub(super) async fn backlog(&self, until: &mut DrainCheck) -> anyhow::Result<Backlog> {
        const PATH: &str = "/internal/events/backlog";
        let cores = self.instances_of(CORE).await?;
        let (_, core) = cores.first().context("no core")?;
        // Core first: an event that has left its outbox is at a consumer, or handled.
        let core = self.read(CORE, *core, PATH).await.context("cannot read the backlog of core")?;
        let mut consumers = Vec::new();
        for (instance, address) in self.instances_of(RECOMMENDATION).await? {
            let answer = self.read(RECOMMENDATION, address, PATH).await;
            consumers
                .push(answer.with_context(|| format!("cannot read the backlog of {instance}"))?);
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

    fn core(pending: u64, age_ms: i64) -> CoreBacklog {
        let oldest = (pending > 0).then(|| Utc::now() - TimeDelta::milliseconds(age_ms));
        CoreBacklog { pending, oldest }
    }

    fn consumer(waiting: u64) -> ConsumerBacklog {
        ConsumerBacklog { waiting, handled: 3 }
    }

    #[test]
    fn a_bus_is_drained_when_neither_outbox_nor_consumers_hold_anything_of_the_audits() {
        let is_drained = |core, consumers: &[ConsumerBacklog]| {
            DrainCheck::now().judge(core, consumers).is_drained
        };
        assert!(!is_drained(core(2, 0), &[consumer(0)]));
        assert!(!is_drained(core(0, 0), &[consumer(0), consumer(1)]));
        assert!(!is_drained(core(0, 0), &[]), "no consumer is there");
        assert!(is_drained(core(0, 0), &[consumer(0), consumer(0)]));
        // Committed long after the audit's last write.
        assert!(is_drained(core(2, -60_000), &[consumer(0)]));
    }

    #[test]
    fn a_drained_backlog_stays_drained() {
        let mut until = DrainCheck::now();
        assert!(until.judge(core(0, 0), &[consumer(0)]).is_drained);
        assert!(until.judge(core(0, 0), &[consumer(5)]).is_drained);
    }
}
