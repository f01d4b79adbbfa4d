//! TLS handshakes that are not over yet, bounded in number and time.
//!
//! A peer that connects and says nothing costs a connection and no more than that. Beyond the bound the
//! oldest handshake ends: a real one takes milliseconds, so the one that waits longest is the least likely to be one.
//! The connection of a client without a certificate of the mesh stays within the same bounds after its handshake,
//! or anybody could hold as many as there are file descriptors. Its one purpose is to join, by a single call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Time for a handshake, from the connection's beginning.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The open handshakes of a listener.
pub(super) struct Handshakes {
    max: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    /// By number, and so by age.
    ends: BTreeMap<u64, CancellationToken>,
}

/// Why a handshake did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cut {
    #[error("the handshake takes too long")]
    TooSlow,
    #[error("too many handshakes at once, of which this was the oldest")]
    TooMany,
}

/// An open handshake.
pub(super) struct Handshake {
    number: u64,
    end: CancellationToken,
    of: Arc<Handshakes>,
}

impl Handshakes {
    /// At most `max` at once.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, open: Mutex::default() })
    }

    /// Begins one. Ends the oldest if there are too many.
    pub fn begin(self: &Arc<Self>) -> Handshake {
        let mut open = self.open();
        if open.ends.len() >= self.max
            && let Some((_, oldest)) = open.ends.pop_first()
        {
            oldest.cancel();
        }
        open.last += 1;
        let (number, end) = (open.last, CancellationToken::new());
        open.ends.insert(number, end.clone());
        Handshake { number, end, of: Arc::clone(self) }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handshake {
    /// Does a part of it within the bounds.
    pub async fn run<T>(&self, handshake: impl Future<Output = T>) -> Result<T, Cut> {
        tokio::select! {
            done = tokio::time::timeout(TIMEOUT, handshake) => done.map_err(|_| Cut::TooSlow),
            () = self.end.cancelled() => Err(Cut::TooMany),
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.of.open().ends.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_handshake_has_a_time_and_gives_way_when_it_is_the_oldest_of_too_many() {
        let handshakes = Handshakes::new(2);
        let (began, slow) = (Instant::now(), handshakes.begin());
        assert_eq!(slow.run(pending::<()>()).await, Err(Cut::TooSlow));
        assert_eq!(began.elapsed(), TIMEOUT);
        drop(slow);

        let (first, second) = (handshakes.begin(), handshakes.begin());
        let third = handshakes.begin();
        let began = Instant::now();
        assert_eq!(first.run(pending::<()>()).await, Err(Cut::TooMany));
        assert_eq!(began.elapsed(), Duration::ZERO);
        // One that is over makes room.
        assert_eq!(second.run(ready(7)).await, Ok(7));
        drop(second);
        let _fourth = handshakes.begin();
        assert_eq!(third.run(ready(8)).await, Ok(8));
        drop(third);
        assert_eq!(handshakes.open().ends.len(), 1);
    }
}
