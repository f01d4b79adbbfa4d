//! Sessions that are carried by cookies slide: while a client is active, its access token is replaced
//! before, or for a bounded while after, it expires.
//!
//! Core is asked for a new token by the session that the old one names, whose signature has been
//! verified. Nothing is used up by that, so repeats, prefetches and many calls at once do no harm.
//! Core alone decides whether the session is open; an ended one is never renewed.
//!
//! Each gateway asks for a session once at a time. Everybody else waits for that answer or goes on
//! with a token that is still good. The answer is kept until the new token is due itself, for calls
//! that were on their way with the old one.

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
use tourin_chassis::telemetry::Span;

use super::tokens::{Member, TokenVerifier};
use crate::mesh_client::{CORE, MeshClient};

/// Where core issues access tokens of open sessions.
const PATH: &str = "/internal/access-tokens";
/// How long core may take, all attempts together; so long may a call with an expired token wait.
const TIMEOUT: Duration = Duration::from_millis(3_000);
/// Most bytes of core's answer: twice the longest token, and the cookie's attributes.
const MAX_RESPONSE_BYTES: usize = 20 << 10;
/// Requests at once that wait for core or have it asked. One more goes on with its token while that
/// lasts, and is answered 503 if it has expired.
const MAX_PENDING: usize = 4_096;
/// Sessions whose renewal is remembered.
const MAX_SESSIONS: u64 = 20_000;
/// How long it is remembered that a session is not open, which it will not be again.
const ENDED_TTL: Duration = Duration::from_secs(60);
/// How long it is remembered that core could not be asked, so that not every call waits for it.
const FAILURE_TTL: Duration = Duration::from_millis(500);

/// A session with its new token.
#[derive(Debug)]
pub struct Renewed {
    /// Whom the new token speaks for.
    pub member: Arc<Member>,
    /// What sets it in the browser; core's, and marked as sensitive.
    pub cookie: HeaderValue,
}

/// What became of a renewal.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// There is a new token.
    Renewed(Arc<Renewed>),
    /// The session is not open, says core.
    Ended,
    /// Core could not be asked, or made no sense.
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

/// A renewal that a request may get the outcome of.
#[derive(Debug)]
pub enum Renewal {
    /// The outcome is there.
    Done(Outcome),
    /// Core is being asked.
    Pending(JoinHandle<Option<Outcome>>),
}

impl Renewal {
    /// The outcome, once it is there.
    pub async fn outcome(self) -> Outcome {
        match self {
            Self::Done(outcome) => outcome,
            // Without one the gateway is stopping, or a fault has been logged.
            Self::Pending(task) => task.await.ok().flatten().unwrap_or(Outcome::Unavailable),
        }
    }

    /// The session with its new token, if that is there by now; waits for nothing.
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

/// By an outcome, how long it is remembered.
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
    /// Where core is asked, whatever thread the request is on: connections to core live as long as
    /// the runtime that opened them.
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What it takes to ask core.
struct TokenClient {
    mesh: MeshClient,
    tokens: Arc<TokenVerifier>,
    counts: CounterBy,
}

impl SlidingSessions {
    /// Renews by asking core through `mesh`, up to `idle` after a token's expiry. Must be called
    /// inside the tokio runtime that `mesh` is used in. Ends what is under way with `stop`.
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

    /// Whether a good token is due to be renewed.
    pub fn is_due(&self, member: &Member) -> bool {
        self.clock.now() >= member.renew_from
    }

    /// Whether an expired token may still be renewed.
    pub fn is_renewable(&self, member: &Member) -> bool {
        self.clock.now() - member.expires_at < self.idle
    }

    /// Has the session renewed, as a part of the current trace, unless it just was.
    pub async fn renew(&self, member: &Arc<Member>) -> Renewal {
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
            outcomes.get_with(key, client.renew(&member)).await
        };
        // Not dropped with the request: others may wait for it, and the next one can use it.
        let renewing = Span::current().run(renewing);
        let renewing = self.stop.clone().run_until_cancelled_owned(renewing);
        Renewal::Pending(self.tasks.spawn_on(renewing, &self.runtime))
    }

    /// Waits until `stop`, and then for what is under way, which ends with it.
    pub async fn drain(&self, stop: CancellationToken) {
        stop.cancelled().await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl TokenClient {
    async fn renew(&self, old: &Member) -> Outcome {
        let outcome = match self.try_renew(old).await {
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

    async fn try_renew(&self, old: &Member) -> anyhow::Result<Option<Renewed>> {
        let asked = TokenRequest { member: &old.id, session: &old.session };
        let response = self.mesh.post(CORE, PATH, &asked, TIMEOUT, MAX_RESPONSE_BYTES).await?;
        // What does not read is not repeated in the error: it may hold a token.
        let issued: Option<TokenResponse> =
            serde_json::from_slice(&response).ok().context("core's response does not read")?;
        let Some(issued) = issued else {
            return Ok(None);
        };
        let verified = self.tokens.verify(&issued.access_token).await;
        let member = verified.ok().context("core's new token is not good")?;
        ensure!(
            (&member.id, &member.session) == (&old.id, &old.session),
            "core's new token is another session's"
        );
        let mut cookie = HeaderValue::try_from(issued.set_cookie)
            .ok()
            .context("core's cookie is no header's value")?;
        cookie.set_sensitive(true);
        Ok(Some(Renewed { member, cookie }))
    }
}
