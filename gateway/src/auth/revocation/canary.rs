//! Canary sessions: how soon this gateway learns that a session has ended, measured all the time.
//!
//! The gateway makes up an id that no session can have, asks core to append it to the log of ended sessions,
//! and takes the time from core's confirmation, when a member who logs out would have the 204, until its own
//! reader of the log has seen the id. Both times are of this gateway's monotonic clock, so no clocks are
//! compared. An id that is seen before the confirmation took no time.
//!
//! A canary goes to any instance of core, as other gateways' log-outs do. It is kept nowhere here.

use std::future::pending;
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tourin_chassis::metrics::{CounterBy, Histogram, Metrics};
use uuid::Uuid;

use super::Revocations;
use crate::mesh_client::{CORE, MeshClient};

const PATH: &str = "/internal/revocation-canaries";
const APPEND_TIMEOUT: Duration = Duration::from_millis(2_000);
const MAX_RESPONSE_BYTES: usize = 4 << 10;
/// A canary that takes longer is counted as lost. A reader without a connection is a second away from its
/// next attempt.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// Upper bounds in seconds. The aim is 10 ms for 99 of 100.
const BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// Settings of the measurement.
#[derive(Debug, Clone, Copy, Args)]
pub struct CanarySettings {
    /// Milliseconds between two measurements of how soon this gateway learns that a session has ended:
    /// core writes an entry for each; 0 for none
    #[arg(long, env = "TOURIN_GATEWAY_REVOCATION_CANARY_MS", value_name = "MS", default_value_t = 5_000, value_parser = value_parser!(u64).range(0..=3_600_000))]
    pub revocation_canary_ms: u64,
}

/// What became of canaries.
#[derive(Debug, Clone)]
pub struct CanaryMetrics {
    /// Seconds from core's confirmation to the entry.
    pub lag: Histogram,
    /// How many were seen, lost or not appended.
    pub outcomes: CounterBy,
}

impl CanaryMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            lag: metrics.histogram(
                "tourin_gateway_revocation_lag_seconds",
                "Time from core's confirmation that a canary session has ended until this gateway knew it",
                BUCKETS,
            ),
            outcomes: metrics.counter_by(
                "tourin_gateway_revocation_canaries",
                "Canary sessions, by what became of them",
                "outcome",
            ),
        }
    }
}

/// The canary that is awaited, and when it was seen.
#[derive(Debug, Clone, Default)]
struct Awaited {
    id: String,
    seen: Option<Instant>,
}

/// Tells canaries from sessions as the log is read.
#[derive(Debug, Default)]
pub(super) struct Canaries {
    awaited: watch::Sender<Awaited>,
    last_seen: watch::Sender<Option<Instant>>,
}

impl Canaries {
    /// Whether a session in the log is a canary, which is not kept; notes it if it is this gateway's.
    pub(super) fn catch(&self, session: &str) -> bool {
        // The version of a UUID (RFC 9562, 5.8). Sessions have 4.
        if session.as_bytes().get(14) != Some(&b'8') {
            return false;
        }
        let is_own = self.awaited.send_if_modified(|awaited| {
            let is_it = awaited.id == session && awaited.seen.is_none();
            if is_it {
                awaited.seen = Some(Instant::now());
            }
            is_it
        });
        if is_own {
            self.last_seen.send_replace(Some(Instant::now()));
        }
        true
    }

    fn expect(&self, id: &str) {
        self.awaited.send_replace(Awaited { id: id.to_owned(), seen: None });
    }

    async fn seen(&self) -> Instant {
        let mut awaited = self.awaited.subscribe();
        let seen = awaited.wait_for(|awaited| awaited.seen.is_some()).await;
        match seen.ok().and_then(|awaited| awaited.seen) {
            Some(seen) => seen,
            // The sender lives as long as `self`.
            None => pending().await,
        }
    }
}

#[derive(Serialize)]
struct Canary<'a> {
    session: &'a str,
}

impl Revocations {
    /// Time since this gateway last saw a canary of its own in the log; `None` before the first.
    pub fn canary_age(&self) -> Option<Duration> {
        self.canaries.last_seen.borrow().map(|seen| seen.elapsed())
    }

    /// Measures until `stop`.
    pub async fn measure(
        &self,
        settings: CanarySettings,
        metrics: CanaryMetrics,
        mesh: MeshClient,
        stop: CancellationToken,
    ) {
        if settings.revocation_canary_ms == 0 {
            // A task that ends before the gateway is taken for a failure.
            return stop.cancelled().await;
        }
        let every = Duration::from_millis(settings.revocation_canary_ms);
        let mut was_lost = false;
        let measuring = async {
            loop {
                tokio::time::sleep(every).await;
                let outcome = self.measure_once(&mesh, &metrics).await;
                if (outcome == "lost") != was_lost {
                    was_lost = !was_lost;
                    if was_lost {
                        tracing::warn!(
                            "core confirmed the end of a session, and this gateway did not learn of it in 10 s"
                        );
                    } else {
                        tracing::info!("ended sessions arrive again");
                    }
                }
                metrics.outcomes.increase(outcome);
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = measuring => {}
        }
    }

    /// Returns what became of the canary.
    async fn measure_once(&self, mesh: &MeshClient, metrics: &CanaryMetrics) -> &'static str {
        let id = uuid::Builder::from_custom_bytes(Uuid::new_v4().into_bytes()).into_uuid();
        let id = id.hyphenated().to_string();
        self.canaries.expect(&id);
        let canary = Canary { session: &id };
        let appended = mesh.post(CORE, PATH, &canary, APPEND_TIMEOUT, MAX_RESPONSE_BYTES).await;
        let confirmed = Instant::now();
        if let Err(error) = appended {
            tracing::debug!(error = format!("{error:#}"), "core did not append a canary session");
            return "not_appended";
        }
        match tokio::time::timeout(LOST_AFTER, self.canaries.seen()).await {
            Ok(seen) => {
                metrics.lag.observe(seen.saturating_duration_since(confirmed).as_secs_f64());
                "seen"
            }
            Err(_) => "lost",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_canary_is_caught_and_a_session_is_not() {
        let canaries = Canaries::default();
        let own = "0198c2f1-7a5b-8c3d-9e4f-0123456789ab";
        canaries.expect(own);
        assert!(!canaries.catch("0198c2f1-7a5b-4c3d-9e4f-0123456789ab"));
        assert!(canaries.catch("ffffffff-7a5b-8c3d-9e4f-0123456789ab"), "another gateway's");
        assert!(!canaries.catch(""));
        assert_eq!(canaries.awaited.borrow().seen, None);
        assert!(canaries.catch(own));
        let seen = canaries.seen().await;
        assert!(canaries.catch(own), "core appended it twice");
        assert_eq!(canaries.seen().await, seen, "the first time counts");
    }
}
