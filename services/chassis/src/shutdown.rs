//! Orderly shutdown: one shared signal, and an owner for every background task.

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
    /// A signal that is not given yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A signal that SIGINT (Ctrl-C) or SIGTERM gives. Must be called inside a tokio runtime. The
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
                _ = terminate.recv() => tracing::info!("terminated; draining"),
                () = given.begun() => {}
            }
            given.begin();
        });
        Ok(shutdown)
    }

    /// Gives the signal. Further calls change nothing.
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

    /// The signal as tokio-util's token, for crates without chassis.
    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}

/// The owner of a service's background tasks.
///
/// A task must end soon after the owner's [`Shutdown`]. A task that ends before has failed, because
/// its work is not done any more: this is logged, stops the service if [`Tasks::or_stop`] was
/// called, and [`Tasks::finish`] returns it as an error.
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

    /// Attributes the tasks' log lines and spans to `service`.
    #[must_use]
    pub fn of_service(mut self, service: &Service) -> Self {
        self.context = service.context();
        self
    }

    /// Makes a task that ends too early begin `stop`: a supervisor should restart a service that
    /// lacks, for example, its relay.
    #[must_use]
    pub fn or_stop(mut self, stop: Shutdown) -> Self {
        self.on_failure = Some(stop);
        self
    }

    /// The signal that stops the tasks.
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
        // Only the first failure is reported. Others may be its consequences.
        let _first = self.failed.set(name);
        if let Some(stop) = &self.on_failure {
            stop.begin();
        }
    }

    /// Waits at most `limit` for all tasks to end, then aborts the rest.
    ///
    /// # Errors
    /// When a task ended before the shutdown.
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
