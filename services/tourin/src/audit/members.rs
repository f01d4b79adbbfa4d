//! The audit's members, with valid tokens.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::stream::{self, StreamExt, TryStreamExt};
use rand::Rng;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::gateways::{Call, Gateways, Reply};

/// Concurrent sign-ups and log-ins: each costs core a password hash.
const AT_ONCE: usize = 4;
/// A token is replaced this long before it expires.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// A member with a session.
pub struct Member {
    /// The member's id.
    pub id: String,
    password: String,
    session: Mutex<Session>,
    logging_in: tokio::sync::Mutex<()>,
}

struct Session {
    token: String,
    until: Instant,
}

// Neither password nor token.
impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Member").field(&self.id).finish()
    }
}

/// Signs up `count` members.
///
/// # Errors
/// When one cannot be signed up or logged in.
pub async fn sign_up(gateways: &Gateways, count: u16) -> anyhow::Result<Vec<Member>> {
    stream::iter(0..count)
        .map(|_| Member::sign_up(gateways))
        .buffered(AT_ONCE)
        .try_collect()
        .await
        .context("cannot sign up the audit's members")
}

impl Member {
    async fn sign_up(gateways: &Gateways) -> anyhow::Result<Self> {
        // Random, so that two audits do not have the same members.
        let id = format!("audit{:011}", rand::rng().random_range(0..100_000_000_000_u64));
        let password = format!("Audit!{:08}", rand::rng().random_range(0..100_000_000_u32));
        let body = json!({
            "id": id, "password": password, "name": "Audit Member",
            "email": format!("{id}@example.com"),
        });
        match gateways.call(&Call::post("/api/auth/signup", body)).await {
            Reply::Response { status: StatusCode::CREATED, .. } => {}
            Reply::Response { status, body, .. } => {
                bail!("signing up was answered {status}: {}", String::from_utf8_lossy(&body))
            }
            Reply::NoResponse(reason) => bail!("signing up was not answered: {reason}"),
        }
        let session = log_in(gateways, &id, &password).await?;
        let logging_in = tokio::sync::Mutex::default();
        Ok(Self { id, password, session: Mutex::new(session), logging_in })
    }

    /// A token that is valid for a while; logs in again if necessary.
    ///
    /// # Errors
    /// When logging in again fails.
    pub async fn token(&self, gateways: &Gateways) -> anyhow::Result<String> {
        if let Some(token) = self.good_token() {
            return Ok(token);
        }
        let _turn = self.logging_in.lock().await;
        // Another task may have logged in meanwhile.
        if let Some(token) = self.good_token() {
            return Ok(token);
        }
        let session = log_in(gateways, &self.id, &self.password).await?;
        let token = session.token.clone();
        *self.session.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = session;
        Ok(token)
    }

    fn good_token(&self) -> Option<String> {
        let session = self.session.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let left = session.until.saturating_duration_since(Instant::now());
        (left > RENEW_BEFORE).then(|| session.token.clone())
    }
}

async fn log_in(gateways: &Gateways, id: &str, password: &str) -> anyhow::Result<Session> {
    let mut call = Call::post("/api/auth/login", json!({"id": id, "password": password}));
    // A second session is harmless.
    call.idempotent = true;
    let asked = Instant::now();
    let body: Value = match gateways.call(&call).await {
        Reply::Response { status: StatusCode::OK, body, .. } => serde_json::from_slice(&body)?,
        Reply::Response { status, .. } => bail!("logging in was answered {status}"),
        Reply::NoResponse(reason) => bail!("logging in was not answered: {reason}"),
    };
    let token = body["accessToken"].as_str().context("no accessToken after a log-in")?.to_owned();
    let seconds = body["expiresIn"].as_u64().context("no expiresIn after a log-in")?;
    // A token with a shorter life would be replaced for each request.
    let holds = Duration::from_secs(seconds).max(RENEW_BEFORE + Duration::from_secs(5));
    Ok(Session { token, until: asked + holds })
}
