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
    /// Events that core has committed and the bus has not taken.
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
    is_drained: bool,
}

/// What core says.
#[derive(Debug, Clone, Copy, Deserialize)]
struct CoreBacklog {
    pending: u64,
    oldest: Option<DateTime<Utc>>,
}

/// What an instance of recommendation says.
#[derive(Debug, Clone, Copy, Deserialize)]
struct ConsumerBacklog {
    waiting: u64,
    handled: u64,
}

impl DrainCheck {
    /// The audit has made its last write.
    pub fn now() -> Self {
        Self { last_write: Utc::now(), is_drained: false }
    }

    /// Weighs what core said, and after it each consumer.
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
        assert!(!is_drained(core(0, 0), &[]), "nobody is there who could have");
        assert!(is_drained(core(0, 0), &[consumer(0), consumer(0)]));
        // Committed long after the audit's last write.
        assert!(is_drained(core(2, -60_000), &[consumer(0)]));
    }

    #[test]
    fn what_was_drained_once_stays_so() {
        let mut until = DrainCheck::now();
        assert!(until.judge(core(0, 0), &[consumer(0)]).is_drained);
        assert!(until.judge(core(0, 0), &[consumer(5)]).is_drained);
    }
}
