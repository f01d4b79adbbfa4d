//! The servers of the stores, or the embedded file: waits for them, and reports outages, refused
//! writes and recoveries.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tourin_chassis::config::ReadinessSettings;
use tourin_chassis::health::{Dependency, StoreState, StoreWatch, Trouble};
use tourin_shared_events::backoff::Backoff;

use crate::app::ports::PortError;
use crate::operation::{Engine, trouble};

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
    /// Its engine, whose name is in readiness and logs.
    fn engine(&self) -> &Engine;

    /// The address, without credentials.
    fn address(&self) -> &str;

    /// Connects and prepares the schema for this version. Repeating it changes nothing.
    async fn prepare(&self) -> Result<(), PortError>;

    /// Makes a small write like an event's. The error shows whether the server refuses it or does
    /// not answer.
    async fn write_probe(&self) -> Result<(), PortError>;
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
    let name = format!("{} at {}", server.engine().name(), server.address());
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
        let mut watch =
            StoreWatch::new(server.engine().outcomes().clone(), pace.check_interval, probe);
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
    let (name, address) = (server.engine().name(), server.address());
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
    use tourin_testbed::{equal, eventually};

    use super::*;
    use crate::operation::Refusal;

    struct Fake {
        answers: AtomicBool,
        is_full: AtomicBool,
        prepared: AtomicU32,
        engine: Engine,
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
        fn engine(&self) -> &Engine {
            &self.engine
        }

        fn address(&self) -> &str {
            "there:1"
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
    }

    #[tokio::test]
    async fn readiness_follows_a_server_that_comes_goes_and_comes_back() {
        let fake = Arc::new(Fake {
            answers: AtomicBool::default(),
            is_full: AtomicBool::default(),
            prepared: AtomicU32::default(),
            engine: Engine::embedded("fake"),
        });
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
            eventually("the reason", async || {
                equal(health.unready().get("fake").cloned(), expected.map(str::to_owned))
            })
            .await;
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
