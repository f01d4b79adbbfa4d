//! Deliveries that are out, for the adapters that keep their queues in memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::{Settle, SettleError, Settlement};
use crate::dead_letters::{DeadLetter, DeadLetterStore};

/// How long a delivery waits when its dead letter could not be stored.
const DEAD_LETTER_RETRY: Duration = Duration::from_secs(1);

/// What becomes of an entry that was out.
#[derive(Debug)]
pub(super) enum Fate {
    /// It is settled for good.
    Finished,
    /// It goes out again after a while.
    Again(Duration),
    /// It goes out again after a while, and this was no attempt.
    Later(Duration),
    /// It was abandoned, and goes out again as soon as possible.
    Back,
}

/// How often an entry went out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tries {
    pub(super) attempt: u32,
    pub(super) waits: u32,
}

impl Tries {
    /// It goes out as the attempt of this number, from 1.
    pub(super) fn at(attempt: u32) -> Self {
        Self { attempt, waits: 0 }
    }

    /// Counts how its last delivery ended.
    pub(super) fn ended(&mut self, fate: &Fate) {
        let count =
            if matches!(fate, Fate::Later(_)) { &mut self.waits } else { &mut self.attempt };
        *count = count.saturating_add(1);
    }
}

/// A queue whose entries go out and come back.
pub(super) trait Origin: Send + Sync + 'static {
    /// An event in the queue.
    type Entry: Send + Sync;
    /// Where in the queue an entry belongs.
    type Place: Send + Sync;

    /// Takes an entry back.
    fn end(&self, place: &Self::Place, entry: Self::Entry, fate: Fate);

    /// The record of giving an entry up.
    fn dead_letter(&self, entry: &Self::Entry, reason: String) -> DeadLetter;

    /// The dead letter that the entry is a replay of.
    fn replay_of(&self, entry: &Self::Entry) -> Option<Uuid>;

    /// Where such records are kept.
    fn dead_letters(&self) -> &dyn DeadLetterStore;
}

/// An entry that is out. Dropped without having been settled, it goes back.
pub(super) struct Unsettled<O: Origin> {
    origin: Arc<O>,
    place: O::Place,
    entry: Option<O::Entry>,
}

impl<O: Origin> Unsettled<O> {
    pub(super) fn new(origin: Arc<O>, place: O::Place, entry: O::Entry) -> Self {
        Self { origin, place, entry: Some(entry) }
    }

    /// Before the entry ends: as long as it has not, nobody takes the letter's mark for one to be carried out again.
    async fn replay_carried_out(&self) -> Result<(), SettleError> {
        let letter = self.entry.as_ref().and_then(|entry| self.origin.replay_of(entry));
        match (letter, self.origin.dead_letters().replay_requests()) {
            (Some(id), Some(requests)) => requests.carried_out(id).await.map_err(SettleError),
            _ => Ok(()),
        }
    }

    fn end(&mut self, fate: Fate) {
        if let Some(entry) = self.entry.take() {
            self.origin.end(&self.place, entry, fate);
        }
    }
}

impl<O: Origin> Drop for Unsettled<O> {
    fn drop(&mut self) {
        self.end(Fate::Back);
    }
}

#[async_trait]
impl<O: Origin> Settle for Unsettled<O> {
    async fn settle(mut self: Box<Self>, settlement: Settlement) -> Result<(), SettleError> {
        match settlement {
            Settlement::Ack => {
                let recorded = self.replay_carried_out().await;
                self.end(Fate::Finished);
                recorded?;
            }
            Settlement::Retry { after } => self.end(Fate::Again(after)),
            Settlement::Wait { after } => self.end(Fate::Later(after)),
            Settlement::DeadLetter { reason } => {
                if let Some(entry) = &self.entry {
                    let letter = self.origin.dead_letter(entry, reason);
                    if let Err(error) = self.origin.dead_letters().put(letter).await {
                        self.end(Fate::Again(DEAD_LETTER_RETRY));
                        return Err(SettleError(error));
                    }
                }
                // The letter of the same event has lost its mark by now; one whose event has no id goes here.
                let recorded = self.replay_carried_out().await;
                self.end(Fate::Finished);
                recorded?;
            }
        }
        Ok(())
    }
}
