//! Single calls to the registry.

mod response;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use crate::instance::Instance;
use crate::wire::{
    AckRequest, CertificateRequest, Departure, IssuedCertificate, IssuedJoinToken,
    JoinTokenRequest, LeaseReport, LeaveRequest, MAX_WAIT_MS, OverrideRequest, RegisterRequest,
    Registered, ScaleReport, Snapshot,
};
use response::{Refusal, decode, refusal, unreachable_because};

/// Longest time of a call (milliseconds), besides the wait that it asks for.
const REQUEST_TIMEOUT_MS: u64 = 2_000;
/// Largest response that is read (bytes): 5,000 instances with all the metadata that is allowed.
pub(crate) const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;
/// Stands for the registry's URL until one is chosen.
const NO_BASE: &str = "https://registry.invalid";

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
    /// The registry does not accept the join token, or there is no certificate.
    #[error("the registry does not know this caller: {0}")]
    Unauthorized(String),
    /// The registry does not know the instance or watcher.
    #[error("the registry does not know it")]
    Unknown,
    /// The request is in conflict with what the registry holds, such as an id that another live instance
    /// has.
    #[error("the registry refused: {0}")]
    Conflict(String),
    /// Any other refusal.
    #[error("the registry refused with {status} {code}: {message}")]
    Refused {
        /// The status code.
        status: u16,
        /// The kind of refusal, such as one of [`crate::wire::codes`].
        code: String,
        /// What the registry said.
        message: String,
    },
    /// The response cannot be read.
    #[error("the registry's response is not understood: {0}")]
    Malformed(String),
}

/// A client of one registry, or of several that share their state. It calls the one that answered last, and
/// the next one when that is not there. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct RegistryClient {
    http: Client,
    bases: Arc<[String]>,
    /// The index of the one that is called.
    current: Arc<AtomicUsize>,
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryClient").field("bases", &self.bases).finish_non_exhaustive()
    }
}

impl RegistryClient {
    /// A client of the registry at `base_urls` (`https://host:port`), or of several with commas between them.
    /// Opens no connection.
    ///
    /// `http` shows the caller's certificate and verifies the registry's: it has the
    /// [`client_config`](crate::Workload::client_config) of a workload. It bounds the time to connect and
    /// ignores the environment's proxies, because traffic of the mesh stays in the mesh. It has no total
    /// time-out, which would end a watch: each other call sets its own.
    ///
    /// # Errors
    /// [`InvalidRegistryUrl`] when one is not an `https://` URL with a host.
    pub fn new(http: Client, base_urls: &str) -> Result<Self, InvalidRegistryUrl> {
        let bases = base_urls.split(',').map(str::trim).map(base).collect::<Result<_, _>>()?;
        Ok(Self { http, bases, current: Arc::default() })
    }

    /// The URL of the registry that is called.
    pub fn url(&self) -> &str {
        &self.bases[self.current.load(Ordering::Relaxed) % self.bases.len()]
    }

    /// A new certificate for the peer that asks.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn certificate(
        &self,
        request: &CertificateRequest,
    ) -> Result<IssuedCertificate, ClientError> {
        let call = self.write(Method::POST, "/v1/certificates").json(request);
        decode(self.send(call).await?).await
    }

    /// A first certificate, by a join token.
    ///
    /// # Errors
    /// [`ClientError::Unauthorized`] when the registry does not accept the token.
    pub(crate) async fn first_certificate(
        &self,
        request: &CertificateRequest,
        token: &str,
    ) -> Result<IssuedCertificate, ClientError> {
        let call = self.write(Method::POST, "/v1/certificates").bearer_auth(token).json(request);
        decode(self.send(call).await?).await
    }

    /// A join token. For operators.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn join_token(&self, request: &JoinTokenRequest) -> Result<String, ClientError> {
        let call = self.write(Method::POST, "/v1/join-tokens").json(request);
        let issued: IssuedJoinToken = decode(self.send(call).await?).await?;
        Ok(issued.token)
    }

    /// Begins to replace the mesh's root. For operators.
    ///
    /// # Errors
    /// [`ClientError::Conflict`] when it is being replaced already, or is not the registry's own.
    pub async fn rotate_root(&self) -> Result<(), ClientError> {
        self.send(self.write(Method::POST, "/v1/root/rotation")).await?;
        Ok(())
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

    /// Removes an instance that has drained, with what it reports of its work.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] when the registry does not know it.
    pub async fn leave(
        &self,
        service: &str,
        id: &str,
        report: &LeaveRequest,
    ) -> Result<Departure, ClientError> {
        let path = format!("{}/leave", instance_path(service, id));
        decode(self.send(self.write(Method::POST, &path).json(report)).await?).await
    }

    /// Takes an instance out of service or back, or sets its weight, and waits up to `wait` (at most
    /// [`MAX_WAIT_MS`]) until every live watcher has acknowledged that. For operators.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] when the registry does not know it.
    pub async fn set_override(
        &self,
        (service, id): (&str, &str),
        request: &OverrideRequest,
        wait: Duration,
    ) -> Result<Departure, ClientError> {
        let path = format!("/v1/overrides/{service}/{id}");
        let call = self.waiting(Method::PUT, &path, wait).json(request);
        decode(self.send(call).await?).await
    }

    /// Removes the instances of a service that are kept without a lease. For operators.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] when the service is not protected.
    pub async fn end_protection(&self, service: &str) -> Result<(), ClientError> {
        self.send(self.write(Method::DELETE, &format!("/v1/protection/{service}"))).await?;
        Ok(())
    }

    /// The leases of one service or of all. For operators.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn leases(&self, service: Option<&str>) -> Result<LeaseReport, ClientError> {
        self.of_service("/v1/leases", service).await
    }

    /// The latest departures of one service or of all. For operators.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn scale_report(&self, service: Option<&str>) -> Result<ScaleReport, ClientError> {
        self.of_service("/v1/departures", service).await
    }

    /// The instances of one service or of all.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list(&self, service: Option<&str>) -> Result<Snapshot, ClientError> {
        self.of_service("/v1/instances", service).await
    }

    async fn of_service<T: DeserializeOwned>(
        &self,
        path: &str,
        service: Option<&str>,
    ) -> Result<T, ClientError> {
        let mut request = self.read(path);
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

    /// Opens the watch from a version of an epoch (0: unknown), as server-sent events: a
    /// [`SNAPSHOT_EVENT`](crate::wire::SNAPSHOT_EVENT) unless it can resume, then every
    /// [`CHANGE_EVENT`](crate::wire::CHANGE_EVENT). The response's body has no end and no total time-out.
    /// [`crate::Directory`] does all that for who wants the instances.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn watch(
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
        decode(self.send(self.waiting(method, path, wait)).await?).await
    }

    /// A call that waits for acknowledgements.
    fn waiting(&self, method: Method, path: &str, wait: Duration) -> RequestBuilder {
        let wait = wait.min(Duration::from_millis(MAX_WAIT_MS));
        self.write(method, path)
            .query(&[("wait_ms", u64::try_from(wait.as_millis()).unwrap_or(MAX_WAIT_MS))])
            .timeout(wait + Duration::from_millis(REQUEST_TIMEOUT_MS))
    }

    fn write(&self, method: Method, path: &str) -> RequestBuilder {
        self.call(method, path).timeout(Duration::from_millis(REQUEST_TIMEOUT_MS))
    }

    fn read(&self, path: &str) -> RequestBuilder {
        self.call(Method::GET, path)
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{NO_BASE}{path}"))
    }

    /// Sends a request to the registry that answered last. The next one is asked at once if that is not there
    /// (no connection) or cannot serve (503): the request has had no effect. After another failure, also one
    /// that its caller did not wait for, the next call asks the next one.
    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let request = request.build().map_err(|e| unreachable_because(&e))?;
        let mut asked = 1;
        let response = loop {
            let current = self.current.load(Ordering::Relaxed);
            let Some(attempt) = at(&request, &self.bases[current % self.bases.len()]) else {
                return Err(ClientError::Unreachable("the request is not usable".to_owned()));
            };
            let mut asking = Asking { current: &self.current, asked: current, is_there: false };
            let attempted = self.http.execute(attempt).await;
            let (is_there, is_unused) = match &attempted {
                Ok(response) if response.status() == StatusCode::SERVICE_UNAVAILABLE => {
                    (false, true)
                }
                Ok(_) => (true, false),
                Err(error) => (false, error.is_connect()),
            };
            asking.is_there = is_there;
            drop(asking);
            if !is_unused || asked >= self.bases.len() {
                break attempted.map_err(|e| unreachable_because(&e))?;
            }
            asked += 1;
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let Refusal { error: code, message } = refusal(response).await;
        Err(match status {
            StatusCode::UNAUTHORIZED => ClientError::Unauthorized(message),
            StatusCode::NOT_FOUND => ClientError::Unknown,
            StatusCode::CONFLICT => ClientError::Conflict(message),
            other => ClientError::Refused { status: other.as_u16(), code, message },
        })
    }
}

/// An attempt at one registry. Calls go to the next one from its end on, unless this one answered. Callers have
/// time-outs of their own, so a drop before the answer is such an end, too.
struct Asking<'a> {
    current: &'a AtomicUsize,
    asked: usize,
    is_there: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.is_there {
            // Of several callers that find it gone, one moves on.
            let next = self.asked.wrapping_add(1);
            self.current
                .compare_exchange(self.asked, next, Ordering::Relaxed, Ordering::Relaxed)
                .ok();
        }
    }
}

fn base(base_url: &str) -> Result<String, InvalidRegistryUrl> {
    let invalid = |reason: String| InvalidRegistryUrl { url: base_url.to_owned(), reason };
    let url = reqwest::Url::parse(base_url).map_err(|e| invalid(e.to_string()))?;
    if url.scheme() != "https" || !url.has_host() {
        return Err(invalid("it must be https://host:port".to_owned()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("it must not have a query or a fragment".to_owned()));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn instance_path(service: &str, id: &str) -> String {
    // `limits` allows no character that would need escaping.
    format!("/v1/instances/{service}/{id}")
}

/// The request, to the registry at `base`.
fn at(request: &reqwest::Request, base: &str) -> Option<reqwest::Request> {
    let suffix = request.url().as_str().strip_prefix(NO_BASE)?;
    let mut attempt = request.try_clone()?;
    *attempt.url_mut() = reqwest::Url::parse(&format!("{base}{suffix}")).ok()?;
    Some(attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_several_registries_is_called() {
        // Which fails if it is installed already.
        rustls::crypto::ring::default_provider().install_default().ok();
        let new = |urls: &str| RegistryClient::new(Client::new(), urls);
        let client = new("https://one:8500, https://two:8500/mesh/").unwrap();
        assert_eq!(client.url(), "https://one:8500");
        client.current.store(1, Ordering::Relaxed);
        assert_eq!(client.url(), "https://two:8500/mesh");
        let request = client.read("/v1/watch").query(&[("from", 7)]).build().unwrap();
        let sent = at(&request, client.url()).unwrap();
        assert_eq!(sent.url().as_str(), "https://two:8500/mesh/v1/watch?from=7");
        for wrong in ["https://one:8500,", "https://one:8500,http://two:8500", ","] {
            assert!(new(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_registry_that_hangs_is_left_by_a_caller_that_does_not_wait_for_it() {
        rustls::crypto::ring::default_provider().install_default().ok();
        // It takes connections, and says nothing.
        let hanging = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let urls = format!("https://{},https://two:8500", hanging.local_addr().unwrap());
        let client = RegistryClient::new(Client::new(), &urls).unwrap();
        // As a heartbeat does, which has less time than the call.
        let given_up = Duration::from_millis(50);
        assert!(tokio::time::timeout(given_up, client.renew("core", "a")).await.is_err());
        assert_eq!(client.url(), "https://two:8500");
    }
}
