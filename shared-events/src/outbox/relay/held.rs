//! The in-memory state of the shards that a relay holds.

use std::collections::{BTreeMap, HashSet};

use tokio::time::Instant;

use crate::bus::{LaneKey, Lanes};
use crate::outbox::{Claim, Pending, Shard};
use crate::trace::EventSpan;

/// An event in flight.
pub(super) struct Queued {
    pub(super) pending: Pending,
    /// Failures of any kind, in this process.
    pub(super) failures: u32,
    /// Its span, from the first attempt until the relay forgets the event.
    pub(super) span: Option<EventSpan>,
}

/// An event that was taken, and its lane.
pub(super) struct InFlight {
    pub(super) key: LaneKey,
    pub(super) queued: Queued,
    /// The shard's epoch in which it was taken. In a later epoch it is void.
    epoch: u64,
}

/// A shard that this relay holds.
struct HeldShard {
    epoch: u64,
    /// The end of the lease.
    until: Instant,
    lanes: Lanes<Queued>,
    /// Numbers read and not yet marked: waiting, out or confirmed.
    known: HashSet<u64>,
    in_flight: usize,
    /// Released as soon as nothing is out and everything is marked.
    leaving: bool,
}

/// All held shards.
#[derive(Default)]
pub(super) struct Held {
    shards: BTreeMap<Shard, HeldShard>,
    epochs: u64,
    /// The next shard for round robin.
    turn: Shard,
}

impl Held {
    /// Applies a claim whose leases run until `until`. Returns whether it brought a new shard.
    pub(super) fn claimed(&mut self, claim: &Claim, until: Instant) -> bool {
        self.shards.retain(|shard, _| claim.shards.contains(shard));
        let mut gained = false;
        for shard in &claim.shards {
            let epochs = &mut self.epochs;
            let held = self.shards.entry(*shard).or_insert_with(|| {
                gained = true;
                *epochs += 1;
                HeldShard {
                    epoch: *epochs,
                    until,
                    lanes: Lanes::default(),
                    known: HashSet::new(),
                    in_flight: 0,
                    leaving: false,
                }
            });
            held.until = until;
        }
        let staying = self.shards.values().filter(|held| !held.leaving).count();
        let surplus = staying.saturating_sub(claim.fair_share());
        // Always the last ones, so that the same shards leave each time.
        for held in self.shards.values_mut().rev().filter(|held| !held.leaving).take(surplus) {
            held.leave();
        }
        gained
    }

    /// Forgets the shards whose lease has ended.
    pub(super) fn drop_ended(&mut self, now: Instant) -> usize {
        let before = self.shards.len();
        self.shards.retain(|_, held| now < held.until);
        before - self.shards.len()
    }

    /// The shards to read, by number.
    pub(super) fn to_read(&self) -> Vec<Shard> {
        self.shards.iter().filter(|(_, held)| !held.leaving).map(|(shard, _)| *shard).collect()
    }

    /// Leaving shards that can be released now, provided that every confirmed row is marked.
    pub(super) fn to_release(&self) -> Vec<Shard> {
        let idle = self.shards.iter().filter(|(_, held)| held.leaving && held.in_flight == 0);
        idle.map(|(shard, _)| *shard).collect()
    }

    pub(super) fn forget(&mut self, shards: &[Shard]) {
        self.shards.retain(|shard, _| !shards.contains(shard));
    }

    pub(super) fn len(&self) -> usize {
        self.shards.len()
    }

    /// Rows in memory.
    pub(super) fn rows(&self) -> usize {
        self.shards.values().map(|held| held.known.len()).sum()
    }

    /// Queues a row; `false` when it is queued already or its shard is not held.
    pub(super) fn push(&mut self, pending: Pending) -> bool {
        let Some(held) = self.shards.get_mut(&pending.shard).filter(|held| !held.leaving) else {
            return false;
        };
        if !held.known.insert(pending.seq) {
            return false;
        }
        let key = pending.event.ordering_key.clone();
        held.lanes.push(Some(&key), Queued { pending, failures: 0, span: None });
        true
    }

    /// The next row, of a shard whose lease runs beyond `safe`. Shards are served round robin.
    pub(super) fn take(&mut self, now: Instant, safe: Instant) -> Option<InFlight> {
        let turn = self.turn;
        let (before, from) = {
            let mut before: Vec<_> = self.shards.iter_mut().collect();
            let from = before.split_off(before.partition_point(|(shard, _)| **shard < turn));
            (before, from)
        };
        for (shard, held) in from.into_iter().chain(before) {
            if held.leaving || held.until <= safe {
                continue;
            }
            if let Some((key, queued)) = held.lanes.take(now) {
                held.in_flight += 1;
                self.turn = shard.wrapping_add(1);
                return Some(InFlight { key, queued, epoch: held.epoch });
            }
        }
        None
    }

    /// When the next row that waits for a retry is due.
    pub(super) fn next_due(&self, after: Instant) -> Option<Instant> {
        self.shards.values().filter_map(|held| held.lanes.next_due()).filter(|at| *at > after).min()
    }

    /// It was confirmed or dead-lettered: the next of its key may go. It stays known until [`marked`](Self::marked).
    pub(super) fn done(&mut self, in_flight: &InFlight) {
        if let Some(held) = self.holding(in_flight) {
            held.lanes.done(&in_flight.key);
        }
    }

    /// It goes again at `at`, before all others of its key.
    pub(super) fn again(&mut self, in_flight: InFlight, at: Instant) {
        if let Some(held) = self.holding(&in_flight) {
            held.lanes.again(&in_flight.key, in_flight.queued, at);
        }
    }

    /// Forgets the row and those behind it; all are read again.
    pub(super) fn drop_key(&mut self, in_flight: &InFlight) {
        if let Some(held) = self.holding(in_flight) {
            held.known.remove(&in_flight.queued.pending.seq);
            for behind in held.lanes.drop_lane(&in_flight.key) {
                held.known.remove(&behind.pending.seq);
            }
        }
    }

    /// The store has recorded the row's outcome.
    pub(super) fn marked(&mut self, shard: Shard, seq: u64) {
        if let Some(held) = self.shards.get_mut(&shard) {
            held.known.remove(&seq);
        }
    }

    /// Counts the event as no longer out, and returns its shard if this relay still holds it.
    fn holding(&mut self, in_flight: &InFlight) -> Option<&mut HeldShard> {
        let held = self.shards.get_mut(&in_flight.queued.pending.shard)?;
        if held.epoch != in_flight.epoch {
            return None;
        }
        held.in_flight -= 1;
        (!held.leaving).then_some(held)
    }
}

impl HeldShard {
    /// Leaves waiting rows to the next owner, and waits only for those that are out.
    fn leave(&mut self) {
        self.leaving = true;
        self.lanes = Lanes::default();
        self.known.clear();
    }
}
