//! Single calls to the registry.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::instance::Instance;
use crate::wire::{AckRequest, Departure, MAX_WAIT_MS, RegisterRequest, Registered, Snapshot};

/// Longest time of a call (milliseconds), besides the wait that it asks for.
const REQUEST_TIMEOUT_MS: u64 = 2_000;
/// Largest response that is read (bytes): 5,000 instances with all the metadata that is allowed.
pub(crate) const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;
const MAX_MESSAGE_CHARS: usize = 200;

/// The address of the registry is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the registry's URL {url:?} is not usable: {reason}")]
pub struct InvalidRegistryUrl {
    url: String,
    reason: String,
}

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// No response: not reachable, too slow, or cut off.
    #[error("the registry cannot be reached: {0}")]
    Unreachable(String),
    /// The registration secret is not the registry's.
    #[error("the registry does not accept the registration secret")]
    Unauthorized,
    /// The registry does not know the instance or watcher.
    #[error("the registry does not know it")]
    Unknown,
    /// A live instance with another address holds the id.
    #[error("the instance id is held by another live instance: {0}")]
    Conflict(String),
    /// Any other refusal.
    #[error("the registry refused with {status}: {message}")]
    Refused {
        /// The status code.
        status: u16,
        /// What the registry said.
        message: String,
    },
    /// The response cannot be read.
    #[error("the registry's response is not understood: {0}")]
    Malformed(String),
}

/// A client of one registry. Cheap to clone; clones share connections.
///
/// ```
/// use tourin_registry_api::RegistryClient;
///
/// let http = reqwest::Client::new();
/// let secret = "a-secret-of-the-mesh";
/// // Opens no connection yet.
/// assert!(RegistryClient::new(http.clone(), "http://127.0.0.1:8500", secret).is_ok());
/// let error = RegistryClient::new(http, "https://registry.example", secret).unwrap_err();
/// assert!(error.to_string().contains("it must be http://host:port"));
/// ```
#[derive(Clone)]
pub struct RegistryClient {
    http: Client,
    base: Arc<str>,
    bearer: Arc<str>,
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryClient").field("base", &self.base).finish_non_exhaustive()
    }
}

impl RegistryClient {
    /// A client of the registry at `base_url` (`http://host:port`). It sends the registration
    /// `secret` with every call, also with calls that need none: the registry has separate, larger
    /// limits for authenticated clients. Opens no connection.
    ///
    /// `http` bounds the time to connect and ignores the environment's proxies, because traffic of the
    /// mesh stays in the mesh. It has no total time-out, which would end a watch: each other call sets
    /// its own.
    ///
    /// # Errors
    /// [`InvalidRegistryUrl`] when `base_url` is not an `http://` URL with a host.
    pub fn new(http: Client, base_url: &str, secret: &str) -> Result<Self, InvalidRegistryUrl> {
        let invalid = |reason: String| InvalidRegistryUrl { url: base_url.to_owned(), reason };
        let url = reqwest::Url::parse(base_url).map_err(|e| invalid(e.to_string()))?;
        if url.scheme() != "http" || !url.has_host() {
            return Err(invalid("it must be http://host:port".to_owned()));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("it must not have a query or a fragment".to_owned()));
        }
        Ok(Self {
            http,
            base: url.as_str().trim_end_matches('/').into(),
            bearer: format!("Bearer {secret}").into(),
        })
    }

    /// Registers `instance`, or renews its lease if nothing about it has changed.
    ///
    /// # Errors
    /// [`ClientError::Conflict`] when another address holds a live lease for the id.
    pub async fn register(
        &self,
        instance: &Instance,
        lease: Duration,
    ) -> Result<Registered, ClientError> {
        let body = RegisterRequest {
            address: instance.address,
            lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
            status: instance.status,
            metadata: instance.metadata.clone(),
        };
        let path = instance_path(&instance.service, &instance.id);
        decode(self.send(self.write(Method::PUT, &path).json(&body)).await?).await
    }

    /// Renews the lease of an instance.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] when the registry does not know it: register again.
    pub async fn renew(&self, service: &str, id: &str) -> Result<(), ClientError> {
        let path = format!("{}/renew", instance_path(service, id));
        self.send(self.write(Method::POST, &path)).await?;
        Ok(())
    }

    /// Marks an instance as draining and waits up to `wait` (at most [`MAX_WAIT_MS`]) until every
    /// live watcher has acknowledged that.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] when the registry does not know it.
    pub async fn drain(
        &self,
        service: &str,
        id: &str,
        wait: Duration,
    ) -> Result<Departure, ClientError> {
        let path = format!("{}/drain", instance_path(service, id));
        self.depart(Method::POST, &path, wait).await
    }

    /// Removes an instance at once and waits up to `wait` (at most [`MAX_WAIT_MS`]) until every
    /// live watcher has acknowledged that.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] when the registry does not know it.
    pub async fn deregister(
        &self,
        service: &str,
        id: &str,
        wait: Duration,
    ) -> Result<Departure, ClientError> {
        self.depart(Method::DELETE, &instance_path(service, id), wait).await
    }

    /// The instances of one service or of all.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list(&self, service: Option<&str>) -> Result<Snapshot, ClientError> {
        let mut request = self.read("/v1/instances");
        if let Some(service) = service {
            request = request.query(&[("service", service)]);
        }
        decode(self.send(request.timeout(Duration::from_millis(REQUEST_TIMEOUT_MS))).await?).await
    }

    /// Acknowledges that everything up to `version` is in effect at `watcher`.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] when no such watcher is connected.
    pub async fn ack(&self, watcher: &str, version: u64) -> Result<(), ClientError> {
        let path = format!("/v1/watchers/{watcher}/ack");
        self.send(self.write(Method::PUT, &path).json(&AckRequest { version })).await?;
        Ok(())
    }

    /// Opens the watch. The response's body has no end and no total time-out.
    pub(crate) async fn watch(
        &self,
        from: u64,
        epoch: u64,
        watcher: Option<&str>,
    ) -> Result<Response, ClientError> {
        let mut request = self.read("/v1/watch").query(&[("from", from), ("epoch", epoch)]);
        if let Some(watcher) = watcher {
            request = request.query(&[("watcher", watcher)]);
        }
        let opening = self.send(request);
        match tokio::time::timeout(Duration::from_millis(REQUEST_TIMEOUT_MS), opening).await {
            Ok(response) => response,
            Err(_) => Err(ClientError::Unreachable("no response in time".to_owned())),
        }
    }

    async fn depart(
        &self,
        method: Method,
        path: &str,
        wait: Duration,
    ) -> Result<Departure, ClientError> {
        let wait = wait.min(Duration::from_millis(MAX_WAIT_MS));
        let request = self
            .write(method, path)
            .query(&[("wait_ms", u64::try_from(wait.as_millis()).unwrap_or(MAX_WAIT_MS))])
            .timeout(wait + Duration::from_millis(REQUEST_TIMEOUT_MS));
        decode(self.send(request).await?).await
    }

    fn write(&self, method: Method, path: &str) -> RequestBuilder {
        self.call(method, path).timeout(Duration::from_millis(REQUEST_TIMEOUT_MS))
    }

    fn read(&self, path: &str) -> RequestBuilder {
        self.call(Method::GET, path)
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .header(reqwest::header::AUTHORIZATION, &*self.bearer)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|e| unreachable_because(&e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let message = error_message(response).await;
        Err(match status {
            StatusCode::UNAUTHORIZED => ClientError::Unauthorized,
            StatusCode::NOT_FOUND => ClientError::Unknown,
            StatusCode::CONFLICT => ClientError::Conflict(message),
            other => ClientError::Refused { status: other.as_u16(), message },
        })
    }
}

fn instance_path(service: &str, id: &str) -> String {
    // `limits` allows no character that would need escaping.
    format!("/v1/instances/{service}/{id}")
}

async fn decode<T: DeserializeOwned>(response: Response) -> Result<T, ClientError> {
    let body = bounded_body(response).await?;
    serde_json::from_slice(&body).map_err(|e| ClientError::Malformed(e.to_string()))
}

async fn error_message(response: Response) -> String {
    #[derive(Deserialize)]
    struct Body {
        message: String,
    }
    let said = match bounded_body(response).await {
        Ok(body) => serde_json::from_slice::<Body>(&body).map(|b| b.message).unwrap_or_default(),
        Err(_) => String::new(),
    };
    said.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect()
}

async fn bounded_body(response: Response) -> Result<Bytes, ClientError> {
    match Limited::new(Body::from(response), MAX_RESPONSE_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast_ref() {
            Some(error) => unreachable_because(error),
            None => ClientError::Malformed(format!("more than {MAX_RESPONSE_BYTES} bytes")),
        }),
    }
}

/// The innermost cause ("connection refused") says more than the outermost ("error sending request").
fn unreachable_because(error: &reqwest::Error) -> ClientError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    ClientError::Unreachable(cause.to_string())
}
