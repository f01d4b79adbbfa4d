//! The servers of the stores, or the embedded file: waits for them, and reports outages, refused
//! writes and recoveries.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tourin_chassis::config::ReadinessSettings;
use tourin_chassis::health::{Dependency, Outcomes, StoreState, StoreWatch, Trouble};
use tourin_shared_events::backoff::Backoff;
use tourin_shared_events::sqlite;

use crate::app::ports::PortError;

/// The intervals of probes and reconnections.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The interval between write probes of a server that answers. Default 2 s.
    pub check_interval: Duration,
    /// Waits between attempts to reach a server. Default 100 ms doubling to at most 2 s, half of it
    /// random.
    pub reconnect: Backoff,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            check_interval: ReadinessSettings::default().interval(),
            reconnect: Backoff {
                base: Duration::from_millis(100),
                max: Duration::from_secs(2),
                jitter: 0.5,
            },
        }
    }
}

/// A server of stores, or the embedded file.
#[async_trait]
pub trait Server: Send + Sync {
    /// The name in readiness and logs, such as `redis`.
    fn name(&self) -> &'static str;

    /// The address, without credentials.
    fn address(&self) -> &str;

    /// The counters since the stores were opened.
    fn stats(&self) -> Arc<ServerStats>;

    /// Connects and prepares the schema for this version. Repeating it changes nothing.
    async fn prepare(&self) -> Result<(), PortError>;

    /// Makes a small write like an event's. The error shows whether the server refuses it or does
    /// not answer.
    async fn write_probe(&self) -> Result<(), PortError>;

    /// The outcomes of requests to its stores.
    fn outcomes(&self) -> &Outcomes;
}

/// Why a server refuses, for drivers whose error types do not show it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub &'static str);

/// What a failure shows about the server, for operators and without data of the event or request.
pub(crate) fn trouble(error: &PortError) -> Trouble {
    let (PortError::Unavailable(cause) | PortError::Failed(cause)) = error;
    let refusal = if let Some(Refusal(reason)) = cause.downcast_ref() {
        Some((*reason).to_owned())
    } else if let Some(error) = cause.downcast_ref::<redis::RedisError>() {
        tourin_chassis::redis::refusal(error).map(str::to_owned)
    } else if let Some(error) = cause.downcast_ref::<sqlx::Error>() {
        sqlite::refusal(error)
    } else {
        None
    };
    match refusal {
        Some(reason) => Trouble::Refuses(reason),
        None => Trouble::Away(error.to_string()),
    }
}

/// A request was not sent, because the last probe failed. Requests fail at once until a probe
/// succeeds.
#[derive(Debug, thiserror::Error)]
#[error("{0}: the server is unavailable")]
pub(crate) struct BreakerOpen(pub &'static str);

/// Counters of a server.
#[derive(Debug, Default)]
pub struct ServerStats {
    commands: AtomicU64,
    in_progress: AtomicU64,
    max: Option<u64>,
}

/// The current operations on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operations {
    /// Operations in progress, each on its own connection.
    pub under_way: u64,
    /// Operations that wait for a permit.
    pub waiting: u64,
    /// The maximum number of operations in progress.
    pub max: u64,
}

/// Counts an operation until it is dropped.
pub(crate) struct InProgress<'a>(&'a AtomicU64);

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ServerStats {
    /// Counters of a server with at most `max` operations in progress.
    pub(crate) fn bounded(max: u32) -> Self {
        Self { max: Some(u64::from(max)), ..Self::default() }
    }

    /// Counts an operation, beginning before it waits for a permit.
    pub(crate) fn operation(&self) -> InProgress<'_> {
        self.in_progress.fetch_add(1, Ordering::Relaxed);
        InProgress(&self.in_progress)
    }

    /// The current operations; `None` for a server without a limit.
    pub fn operations(&self) -> Option<Operations> {
        let (max, in_progress) = (self.max?, self.in_progress.load(Ordering::Relaxed));
        let under_way = in_progress.min(max);
        Some(Operations { under_way, waiting: in_progress - under_way, max })
    }

    /// Commands sent, each with one round trip.
    pub fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self) {
        self.commands.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a server has been prepared at least once.
#[derive(Debug, Clone)]
pub struct Prepared(watch::Receiver<bool>);

impl Prepared {
    /// For stores without a server.
    pub fn already() -> Self {
        Self(watch::channel(true).1)
    }

    /// Not prepared yet; send `true` once it is.
    pub fn later() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Runs `work` once the server is prepared, unless `stop` comes first. Work that writes much waits
    /// here, so that no index is built while documents arrive.
    pub async fn then(mut self, work: impl Future<Output = ()>, stop: CancellationToken) {
        let is_prepared = async {
            if self.0.wait_for(|prepared| *prepared).await.is_err() {
                // The sender is gone: the service stops.
                std::future::pending::<()>().await;
            }
        };
        if stop.run_until_cancelled(is_prepared).await.is_some() {
            work.await;
        }
    }
}

/// Waits for a server, then watches it until `stop`. Reports its state to `ready` and `prepared`. A
/// server that comes back is prepared again, because it may be empty.
pub async fn supervise(
    server: Arc<dyn Server>,
    ready: Dependency,
    prepared: watch::Sender<bool>,
    pace: Pace,
    stop: CancellationToken,
) {
    tokio::select! {
        () = follow(server, &ready, &prepared, pace) => {}
        () = stop.cancelled() => {}
    }
}

async fn follow(
    server: Arc<dyn Server>,
    ready: &Dependency,
    prepared: &watch::Sender<bool>,
    pace: Pace,
) {
    let name = format!("{} at {}", server.name(), server.address());
    let mut losses = 0;
    loop {
        wait_for(server.as_ref(), ready, pace).await;
        tracing::info!(server = name, "server is available");
        prepared.send_replace(true);
        let probed = Arc::clone(&server);
        let probe = move || {
            let server = Arc::clone(&probed);
            async move { server.write_probe().await.map_err(|error| trouble(&error)) }
        };
        let mut watch = StoreWatch::new(server.outcomes().clone(), pace.check_interval, probe);
        let mut state = watch.begin().await;
        loop {
            match &state {
                StoreState::Works => {
                    losses = 0;
                    tracing::info!(server = name, "server accepts writes");
                }
                StoreState::Troubled(Trouble::Refuses(why)) => {
                    tracing::warn!(server = name, why, "server refuses writes");
                }
                StoreState::Troubled(Trouble::Away(why)) => {
                    tracing::warn!(server = name, why, "server is unavailable");
                    ready.set_unready(format!("waiting for {name}: {why}"));
                    // Without this pause, a server that answers `prepare` but no write would make the
                    // loop spin.
                    tokio::time::sleep(pace.reconnect.after(losses)).await;
                    losses += 1;
                    break;
                }
            }
            state.report(&name, ready);
            state = watch.changed().await;
        }
    }
}

/// Returns once the server is prepared.
async fn wait_for(server: &dyn Server, ready: &Dependency, pace: Pace) {
    let (name, address) = (server.name(), server.address());
    let mut failures: u32 = 0;
    while let Err(error) = server.prepare().await {
        failures = failures.saturating_add(1);
        if failures.is_power_of_two() {
            // Ever rarer, so that a long outage does not fill the log.
            tracing::warn!(server = name, address, failures, %error, "waiting for server");
        }
        ready.set_unready(format!("waiting for {name} at {address}: {error}"));
        tokio::time::sleep(pace.reconnect.after(failures)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use tourin_chassis::health::Health;

    use super::*;

    #[test]
    fn operations_beyond_the_limit_wait_and_dropped_ones_do_not_count() {
        let stats = ServerStats::bounded(2);
        let mut in_progress: Vec<_> = (0..3).map(|_| stats.operation()).collect();
        let now = |under_way, waiting| Some(Operations { under_way, waiting, max: 2 });
        assert_eq!(stats.operations(), now(2, 1));
        in_progress.pop();
        assert_eq!(stats.operations(), now(2, 0));
        drop(in_progress);
        assert_eq!(stats.operations(), now(0, 0));
        assert_eq!(ServerStats::default().operations(), None);
    }

    #[derive(Default)]
    struct Fake {
        answers: AtomicBool,
        is_full: AtomicBool,
        prepared: AtomicU32,
        outcomes: Outcomes,
    }

    impl Fake {
        fn answer(&self) -> Result<(), PortError> {
            if self.answers.load(Ordering::SeqCst) {
                Ok(())
            } else {
                Err(PortError::unavailable(anyhow::anyhow!("connection refused")))
            }
        }
    }

    #[async_trait]
    impl Server for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }

        fn address(&self) -> &str {
            "there:1"
        }

        fn stats(&self) -> Arc<ServerStats> {
            Arc::default()
        }

        async fn prepare(&self) -> Result<(), PortError> {
            self.answer()?;
            self.prepared.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        async fn write_probe(&self) -> Result<(), PortError> {
            self.answer()?;
            if self.is_full.load(Ordering::SeqCst) {
                let error =
                    anyhow::anyhow!("no space left on device").context(Refusal("disk full"));
                return Err(PortError::unavailable(error));
            }
            Ok(())
        }

        fn outcomes(&self) -> &Outcomes {
            &self.outcomes
        }
    }

    #[tokio::test]
    async fn readiness_follows_a_server_that_comes_goes_and_comes_back() {
        let fake = Arc::new(Fake::default());
        let health = Health::new();
        let stop = CancellationToken::new();
        let ready = health.register("fake");
        let wait = Duration::from_millis(1);
        let pace = Pace {
            check_interval: wait,
            reconnect: Backoff { base: wait, max: wait, jitter: 0.0 },
        };
        let (sender, prepared) = Prepared::later();
        let (began, has_begun) = tokio::sync::oneshot::channel();
        let work = async { began.send(()).unwrap() };
        let working = tokio::spawn(prepared.then(work, stop.clone()));
        let watcher = tokio::spawn(supervise(fake.clone(), ready, sender, pace, stop.clone()));
        let unready = "waiting for fake at there:1: unreachable: connection refused";
        let reason = async |expected: Option<&str>| {
            let end = tokio::time::Instant::now() + Duration::from_secs(10);
            while health.unready().get("fake").map(String::as_str) != expected {
                assert!(tokio::time::Instant::now() < end, "still {:?}", health.unready());
                tokio::time::sleep(wait).await;
            }
        };

        reason(Some(unready)).await;
        assert!(!working.is_finished(), "not before the server is prepared");
        fake.answers.store(true, Ordering::SeqCst);
        reason(None).await;
        has_begun.await.unwrap();

        fake.is_full.store(true, Ordering::SeqCst);
        reason(Some("fake at there:1: disk full")).await;
        fake.is_full.store(false, Ordering::SeqCst);
        reason(None).await;
        assert_eq!(fake.prepared.load(Ordering::SeqCst), 1, "it was available all the time");

        fake.answers.store(false, Ordering::SeqCst);
        reason(Some(unready)).await;

        fake.answers.store(true, Ordering::SeqCst);
        reason(None).await;
        assert_eq!(fake.prepared.load(Ordering::SeqCst), 2);
        stop.cancel();
        watcher.await.unwrap();
    }
}
