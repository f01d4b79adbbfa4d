//! Dead letters in memory, for tests.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use uuid::Uuid;

use super::{DeadLetter, DeadLetterStore, MAX_LIST};

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
        let same = letters.iter_mut().find(|other| {
            letter.event_id.is_some()
                && other.event_id == letter.event_id
                && other.queue == letter.queue
        });
        match same {
            Some(other) => {
                other.reason = letter.reason;
                other.attempts = letter.attempts;
                other.failed_at = letter.failed_at;
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
}
