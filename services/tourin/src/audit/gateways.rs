//! Requests through gateways: round them, past those that cannot be reached, again where that can
//! do no harm.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use rand::Rng;
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;

/// A connection to a gateway takes at most this long (milliseconds).
const CONNECT_TIMEOUT_MS: u64 = 1_000;
/// The pause before the second attempt, in milliseconds; it doubles with each more.
const FIRST_PAUSE_MS: u64 = 100;
/// The longest pause between two attempts, in milliseconds.
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
    /// The access token of who makes it.
    pub token: Option<String>,
    /// Whether doing it twice is the same as doing it once.
    pub idempotent: bool,
}

// A body may hold a password, and the token is one.
impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Call({} {})", self.method, self.path)
    }
}

impl Call {
    /// A visitor reads.
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, token: None, idempotent: true }
    }

    /// Somebody sends `body`; sending it twice may do it twice.
    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::POST, body: Some(body), idempotent: false, ..Self::get(path) }
    }
}

/// What came of a request.
#[derive(Debug)]
pub enum Reply {
    /// An answer, whole.
    Response {
        /// Its status.
        status: StatusCode,
        /// Its body.
        body: Vec<u8>,
        /// Whether an attempt before it may have reached a service, so that a refusal now does not
        /// say that nothing has happened.
        after_ambiguous: bool,
    },
    /// No answer, for this reason; what was asked for may have happened.
    NoResponse(String),
}

/// What happened to requests, counted.
#[derive(Debug, Default)]
pub struct Traffic {
    failures: AtomicU64,
    retries: AtomicU64,
}

impl Traffic {
    /// Attempts that were not answered, or with a 5xx status.
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

/// How one attempt went.
enum Attempt {
    Answered(StatusCode, Vec<u8>),
    /// Nothing was sent: any request may be made again.
    NotSent(String),
    /// Sent, and cut.
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
        let client = Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_millis(CONNECT_TIMEOUT_MS))
            .timeout(request_timeout)
            .build()
            .context("cannot make an HTTP client")?;
        let urls = urls.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        let (next, traffic) = (AtomicUsize::new(0), Traffic::default());
        Ok(Self { client, urls, next, tries, traffic })
    }

    /// What happened so far.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Makes a request. Another gateway, or the same after a pause, is tried when nothing was sent;
    /// an idempotent request also after a cut connection, 502 and 503. A time-out is not tried
    /// again: whoever is slow is not helped by more.
    pub async fn call(&self, call: &Call) -> Reply {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut reply = Reply::NoResponse("not tried".to_owned());
        let mut after_ambiguous = false;
        for attempt in 0..self.tries {
            if attempt > 0 {
                self.traffic.retries.fetch_add(1, Ordering::Relaxed);
                // Once round the gateways at once: one of them may be gone.
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

    /// Reads JSON as a visitor.
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
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => return Attempt::NotSent(innermost(&error)),
            Err(error) if error.is_timeout() => return Attempt::TimedOut,
            Err(error) => return Attempt::Cut(innermost(&error)),
        };
        let status = answer.status();
        match answer.bytes().await {
            Ok(body) => Attempt::Answered(status, body.to_vec()),
            Err(error) if error.is_timeout() => Attempt::TimedOut,
            Err(error) => Attempt::Cut(innermost(&error)),
        }
    }
}

/// The innermost cause says more than "error sending request".
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Exponential, with jitter of a half.
fn pause(attempt: u32) -> Duration {
    let longest = FIRST_PAUSE_MS.saturating_mul(1 << attempt.min(10)).min(LONGEST_PAUSE_MS);
    Duration::from_millis(rand::rng().random_range(longest / 2..=longest))
}
