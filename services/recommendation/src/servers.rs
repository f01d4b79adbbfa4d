//! What stores live on, a server or the embedded file: waiting for it, and seeing when it goes, when it refuses
//! writes, and when it is back.

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

/// How often servers are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How often a server that answers is asked whether it still takes a write. Default 2 s.
    pub check_interval: Duration,
    /// Waits between attempts to reach one that is not there. Default 100 ms doubling to at most
    /// 2 s, half of it random.
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

/// What some of the stores live on: a server, or the embedded file.
#[async_trait]
pub trait Server: Send + Sync {
    /// Its name in readiness and logs, such as `redis`.
    fn name(&self) -> &'static str;

    /// Where it is, without credentials.
    fn address(&self) -> &str;

    /// What it has been asked, since the stores were opened.
    fn stats(&self) -> Arc<ServerStats>;

    /// Connects and brings what is kept there up to what this version needs. Doing it again changes
    /// nothing.
    async fn prepare(&self) -> Result<(), PortError>;

    /// Makes a small write as an event does, to see whether it takes one; a server that answers nothing at all is told
    /// from one that refuses.
    async fn write_probe(&self) -> Result<(), PortError>;

    /// How what is asked of the stores on it ends.
    fn outcomes(&self) -> &Outcomes;
}

/// Why a server refuses, where its own error does not say so by its type.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub &'static str);

/// What a failure says of what a store lives on, in words for an operator and without anything of the event or request.
pub(crate) fn trouble(error: &PortError) -> Trouble {
    let (PortError::Unavailable(cause) | PortError::Failed(cause)) = error;
    let refusal = if let Some(Refusal(words)) = cause.downcast_ref() {
        Some((*words).to_owned())
    } else if let Some(error) = cause.downcast_ref::<redis::RedisError>() {
        tourin_chassis::redis::refusal(error).map(str::to_owned)
    } else if let Some(error) = cause.downcast_ref::<sqlx::Error>() {
        sqlite::refusal(error)
    } else {
        None
    };
    match refusal {
        Some(words) => Trouble::Refuses(words),
        None => Trouble::Away(error.to_string()),
    }
}

/// A server was not asked: the last look at it found it gone, and until one finds it back nobody waits
/// for it.
#[derive(Debug, thiserror::Error)]
#[error("{0}: the server is gone")]
pub(crate) struct BreakerOpen(pub &'static str);

/// What a server has been asked. Shared with whoever exports or compares it.
#[derive(Debug, Default)]
pub struct ServerStats {
    commands: AtomicU64,
    in_hand: AtomicU64,
    most: Option<u64>,
}

/// Operations on a server that are in hand at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operations {
    /// Each on a connection of its own.
    pub under_way: u64,
    /// For their turn.
    pub waiting: u64,
    /// That may be under way at once.
    pub most: u64,
}

/// An operation in hand, until it is dropped.
pub(crate) struct InHand<'a>(&'a AtomicU64);

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ServerStats {
    /// Of a server that serves `most` operations at once.
    pub(crate) fn bounded(most: u32) -> Self {
        Self { most: Some(u64::from(most)), ..Self::default() }
    }

    /// Counts an operation, from before it waits for its turn.
    pub(crate) fn operation(&self) -> InHand<'_> {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        InHand(&self.in_hand)
    }

    /// What is in hand now; `None` for a server on which nothing waits for its turn.
    pub fn operations(&self) -> Option<Operations> {
        let (most, in_hand) = (self.most?, self.in_hand.load(Ordering::Relaxed));
        let under_way = in_hand.min(most);
        Some(Operations { under_way, waiting: in_hand - under_way, most })
    }

    /// Commands sent, each of them one round trip.
    pub fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self) {
        self.commands.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a server has been prepared, once at least.
#[derive(Debug, Clone)]
pub struct Prepared(watch::Receiver<bool>);

impl Prepared {
    /// For stores that live on no server.
    pub fn already() -> Self {
        Self(watch::channel(true).1)
    }

    /// Not yet, and what says so when it is.
    pub fn later() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Runs what writes much to the server once it is prepared, so that no index is built while
    /// documents arrive; or nothing, when `stop` comes before.
    pub async fn then(mut self, work: impl Future<Output = ()>, stop: CancellationToken) {
        let is_prepared = async {
            if self.0.wait_for(|prepared| *prepared).await.is_err() {
                // Nobody prepares it any more: the service stops.
                std::future::pending::<()>().await;
            }
        };
        if stop.run_until_cancelled(is_prepared).await.is_some() {
            work.await;
        }
    }
}

/// Waits for a server, then watches it, until `stop`; `ready` and `prepared` say what it sees. A
/// server that comes back is prepared anew: it may have come back empty.
pub async fn watch_over(
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
    let mut gone_at_once = 0;
    loop {
        wait_for(server.as_ref(), ready, pace).await;
        tracing::info!(server = name, "server is there");
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
                    gone_at_once = 0;
                    tracing::info!(server = name, "server takes writes");
                }
                StoreState::Troubled(Trouble::Refuses(why)) => {
                    tracing::warn!(server = name, why, "server refuses");
                }
                StoreState::Troubled(Trouble::Away(why)) => {
                    tracing::warn!(server = name, why, "server is gone");
                    ready.set_unready(format!("waiting for {name}: {why}"));
                    // It may answer what prepares it, and no write.
                    tokio::time::sleep(pace.reconnect.after(gone_at_once)).await;
                    gone_at_once += 1;
                    break;
                }
            }
            state.report(&name, ready);
            state = watch.changed().await;
        }
    }
}

/// Comes back once the server has been prepared.
async fn wait_for(server: &dyn Server, ready: &Dependency, pace: Pace) {
    let (name, address) = (server.name(), server.address());
    let mut failures: u32 = 0;
    while let Err(error) = server.prepare().await {
        failures = failures.saturating_add(1);
        if failures.is_power_of_two() {
            // Not a line a second for as long as an outage lasts.
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
    fn what_is_in_hand_beyond_the_bound_waits_and_what_is_given_up_is_not_in_hand() {
        let stats = ServerStats::bounded(2);
        let mut in_hand: Vec<_> = (0..3).map(|_| stats.operation()).collect();
        let now = |under_way, waiting| Some(Operations { under_way, waiting, most: 2 });
        assert_eq!(stats.operations(), now(2, 1));
        in_hand.pop();
        assert_eq!(stats.operations(), now(2, 0));
        drop(in_hand);
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
        let watcher = tokio::spawn(watch_over(fake.clone(), ready, sender, pace, stop.clone()));
        let unready = "waiting for fake at there:1: out of reach: connection refused";
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
        assert_eq!(fake.prepared.load(Ordering::SeqCst), 1, "it was there all the time");

        fake.answers.store(false, Ordering::SeqCst);
        reason(Some(unready)).await;

        fake.answers.store(true, Ordering::SeqCst);
        reason(None).await;
        assert_eq!(fake.prepared.load(Ordering::SeqCst), 2);
        stop.cancel();
        watcher.await.unwrap();
    }
}
