//! Sliding renewal of sessions by cookie: an active client's access token is replaced before it
//! expires, or within a bounded time after.
//!
//! Core issues a new token for the session in the old one, whose signature has been verified. That
//! consumes nothing, so repeated and concurrent calls are harmless. Core decides whether the session
//! is open; an ended one is never renewed.
//!
//! A gateway sends one request per session at a time. Other calls wait for it, or continue with a token
//! that is still valid. The outcome is cached until the new token is due itself, for calls that still
//! have the old one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chrono::TimeDelta;
use http::HeaderValue;
use moka::Expiry;
use moka::future::Cache;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::metrics::CounterBy;
use tourin_chassis::session_cookies::CookieNames;
use tourin_chassis::telemetry::Span;

use super::tokens::{Member, TokenVerifier};
use crate::mesh_client::{CORE, MeshClient};

const PATH: &str = "/internal/access-tokens";
/// Time-out of core for all attempts together, and so the longest wait of a call with an expired token.
const TIMEOUT: Duration = Duration::from_millis(3_000);
/// Largest response of core (bytes): twice the longest token, and the cookie's attributes.
const MAX_RESPONSE_BYTES: usize = 20 << 10;
/// Maximum number of pending renewals. A further call continues with its token, or is answered 503 if that
/// has expired.
const MAX_PENDING: usize = 4_096;
const MAX_SESSIONS: u64 = 20_000;
/// How long it is cached that a session has ended.
const ENDED_TTL: Duration = Duration::from_secs(60);
/// How long a failure is cached, so that not every call waits for core.
const FAILURE_TTL: Duration = Duration::from_millis(500);

/// A session with its new token.
#[derive(Debug)]
pub struct Renewed {
    /// The member of the new token.
    pub member: Arc<Member>,
    /// Core's `Set-Cookie` value, marked as sensitive.
    pub cookie: HeaderValue,
}

/// The outcome of a renewal.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// A new token.
    Renewed(Arc<Renewed>),
    /// The session is not open.
    Ended,
    /// Core did not answer, or not as expected.
    Unavailable,
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Self::Renewed(_) => "renewed",
            Self::Ended => "ended",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A renewal, done or pending.
#[derive(Debug)]
pub enum Renewal {
    /// Done.
    Done(Outcome),
    /// Core has been asked.
    Pending(JoinHandle<Option<Outcome>>),
}

impl Renewal {
    /// Waits for the outcome.
    pub async fn outcome(self) -> Outcome {
        match self {
            Self::Done(outcome) => outcome,
            // `None` when the gateway is stopping; a panic is logged elsewhere.
            Self::Pending(task) => task.await.ok().flatten().unwrap_or(Outcome::Unavailable),
        }
    }

    /// The new token, if the renewal is done; does not wait.
    pub async fn if_done(self) -> Option<Arc<Renewed>> {
        if let Self::Pending(task) = &self
            && !task.is_finished()
        {
            return None;
        }
        match self.outcome().await {
            Outcome::Renewed(renewed) => Some(renewed),
            Outcome::Ended | Outcome::Unavailable => None,
        }
    }
}

struct OutcomeTtl {
    clock: SharedClock,
}

impl Expiry<String, Outcome> for OutcomeTtl {
    fn expire_after_create(&self, _: &String, outcome: &Outcome, _: Instant) -> Option<Duration> {
        Some(match outcome {
            Outcome::Renewed(renewed) => {
                let left = renewed.member.renew_from - self.clock.now();
                left.to_std().unwrap_or(Duration::ZERO)
            }
            Outcome::Ended => ENDED_TTL,
            Outcome::Unavailable => FAILURE_TTL,
        })
    }
}

#[derive(Serialize)]
struct TokenRequest<'a> {
    member: &'a str,
    session: &'a str,
    cookies: CookieNames,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenResponse {
    access_token: String,
    set_cookie: String,
}

/// Renews sessions.
pub struct SlidingSessions {
    client: Arc<TokenClient>,
    /// By session.
    outcomes: Cache<String, Outcome>,
    idle: TimeDelta,
    clock: SharedClock,
    /// The runtime of the connections to core; requests may run on another one.
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct TokenClient {
    mesh: MeshClient,
    tokens: Arc<TokenVerifier>,
    counts: CounterBy,
}

impl SlidingSessions {
    /// Renews through `mesh`, up to `idle` after a token's expiry. Must be called inside the tokio
    /// runtime in which `mesh` is used. `stop` ends pending renewals.
    pub fn new(
        mesh: MeshClient,
        tokens: Arc<TokenVerifier>,
        counts: CounterBy,
        idle: Duration,
        clock: SharedClock,
        stop: CancellationToken,
    ) -> Self {
        Self {
            client: Arc::new(TokenClient { mesh, tokens, counts }),
            outcomes: Cache::builder()
                .max_capacity(MAX_SESSIONS)
                .expire_after(OutcomeTtl { clock: Arc::clone(&clock) })
                .build(),
            idle: TimeDelta::from_std(idle).unwrap_or(TimeDelta::MAX),
            clock,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stop,
        }
    }

    /// Whether a valid token is due for renewal.
    pub fn is_due(&self, member: &Member) -> bool {
        self.clock.now() >= member.renew_from
    }

    /// Whether an expired token may still be renewed.
    pub fn is_renewable(&self, member: &Member) -> bool {
        self.clock.now() - member.expires_at < self.idle
    }

    /// Renews the session as a part of the current trace, or gives the cached outcome. `names` are those
    /// of the client's cookies.
    pub async fn renew(&self, member: &Arc<Member>, names: CookieNames) -> Renewal {
        if let Some(known) = self.outcomes.get(&member.session).await {
            return Renewal::Done(known);
        }
        if self.tasks.len() >= MAX_PENDING {
            return Renewal::Done(Outcome::Unavailable);
        }
        let (client, member) = (Arc::clone(&self.client), Arc::clone(member));
        let outcomes = self.outcomes.clone();
        let renewing = async move {
            let key = member.session.clone();
            outcomes.get_with(key, client.renew(&member, names)).await
        };
        // Not dropped with the request: other requests may wait for it.
        let renewing = Span::current().run(renewing);
        let renewing = self.stop.clone().run_until_cancelled_owned(renewing);
        Renewal::Pending(self.tasks.spawn_on(renewing, &self.runtime))
    }

    /// Waits for `stop`, then for pending renewals to end.
    pub async fn drain(&self, stop: CancellationToken) {
        stop.cancelled().await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl TokenClient {
    async fn renew(&self, old: &Member, names: CookieNames) -> Outcome {
        let outcome = match self.try_renew(old, names).await {
            Ok(Some(renewed)) => Outcome::Renewed(Arc::new(renewed)),
            Ok(None) => Outcome::Ended,
            Err(error) => {
                tracing::info!(error = format!("{error:#}"), "a session could not be renewed");
                Outcome::Unavailable
            }
        };
        self.counts.increase(outcome.name());
        outcome
    }

    async fn try_renew(
        &self,
        old: &Member,
        cookies: CookieNames,
    ) -> anyhow::Result<Option<Renewed>> {
        let asked = TokenRequest { member: &old.id, session: &old.session, cookies };
        let response = self.mesh.post(CORE, PATH, &asked, TIMEOUT, MAX_RESPONSE_BYTES).await?;
        // The parser's error is dropped, because it may contain a token.
        let issued: Option<TokenResponse> =
            serde_json::from_slice(&response).ok().context("core's response cannot be read")?;
        let Some(issued) = issued else {
            return Ok(None);
        };
        let verified = self.tokens.verify(&issued.access_token).await;
        let member = verified.ok().context("core's new token is invalid")?;
        ensure!(
            (&member.id, &member.session) == (&old.id, &old.session),
            "core's new token is another session's"
        );
        let mut cookie = HeaderValue::try_from(issued.set_cookie)
            .ok()
            .context("core's cookie is not a valid header value")?;
        cookie.set_sensitive(true);
        Ok(Some(Renewed { member, cookie }))
    }
}
