//! Requests through several gateways, round robin, with retries where these are safe.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use rand::Rng;
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use tourin_chassis::http_client;

/// The longest response, in bytes.
const MAX_RESPONSE_BYTES: usize = 64 << 20;
/// The pause before the second attempt, in milliseconds; it doubles with each further one.
const FIRST_PAUSE_MS: u64 = 100;
const LONGEST_PAUSE_MS: u64 = 1_000;

/// A request.
#[derive(Clone)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Its path with the query.
    pub path: String,
    /// Its body, as JSON.
    pub body: Option<Value>,
    /// The caller's access token.
    pub token: Option<String>,
    /// Whether it is idempotent.
    pub idempotent: bool,
}

// Neither body nor token, which are secret.
impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Call({} {})", self.method, self.path)
    }
}

impl Call {
    /// A read without a session.
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, token: None, idempotent: true }
    }

    /// A call with a body that is not idempotent.
    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::POST, body: Some(body), idempotent: false, ..Self::get(path) }
    }
}

/// The result of a request.
#[derive(Debug)]
pub enum Reply {
    /// A complete response.
    Response {
        /// Its status.
        status: StatusCode,
        /// Its body.
        body: Bytes,
        /// Whether an earlier attempt may have taken effect, so that a refusal now does not exclude it.
        after_ambiguous: bool,
    },
    /// No response, for this reason; the request may have taken effect.
    NoResponse(String),
}

/// Counts of attempts.
#[derive(Debug, Default)]
pub struct Traffic {
    failures: AtomicU64,
    retries: AtomicU64,
}

impl Traffic {
    /// Attempts without a response, or with a 5xx status.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Attempts after the first of a request.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }
}

/// The gateways of a mesh.
#[derive(Debug)]
pub struct Gateways {
    client: Client,
    urls: Vec<String>,
    next: AtomicUsize,
    tries: u32,
    traffic: Traffic,
}

enum Attempt {
    Answered(StatusCode, Bytes),
    /// Nothing was sent, so a retry is safe.
    NotSent(String),
    /// Sent, and the connection was lost.
    Cut(String),
    TimedOut,
}

impl Gateways {
    /// Gateways at these URLs. Each request is tried up to `tries` times, each for up to
    /// `request_timeout`.
    ///
    /// # Errors
    /// When there is none, or no HTTP client can be made.
    pub fn new(urls: &[String], tries: u32, request_timeout: Duration) -> anyhow::Result<Self> {
        anyhow::ensure!(!urls.is_empty(), "--gateway: name one");
        let client = http_client::client(request_timeout)?;
        let urls = urls.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        let (next, traffic) = (AtomicUsize::new(0), Traffic::default());
        Ok(Self { client, urls, next, tries, traffic })
    }

    /// What happened so far.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Makes a request. It is retried at the next gateway, after a pause once all were tried, if nothing
    /// was sent; an idempotent one also after a lost connection, 502 and 503. A time-out is not
    /// retried: more requests do not help a slow service.
    pub async fn call(&self, call: &Call) -> Reply {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut reply = Reply::NoResponse("not tried".to_owned());
        let mut after_ambiguous = false;
        for attempt in 0..self.tries {
            if attempt > 0 {
                self.traffic.retries.fetch_add(1, Ordering::Relaxed);
                // No pause until each gateway was tried once.
                if attempt as usize >= self.urls.len() {
                    tokio::time::sleep(pause(attempt)).await;
                }
            }
            let url = &self.urls[first.wrapping_add(attempt as usize) % self.urls.len()];
            let again;
            (reply, again) = match self.attempt(url, call).await {
                Attempt::Answered(status, body) => {
                    let passing = matches!(status.as_u16(), 502 | 503);
                    let reply = Reply::Response { status, body, after_ambiguous };
                    after_ambiguous |= passing;
                    (reply, passing && call.idempotent)
                }
                Attempt::NotSent(reason) => (Reply::NoResponse(reason), true),
                Attempt::Cut(reason) => {
                    after_ambiguous = true;
                    (Reply::NoResponse(reason), call.idempotent)
                }
                Attempt::TimedOut => (Reply::NoResponse("no answer in time".to_owned()), false),
            };
            let failed = match &reply {
                Reply::Response { status, .. } => status.is_server_error(),
                Reply::NoResponse(_) => true,
            };
            if failed {
                self.traffic.failures.fetch_add(1, Ordering::Relaxed);
            }
            if !again {
                break;
            }
        }
        reply
    }

    /// Reads JSON without a session.
    ///
    /// # Errors
    /// When there is no answer, or another than 200 with JSON.
    pub async fn read(&self, path: &str) -> anyhow::Result<Value> {
        match self.call(&Call::get(path)).await {
            Reply::Response { status: StatusCode::OK, body, .. } => {
                serde_json::from_slice(&body).with_context(|| format!("GET {path}: not JSON"))
            }
            Reply::Response { status, .. } => anyhow::bail!("GET {path} was answered {status}"),
            Reply::NoResponse(reason) => anyhow::bail!("GET {path}: {reason}"),
        }
    }

    async fn attempt(&self, gateway: &str, call: &Call) -> Attempt {
        let mut request =
            self.client.request(call.method.clone(), format!("{gateway}{}", call.path));
        if let Some(token) = &call.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        match http_client::send(request, MAX_RESPONSE_BYTES).await {
            Ok(answer) => Attempt::Answered(answer.status(), answer.into_body()),
            Err(error) if error.is_connect() => Attempt::NotSent(error.to_string()),
            Err(error) if error.is_timeout() => Attempt::TimedOut,
            Err(error) => Attempt::Cut(error.to_string()),
        }
    }
}

/// Exponential, with jitter of a half.
fn pause(attempt: u32) -> Duration {
    let longest = FIRST_PAUSE_MS.saturating_mul(1 << attempt.min(10)).min(LONGEST_PAUSE_MS);
    Duration::from_millis(rand::rng().random_range(longest / 2..=longest))
}
