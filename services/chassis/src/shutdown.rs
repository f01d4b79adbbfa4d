//! Stopping in order: one signal that everybody sees, and an owner for every background task.

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::context::FutureExt;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::count_panic;
use crate::telemetry::Service;

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
/// A task must end soon after the [`Shutdown`] that its owner was made with. One that ends before
/// is a failure, for nothing would do its work any more: it is logged, the service is stopped where
/// [`Tasks::or_stop`] says so, and [`Tasks::finish`] tells of it.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    shutdown: Shutdown,
    on_failure: Option<Shutdown>,
    failed: Arc<OnceLock<&'static str>>,
    running: Arc<Mutex<Vec<AbortHandle>>>,
    context: Context,
}

impl Tasks {
    /// An owner without tasks.
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            tracker: TaskTracker::new(),
            shutdown,
            on_failure: None,
            failed: Arc::default(),
            running: Arc::default(),
            context: Context::new(),
        }
    }

    /// The same, whose tasks' log lines and spans are `service`'s.
    #[must_use]
    pub fn of_service(mut self, service: &Service) -> Self {
        self.context = service.context();
        self
    }

    /// The same, but a task that ends too early begins `stop`: a service without its relay, say, is
    /// better started anew by whoever supervises it than left half alive.
    #[must_use]
    pub fn or_stop(mut self, stop: Shutdown) -> Self {
        self.on_failure = Some(stop);
        self
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
        let running = tokio::spawn(task.with_context(self.context.clone()));
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push(running.abort_handle());
        let owner = self.clone();
        let context = self.context.clone();
        let watch = async move {
            match running.await {
                Ok(()) if owner.shutdown.is_begun() => tracing::debug!(task = name, "task ended"),
                Err(error) if error.is_cancelled() => tracing::warn!(task = name, "task dropped"),
                Ok(()) => owner.fail(name, "it ended before the service"),
                Err(error) => {
                    count_panic();
                    owner.fail(name, &error.to_string());
                }
            }
        };
        self.tracker.spawn(watch.with_context(context));
    }

    fn fail(&self, name: &'static str, reason: &str) {
        tracing::error!(task = name, reason, "a background task failed");
        // The first failure is the one to tell of; others may follow from it.
        let _first = self.failed.set(name);
        if let Some(stop) = &self.on_failure {
            stop.begin();
        }
    }

    /// Waits for all tasks to end, at most `limit`; those left then are dropped.
    ///
    /// # Errors
    /// When a task had ended too early.
    pub async fn finish(self, limit: Duration) -> anyhow::Result<()> {
        self.tracker.close();
        if tokio::time::timeout(limit, self.tracker.wait()).await.is_err() {
            for task in self.running.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                task.abort();
            }
            self.tracker.wait().await;
        }
        match self.failed.get() {
            Some(name) => Err(anyhow::anyhow!("the background task '{name}' failed")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_dies_stops_the_service() {
        let stop = Shutdown::new();
        let end = Shutdown::new();
        let tasks = Tasks::new(end.clone()).or_stop(stop.clone());
        let until_end = end.clone();
        tasks.spawn("lives", async move { until_end.begun().await });
        tasks.spawn("dies", async { panic!("boom") });
        tokio::time::timeout(Duration::from_secs(5), stop.begun()).await.expect("it stops");
        end.begin();
        let error = tasks.finish(Duration::from_secs(5)).await.unwrap_err().to_string();
        assert!(error.contains("'dies'"), "{error}");
    }

    #[tokio::test]
    async fn a_task_that_does_not_end_is_dropped_after_the_limit() {
        let end = Shutdown::new();
        let tasks = Tasks::new(end.clone());
        tasks.spawn("stuck", std::future::pending());
        end.begin();
        tasks.finish(Duration::from_millis(20)).await.unwrap();
    }
}
