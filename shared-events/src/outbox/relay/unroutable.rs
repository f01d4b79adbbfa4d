//! Events that the bus cannot route yet, kept out of the way of others.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::outbox::Shard;
use crate::trace::EventSpan;

/// The most ordering keys that are held back at once. At the bound the relay reads no further until the next round.
const MAX_KEYS: usize = 65_536;
/// The most events whose span stays open between rounds. Beyond it a span ends as an error, and the next attempt starts
/// a new one.
const MAX_SPANS: usize = 1_024;
/// The time after which it is worth a warning.
const WARN_AFTER: Duration = Duration::from_secs(10);
/// The interval between warnings.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// The longest wait between rounds up to [`WARN_AFTER`]: services start in any order, and a consumer may bind soon.
const SHORT_WAIT: Duration = Duration::from_secs(1);

/// The ordering keys whose next event is unroutable. Their rows are not kept in memory. The relay skips them, and in
/// each round it forgets the keys and reads from the oldest row again. So any number of such rows leaves room for
/// others, and no event overtakes another one of its key.
#[derive(Debug, Default)]
pub(super) struct Unroutable {
    hasher: RandomState,
    /// Hashes of the keys. Two keys with the same hash only wait for each other.
    keys: HashSet<u64>,
    retry_at: Option<Instant>,
    rounds: u32,
    /// The row that has been unroutable for longest, and since when.
    oldest: Option<(u64, Instant)>,
    warned_at: Option<Instant>,
    /// By the row's number: one span for all rounds of an event.
    spans: HashMap<u64, (Shard, EventSpan)>,
}

impl Unroutable {
    /// Holds back the key of an unroutable row until the next round.
    pub(super) fn hold(&mut self, key: &str, seq: u64, now: Instant, backoff: &Backoff) {
        let (_, since) = *self.oldest.get_or_insert((seq, now));
        if self.retry_at.is_none() {
            self.rounds = self.rounds.saturating_add(1);
            let longest = if now - since < WARN_AFTER { SHORT_WAIT } else { backoff.max };
            self.retry_at = Some(now + backoff.after(self.rounds).min(longest));
        }
        self.keys.insert(self.hasher.hash_one(key));
    }

    /// Keeps the span of a row that is held back.
    pub(super) fn keep(&mut self, seq: u64, shard: Shard, span: EventSpan, class: &'static str) {
        if self.spans.len() < MAX_SPANS {
            self.spans.insert(seq, (shard, span));
        } else {
            span.fail(class);
        }
    }

    /// The span of a row from an earlier round.
    pub(super) fn resume(&mut self, seq: u64) -> Option<EventSpan> {
        self.spans.remove(&seq).map(|(_, span)| span)
    }

    /// Forgets the rows of other shards; their owners report them.
    pub(super) fn retain(&mut self, shards: &[Shard]) {
        self.spans.retain(|_, (shard, span)| {
            let stays = shards.contains(shard);
            if !stays {
                span.fail("unroutable");
            }
            stays
        });
    }

    /// A row was confirmed.
    pub(super) fn confirmed(&mut self, seq: u64) {
        if self.oldest.is_some_and(|(oldest, _)| oldest == seq) {
            self.oldest = None;
            self.rounds = 0;
        }
    }

    pub(super) fn holds(&self, key: &str) -> bool {
        !self.keys.is_empty() && self.keys.contains(&self.hasher.hash_one(key))
    }

    pub(super) fn keys(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.keys.len() >= MAX_KEYS
    }

    /// When the next round is due; `None` when nothing is held back.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Begins the next round: all keys are tried again.
    pub(super) fn next_round(&mut self) {
        self.keys.clear();
        self.retry_at = None;
    }

    /// How long rows have been unroutable, when a warning is due.
    pub(super) fn warning(&mut self, now: Instant) -> Option<Duration> {
        let (_, since) = self.oldest?;
        let held = now - since;
        let due = held > WARN_AFTER && self.warned_at.is_none_or(|at| now - at >= WARN_INTERVAL);
        due.then(|| {
            self.warned_at = Some(now);
            held
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff =
        Backoff { base: Duration::from_millis(50), max: Duration::from_secs(5), jitter: 0.0 };

    #[test]
    fn a_warning_comes_after_ten_seconds_and_then_once_a_minute() {
        let start = Instant::now();
        let mut unroutable = Unroutable::default();
        let mut warned = Vec::new();
        for second in 0..140 {
            let now = start + Duration::from_secs(second);
            unroutable.next_round();
            unroutable.hold("a", 7, now, &BACKOFF);
            if unroutable.warning(now).is_some() {
                warned.push(second);
            }
        }
        assert_eq!(warned, [11, 71, 131]);
        unroutable.confirmed(7);
        let now = start + Duration::from_secs(600);
        unroutable.hold("a", 8, now, &BACKOFF);
        assert_eq!(unroutable.warning(now), None, "another row has only begun to wait");
    }

    #[test]
    fn rounds_are_a_second_apart_at_most_while_services_may_be_starting() {
        let start = Instant::now();
        let mut unroutable = Unroutable::default();
        let mut waits = Vec::new();
        for second in 0..14 {
            let now = start + Duration::from_secs(second);
            unroutable.next_round();
            unroutable.hold("a", 7, now, &BACKOFF);
            unroutable.hold("b", 8, now + Duration::from_millis(9), &BACKOFF);
            waits.push((unroutable.retry_at().unwrap() - now).as_millis());
        }
        assert_eq!(waits[..7], [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(waits[10..], [5000, 5000, 5000, 5000]);
        assert!(unroutable.holds("a") && unroutable.holds("b") && !unroutable.holds("c"));
    }
}
