//! The exporters' HTTP client, which posts spans to a collector.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use tokio::runtime::{Builder, Runtime};

use crate::http_client;

/// How often a batch is offered to the collector before it is dropped.
const TRIES: u32 = 3;
/// The longest response of a collector, in bytes; its status is all that counts.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;
/// Delay before the second try; doubled for the third.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// A collector. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Collector {
    url: String,
    /// The URL for operators, without its password.
    authority: String,
    client: reqwest::Client,
    /// Created and dropped by the exporting thread: an asynchronous client that is polled without a
    /// runtime stalls (open-telemetry/opentelemetry-rust#2739).
    runtime: Arc<Mutex<Option<Runtime>>>,
}

/// Why a batch was not accepted.
#[derive(Debug, thiserror::Error)]
#[error("{what}, at {at}")]
struct ExportRejected {
    what: String,
    at: String,
}

impl Collector {
    /// A collector at `url`, which was set as `setting`. `path` is the default path.
    ///
    /// # Errors
    /// A sentence that says why the setting is invalid.
    pub fn new(setting: &str, url: &str, path: &str, timeout: Duration) -> Result<Self, String> {
        let client = http_client::client(timeout).map_err(|error| format!("{error:#}"))?;
        let url = collector_url(setting, url, path)?;
        let uri = url.parse::<http::Uri>().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(80);
        let authority = format!("{}:{port}", uri.host().unwrap_or_default());
        Ok(Self { url, authority, client, runtime: Arc::default() })
    }

    /// Its URL without credentials.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.authority)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Posts until the collector accepts it, refuses it, or has failed [`TRIES`] times.
    async fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ExportRejected> {
        let (head, body) = request.into_parts();
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let request = self.client.post(&self.url).headers(head.headers.clone());
            let request = request.body(body.clone());
            let what = match http_client::send(request, MAX_RESPONSE_BYTES).await {
                Ok(answer) => {
                    let status = answer.status();
                    if status.is_success() {
                        return Ok(Response::new(Bytes::new()));
                    }
                    let what = format!("the collector answered {status}");
                    if !status.is_server_error() && status.as_u16() != 429 {
                        return Err(self.not_taken(what));
                    }
                    what
                }
                Err(error) => error.to_string(),
            };
            if attempt == TRIES {
                return Err(self.not_taken(what));
            }
            // Jitter, so that clients do not all retry at the same time.
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
            pause *= 2;
        }
        Err(self.not_taken("not tried".to_owned()))
    }

    fn not_taken(&self, what: String) -> ExportRejected {
        ExportRejected { what, at: self.authority.clone() }
    }
}

#[async_trait]
impl HttpClient for Collector {
    /// Blocks the exporter's own thread.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = match &mut *runtime {
            Some(runtime) => runtime,
            none => none.insert(Builder::new_current_thread().enable_all().build()?),
        };
        Ok(runtime.block_on(self.post(request))?)
    }
}

fn collector_url(setting: &str, url: &str, path: &str) -> Result<String, String> {
    let parsed = url
        .parse::<http::Uri>()
        .map_err(|error| format!("invalid value for '--{setting}': {error}"))?;
    if parsed.scheme_str() != Some("http") || parsed.host().is_none() {
        return Err(format!(
            "invalid value for '--{setting}': expected http://HOST:PORT (for TLS, a collector on this machine that forwards)"
        ));
    }
    if parsed.path().trim_end_matches('/').is_empty() {
        let base = url.trim_end_matches('/');
        return Ok(format!("{base}{path}"));
    }
    Ok(url.to_owned())
}
