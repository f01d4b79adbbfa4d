//! Dead letters marked for replay, for adapters whose subscribers do the replays.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use tokio::time::{Instant, sleep_until};

use crate::dead_letters::{DeadLetter, DeadLetterStore};

/// How often to look for marks, which another process may have set.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The most replays of one queue at a time, for its subscribers in one process.
const AT_ONCE: u32 = 32;

/// Watches for the replay marks of one queue.
pub(super) struct Replays {
    queue: String,
    store: Arc<dyn DeadLetterStore>,
    look_at: Instant,
    looking: Option<BoxFuture<'static, anyhow::Result<Vec<DeadLetter>>>>,
}

impl Replays {
    pub(super) fn new(queue: &str, store: Arc<dyn DeadLetterStore>) -> Self {
        Self { queue: queue.to_owned(), store, look_at: Instant::now(), looking: None }
    }

    /// Waits for marked letters and returns them, those whose replay is already running included.
    ///
    /// Safe to drop and call again: it continues from the same state.
    pub(super) async fn next(&mut self) -> Vec<DeadLetter> {
        loop {
            if self.looking.is_none() {
                sleep_until(self.look_at).await;
            }
            let looking = self.looking.get_or_insert_with(|| {
                let (queue, store) = (self.queue.clone(), self.store.clone());
                async move { store.requested(&queue, AT_ONCE).await }.boxed()
            });
            let found = looking.await;
            self.looking = None;
            self.look_at = Instant::now() + LOOK_EVERY;
            match found {
                Ok(letters) if letters.is_empty() => {}
                Ok(letters) => return letters,
                Err(error) => {
                    let (queue, error) = (&self.queue, format!("{error:#}"));
                    tracing::warn!(queue, error, "cannot look for dead letters to replay");
                }
            }
        }
    }
}
