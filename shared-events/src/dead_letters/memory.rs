//! Dead letters in memory, for tests.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use uuid::Uuid;

use super::{CUT, DeadLetter, DeadLetterStore, MAX_LIST, Settled};

/// Keeps dead letters for as long as it lives.
#[derive(Debug, Default)]
pub struct MemoryDeadLetters(Mutex<Vec<DeadLetter>>);

impl MemoryDeadLetters {
    fn lock(&self) -> MutexGuard<'_, Vec<DeadLetter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl DeadLetterStore for MemoryDeadLetters {
    async fn put(&self, letter: DeadLetter) -> anyhow::Result<()> {
        let mut letters = self.lock();
        match letters.iter_mut().find(|other| other.is_same_event(&letter)) {
            Some(other) => {
                other.reason = letter.reason;
                other.attempts = letter.attempts;
                other.headers = letter.headers;
                other.failed_at = letter.failed_at;
                other.replay_requested = false;
            }
            None => letters.push(letter),
        }
        Ok(())
    }

    async fn list(&self, limit: u32, before: Option<Uuid>) -> anyhow::Result<Vec<DeadLetter>> {
        let mut letters = self.lock().clone();
        letters.retain(|letter| before.is_none_or(|before| letter.id < before));
        letters.sort_by_key(|letter| std::cmp::Reverse(letter.id));
        letters.truncate(usize::try_from(limit.min(MAX_LIST))?);
        Ok(letters)
    }

    async fn count(&self) -> anyhow::Result<u64> {
        Ok(self.lock().len() as u64)
    }
    async fn get(&self, id: Uuid) -> anyhow::Result<Option<DeadLetter>> {
        Ok(self.lock().iter().find(|letter| letter.id == id).cloned())
    }

    async fn replay(&self, ids: &[Uuid]) -> anyhow::Result<Vec<Settled>> {
        let mut letters = self.lock();
        let mut mark = |id: &Uuid| match letters.iter_mut().find(|letter| letter.id == *id) {
            None => Settled::Gone,
            Some(letter) if letter.is_cut() => Settled::Failed(CUT.to_owned()),
            Some(letter) => {
                letter.replay_requested = true;
                Settled::Accepted
            }
        };
        Ok(ids.iter().map(&mut mark).collect())
    }

    async fn discard(&self, ids: &[Uuid]) -> anyhow::Result<Vec<Settled>> {
        let mut letters = self.lock();
        let mut delete = |id: &Uuid| {
            let before = letters.len();
            letters.retain(|letter| letter.id != *id);
            if letters.len() < before { Settled::Done } else { Settled::Gone }
        };
        Ok(ids.iter().map(&mut delete).collect())
    }

    async fn requested(&self, queue: &str, limit: u32) -> anyhow::Result<Vec<DeadLetter>> {
        let letters = self.lock();
        let marked = letters.iter().filter(|letter| letter.replay_requested);
        Ok(marked.filter(|letter| letter.queue == queue).take(limit as usize).cloned().collect())
    }

    async fn finish_replay(&self, id: Uuid) -> anyhow::Result<()> {
        self.lock().retain(|letter| letter.id != id || !letter.replay_requested);
        Ok(())
    }
}
