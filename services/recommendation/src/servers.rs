//! The servers that stores live on, where they are not embedded: waiting for them, and seeing when
//! they go and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tourin_chassis::health::Dependency;
use tourin_shared_events::backoff::Backoff;

use crate::app::ports::PortError;

/// Checks in a row that must fail before a server counts as gone: one lost packet is no outage.
const GONE_AFTER: u32 = 2;

/// How often servers are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How often a server that answers is asked whether it still does. Default 1 s.
    pub check_interval: Duration,
    /// Waits between attempts to reach one that is not there. Default 100 ms doubling to at most
    /// 2 s, half of it random.
    pub reconnect: Backoff,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            check_interval: Duration::from_secs(1),
            reconnect: Backoff {
                base: Duration::from_millis(100),
                max: Duration::from_secs(2),
                jitter: 0.5,
            },
        }
    }
}

/// A server that some of the stores live on.
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

    /// Whether it answers.
    async fn check(&self) -> Result<(), PortError>;
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
        () = follow(server.as_ref(), &ready, &prepared, pace) => {}
        () = stop.cancelled() => {}
    }
}

async fn follow(
    server: &dyn Server,
    ready: &Dependency,
    prepared: &watch::Sender<bool>,
    pace: Pace,
) {
    let (name, address) = (server.name(), server.address());
    let mut failures: u32 = 0;
    let mut is_present = false;
    loop {
        let answer = if is_present { server.check().await } else { server.prepare().await };
        match answer {
            Ok(()) => {
                failures = 0;
                if !is_present {
                    tracing::info!(server = name, address, "server is there");
                    ready.set_ready();
                    prepared.send_replace(true);
                    is_present = true;
                }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                if is_present && failures >= GONE_AFTER {
                    tracing::warn!(server = name, address, %error, "server is gone");
                    is_present = false;
                } else if !is_present && failures.is_power_of_two() {
                    // Not a line a second for as long as an outage lasts.
                    tracing::warn!(server = name, address, failures, %error, "waiting for server");
                }
                if !is_present || failures >= GONE_AFTER {
                    ready.set_unready(format!("waiting for {name} at {address}: {error}"));
                }
            }
        }
        let pause =
            if failures == 0 { pace.check_interval } else { pace.reconnect.after(failures) };
        tokio::time::sleep(pause).await;
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
        prepared: AtomicU32,
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

        async fn check(&self) -> Result<(), PortError> {
            self.answer()
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

        fake.answers.store(false, Ordering::SeqCst);
        reason(Some(unready)).await;

        fake.answers.store(true, Ordering::SeqCst);
        reason(None).await;
        assert_eq!(fake.prepared.load(Ordering::SeqCst), 2);
        stop.cancel();
        watcher.await.unwrap();
    }
}
