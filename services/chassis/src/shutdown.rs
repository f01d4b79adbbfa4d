//! Stopping in order: one signal that everybody sees, and an owner for every background task.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The signal to stop. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A signal that nobody has given yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A signal that SIGINT (Ctrl-C) or SIGTERM gives. Must be called inside a tokio runtime; the
    /// listening task ends with the signal.
    ///
    /// # Errors
    /// When the operating system refuses to install a signal handler.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let shutdown = Self::new();
        let given = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => tracing::info!("interrupted; draining"),
                _ = terminate.recv() => tracing::info!("asked to terminate; draining"),
                () = given.begun() => {}
            }
            given.begin();
        });
        Ok(shutdown)
    }

    /// Gives the signal. Giving it again changes nothing.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// Whether the signal has been given.
    pub fn is_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits for the signal.
    pub async fn begun(&self) {
        self.0.cancelled().await;
    }

    /// The signal as a token, for crates that know only tokio-util.
    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}

/// The owner of a service's background tasks.
///
/// A task must end soon after the [`Shutdown`] that its owner was made with; one that ends before
/// is logged as an error, for nothing would do its work any more.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    shutdown: Shutdown,
}

impl Tasks {
    /// An owner without tasks.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { tracker: TaskTracker::new(), shutdown }
    }

    /// The signal on which the tasks stop.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Starts a task under a name for the log.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let shutdown = self.shutdown.clone();
        let running = tokio::spawn(task);
        self.tracker.spawn(async move {
            match running.await {
                Ok(()) if shutdown.is_begun() => tracing::debug!(task = name, "task ended"),
                Ok(()) => tracing::error!(task = name, "task ended before the service"),
                Err(error) => tracing::error!(task = name, %error, "task failed"),
            }
        });
    }

    /// Waits for all tasks to end, at most `limit`. Returns whether all did.
    pub async fn finish(self, limit: Duration) -> bool {
        self.tracker.close();
        let finished = tokio::time::timeout(limit, self.tracker.wait()).await.is_ok();
        if !finished {
            tracing::warn!(
                limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
                "tasks still running at the end of the drain"
            );
        }
        finished
    }
}
