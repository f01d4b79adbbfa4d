//! The operators' view of the outbox, and their operations.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::Shard;

/// The state of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It waits for a relay, or for the bus.
    Pending,
    /// The bus cannot carry it: it is dead-lettered and waits for an operator.
    Rejected,
    /// The bus confirmed it. It is kept for a while, then pruned.
    Published,
}

/// A row of the outbox without its payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// Its number in the outbox.
    pub seq: u64,
    /// The event's id.
    pub event_id: Uuid,
    /// The event's type, which is its routing key.
    pub r#type: String,
    /// The domain's exchange.
    pub exchange: String,
    /// The key by which it is ordered.
    pub ordering_key: String,
    /// The key's shard.
    pub shard: Shard,
    /// Its state.
    pub state: State,
    /// When the change happened.
    pub occurred_at: DateTime<Utc>,
    /// When it was recorded.
    pub recorded_at: DateTime<Utc>,
    /// When the bus confirmed it.
    pub published_at: Option<DateTime<Utc>>,
    /// When it was dead-lettered.
    pub rejected_at: Option<DateTime<Utc>>,
    /// How often the bus returned it.
    pub attempts: u32,
    /// The last reason.
    pub last_error: Option<String>,
}

impl Stored {
    /// How long it has been in the outbox.
    pub fn age(&self, now: DateTime<Utc>) -> TimeDelta {
        now.signed_duration_since(self.recorded_at).max(TimeDelta::zero())
    }
}

/// Which rows to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Their state.
    pub state: State,
    /// Only rows above this number; for the next page, the last one's.
    pub after: u64,
    /// The most rows.
    pub limit: u32,
}

/// Whether an operation runs, or only reports. Both read the same rows by the same statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Nothing is changed.
    Dry,
    /// The operation changes exactly the returned rows, in transactions of up to a thousand rows.
    Real,
}

/// The outcome for the given numbers. Each number is in one of the lists, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Selected {
    /// The operation changed these (or would, in a dry run).
    pub touched: Vec<u64>,
    /// These exist, in a state that the operation does not apply to.
    pub unfit: Vec<u64>,
    /// These do not exist.
    pub missing: Vec<u64>,
}

/// An operation on a set of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Replay,
    Discard,
}

impl Operation {
    fn fits(self, state: State) -> bool {
        match self {
            Self::Replay => state != State::Pending,
            Self::Discard => state != State::Published,
        }
    }
}

pub(super) fn state_of(published_at: Option<i64>, rejected_at: Option<i64>) -> State {
    match (published_at, rejected_at) {
        (Some(_), _) => State::Published,
        (None, Some(_)) => State::Rejected,
        (None, None) => State::Pending,
    }
}

/// The requested set: each number once, in order.
pub(super) fn frozen(seqs: &[u64]) -> Vec<u64> {
    let mut seqs = seqs.to_vec();
    seqs.sort_unstable();
    seqs.dedup();
    seqs
}

impl Selected {
    /// Sorts the requested numbers by the rows found, which are in the order of numbers.
    pub(super) fn add(&mut self, operation: Operation, asked: &[u64], found: &[(u64, State)]) {
        for seq in asked {
            let place = found.binary_search_by_key(seq, |(seq, _)| *seq).ok();
            match place.map(|place| found[place].1) {
                Some(state) if operation.fits(state) => self.touched.push(*seq),
                Some(_) => self.unfit.push(*seq),
                None => self.missing.push(*seq),
            }
        }
    }
}
