//! The signal that something was committed.

use std::sync::Arc;

use tokio::sync::watch;

/// Signals the relay that the outbox may have new rows. Carries no data: the relay reads the outbox. Clones are the
/// same signal.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let wake = tourin_shared_events::outbox::Wake::new();
/// let mut listener = wake.listen();
/// wake.clone().notify();
/// listener.notified().await;
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Wake(Arc<watch::Sender<u64>>);

impl Default for Wake {
    fn default() -> Self {
        Self::new()
    }
}

impl Wake {
    /// A signal that was not given yet.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// Call it after a commit that appended to the outbox. Cheap, and never waits.
    pub fn notify(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Listens for every signal from now on.
    pub fn listen(&self) -> WakeListener {
        WakeListener(self.0.subscribe(), self.clone())
    }
}

/// One listener's view of a [`Wake`].
#[derive(Debug)]
pub struct WakeListener(
    watch::Receiver<u64>,
    #[expect(
        dead_code,
        reason = "keeps the signal alive: waiting never ends for want of a sender"
    )]
    Wake,
);

impl WakeListener {
    /// Waits for a signal since the last time this returned. Safe to drop and call again.
    pub async fn notified(&mut self) {
        self.0.changed().await.expect("the listener itself keeps the sender alive");
    }
}
