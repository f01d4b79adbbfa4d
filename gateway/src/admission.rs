//! Admission of requests: all checks on a request's head, before a byte goes to a service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::header::{ALLOW, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Uri};
use pingora::http::RequestHeader;
use pingora::http::authority::{RawTargetAuthority, raw_target_authority};
use pingora::proxy::Session;
use tokio::sync::watch;
use tourin_chassis::identity::{IdentitySigner, Subject};
use tourin_registry_api::UNREACHABLE;

use crate::auth::cookies::CookiePolicy;
use crate::auth::{Authenticator, Caller, Credentials};
use crate::authority::{self, Authority};
use crate::client_address::{Client, TrustedProxies};
use crate::context::{Admitted, RequestContext};
use crate::headers;
use crate::landing_page::{LANDING_PATH, LandingPage};
use crate::limits::{ConcurrencyLimit, RateLimits};
use crate::messages;
use crate::openapi::ApiDescription;
use crate::origin::OriginPolicy;
use crate::path::{self, PathError};
use crate::responses::Response;
use crate::routes::{Access, OPENAPI_PATH, RouteTable};
use crate::upstreams::Upstreams;

const OWN_PATHS: [&str; 3] = ["/healthz", "/readyz", OPENAPI_PATH];

/// How long a new gateway is unready because a routed service has no instance. A service may have a
/// route and never be started.
const SERVICES_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds on requests.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Longest request target.
    pub uri_bytes: usize,
    /// Maximum number of header fields.
    pub header_count: usize,
    /// Largest body, unless the route has its own limit.
    pub body_bytes: u64,
    /// Wait for a response's first byte, unless the route has its own limit.
    pub first_byte_timeout: Duration,
    /// Time for a whole request, unless the route has its own limit.
    pub total_timeout: Duration,
}

/// The checks and the data that they use.
pub struct AdmissionFilter {
    /// Where requests go.
    pub routes: Arc<RouteTable>,
    /// Checks tokens and sessions.
    pub authenticator: Authenticator,
    /// The services' instances.
    pub upstreams: Arc<Upstreams>,
    /// The cross-origin policy.
    pub origins: OriginPolicy,
    /// Proxies whose forwarding header is used.
    pub trusted_proxies: TrustedProxies,
    /// Names the session cookies.
    pub cookies: CookiePolicy,
    /// Signs the caller's identity for services.
    pub signer: IdentitySigner,
    /// Calls per client and minute.
    pub rates: Arc<RateLimits>,
    /// Concurrent requests.
    pub concurrency: ConcurrencyLimit,
    /// The merged API description.
    pub api: Arc<ApiDescription>,
    /// The page at `/`.
    pub landing_page: LandingPage,
    /// Bounds on requests.
    pub limits: RequestLimits,
    /// The token keys, for readiness.
    pub keys: Arc<crate::auth::keys::KeyStore>,
    /// Whether the registry can be reached.
    pub registry: watch::Receiver<bool>,
    /// When the gateway started.
    pub started: Instant,
    /// Whether it has been ready once.
    pub was_ready: AtomicBool,
}

impl AdmissionFilter {
    /// Finds the route of a request and notes it in its context, so that any response is traced
    /// under its route. Gives the canonical path.
    ///
    /// # Errors
    /// What is wrong with the path.
    pub fn locate(
        &self,
        header: &RequestHeader,
        ctx: &mut RequestContext,
    ) -> Result<String, PathError> {
        let path = path::canonical(raw_path(header.raw_path()))?;
        ctx.own_path = OWN_PATHS.into_iter().find(|own| *own == path);
        if ctx.own_path.is_none() {
            ctx.route = self.routes.find(&path).cloned();
        }
        if ctx.route.is_none() && path == LANDING_PATH {
            ctx.own_path = Some(LANDING_PATH);
        }
        Ok(path)
    }

    /// Admits a request, whose context then has its destination. `path` is the result of
    /// [`AdmissionFilter::locate`].
    ///
    /// # Errors
    /// The response to send instead: a refusal, or a page that the gateway serves itself.
    pub async fn admit(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        path: Result<String, PathError>,
    ) -> Result<(), Response> {
        let header = session.req_header();
        ctx.cross_origin = self.origins.allowed_origin(&header.headers);
        if header.raw_path().len() > self.limits.uri_bytes {
            return Err(Response::uri_too_long(self.limits.uri_bytes));
        }
        if header.headers.len() > self.limits.header_count {
            return Err(Response::head_too_large(messages::too_many_fields(
                self.limits.header_count,
            )));
        }
        let raw = session.as_http1().map(|http| http.get_headers_raw_bytes()).unwrap_or_default();
        headers::check_framing(&raw, &header.headers)?;
        let connection = ctx.connection.as_ref().ok_or_else(Response::internal)?;
        let declared = declared_body(header);
        connection.expect_body(declared);
        let asked = authority::of_request(header, connection.target_authority())?;
        let client =
            Client::of(connection.peer, asked.clone(), &header.headers, &self.trusted_proxies);

        if header.method == Method::OPTIONS && header.raw_path() == b"*" {
            // The capabilities of the whole server (RFC 9110, 9.3.7).
            let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
            return Err(Response::empty(StatusCode::NO_CONTENT).with(ALLOW, methods));
        }
        let path = path.map_err(|error| match error {
            PathError::Malformed => Response::malformed(messages::invalid_path()),
            PathError::Ambiguous => Response::not_found(),
        })?;
        if let Some(own) = ctx.own_path {
            return Err(self.own(own, session, &client));
        }
        let permit = self
            .concurrency
            .try_acquire()
            .ok_or_else(|| Response::unavailable(messages::too_many_requests_at_once()))?;
        let route = ctx.route.clone().ok_or_else(Response::not_found)?;

        let header = session.req_header();
        if let Some(response) =
            self.origins.preflight(&header.method, &header.headers, &route.allow())
        {
            return Err(response);
        }
        let access = route
            .access(&header.method)
            .ok_or_else(|| Response::method_not_allowed(&route.allow()))?;
        let body_limit = route.body_limit_bytes.unwrap_or(self.limits.body_bytes);
        if declared.is_some_and(|bytes| bytes > body_limit) {
            return Err(Response::body_too_large(body_limit));
        }
        self.rates.check(&route.template, client.address).map_err(Response::rate_limited)?;
        let cookies = self.cookies.cookies(&client, &header.headers);
        let credentials = match access {
            Access::Anonymous => Credentials::default(),
            _ => Credentials::of(&header.headers, cookies),
        };
        self.origins.check(
            &header.method,
            &header.headers,
            client.host.as_ref(),
            credentials.need_own_site(access),
        )?;
        let Caller { subject, renewal } =
            self.authenticator.admit(access, &credentials, client.address).await?;
        ctx.renewal = renewal;
        if !self.upstreams.is_up(&route.service) {
            return Err(Response::unavailable(messages::no_instance_is_up(&route.service)));
        }
        let is_personal = match access {
            Access::Public => false,
            Access::Optional => matches!(subject, Subject::Member { .. }),
            Access::Logout | Access::Anonymous | Access::Session | Access::Role(_) => true,
        };
        let identity = self.signer.sign(&subject, &route.service);
        self.rewrite(session, path, asked.as_ref())?;
        ctx.admitted = Some(Admitted {
            identity,
            client,
            cookies,
            is_personal,
            body_limit,
            first_byte_timeout: route.first_byte_timeout.unwrap_or(self.limits.first_byte_timeout),
            deadline: Instant::now() + route.total_timeout.unwrap_or(self.limits.total_timeout),
            route,
            _permit: permit,
        });
        Ok(())
    }

    /// Rewrites the request to what was checked: the canonical path, the query as it came, and the
    /// effective host. Without a host `Host` is empty (RFC 9112, 3.2).
    fn rewrite(
        &self,
        session: &mut Session,
        mut path: String,
        asked: Option<&Authority>,
    ) -> Result<(), Response> {
        let header = session.req_header_mut();
        let host = HeaderValue::from_str(asked.map_or("", Authority::as_str))
            .map_err(|_| Response::internal())?;
        if header.headers.get(HOST) != Some(&host) {
            header.insert_header(HOST, host).map_err(|_| Response::internal())?;
        }
        if let Some(query) = header.uri.query() {
            path.push('?');
            path.push_str(query);
        }
        let target = PathAndQuery::try_from(path)
            .map_err(|_| Response::malformed(messages::invalid_query()))?;
        header.set_uri(Uri::from(target));
        Ok(())
    }

    fn own(&self, path: &str, session: &Session, client: &Client) -> Response {
        let header = session.req_header();
        let is_read = [Method::GET, Method::HEAD].contains(&header.method);
        if let Some(response) = self.origins.preflight(&header.method, &header.headers, "GET, HEAD")
        {
            return response;
        }
        if !is_read {
            return Response::method_not_allowed("GET, HEAD");
        }
        match path {
            LANDING_PATH => self.landing_page.response(&header.headers, client),
            "/healthz" => Response::json(StatusCode::OK, r#"{"status":"alive"}"#),
            "/readyz" => {
                let (status, report) = self.readiness(session.is_process_shutting_down());
                Response::json(status, report.to_string())
            }
            _ => self.api.response(&header.headers),
        }
    }

    /// The gateway's readiness, with what is missing.
    pub fn readiness(&self, stopping: bool) -> (StatusCode, serde_json::Value) {
        let mut unready = serde_json::Map::new();
        for service in self.upstreams.missing() {
            unready.insert(service.to_owned(), "no instance is up".into());
        }
        let mut essential = self.upstreams.all_down();
        if !self.keys.is_loaded() {
            essential = true;
            unready.insert("keys".to_owned(), "core's keys have not been loaded yet".into());
        }
        if !self.authenticator.revocations.is_loaded() {
            essential = true;
            unready.insert(
                "sessions".to_owned(),
                "the ended sessions have not been loaded yet".into(),
            );
        }
        if !self.authenticator.visitors.is_shared() {
            let missing = "core's key for visitors' pseudonyms has not been loaded";
            unready.insert("visitors".to_owned(), missing.into());
        }
        if stopping {
            essential = true;
            unready.insert("gateway".to_owned(), "stopping".into());
        }
        let (status, word) = if unready.is_empty() {
            self.was_ready.store(true, Ordering::Relaxed);
            (StatusCode::OK, "ready")
        } else if !essential
            && (self.was_ready.load(Ordering::Relaxed)
                || self.started.elapsed() >= SERVICES_TIMEOUT)
        {
            // One service's outage must not take the gateway out of a load balancer, because the
            // other services' calls would be lost too.
            (StatusCode::OK, "degraded")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "unready")
        };
        let mut report = serde_json::json!({"status": word, "unready": unready});
        if !*self.registry.borrow() {
            report["missed"] = serde_json::json!({"registry": UNREACHABLE});
        }
        (status, report)
    }
}

/// The path as it came over the wire, in origin form or in absolute form.
fn raw_path(target: &[u8]) -> &[u8] {
    let (path, default): (_, &[u8]) = match raw_target_authority(target) {
        // The path may be empty in absolute form.
        RawTargetAuthority::Absolute { path_and_query, .. } => (path_and_query, b"/"),
        _ => (target, b""),
    };
    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    if end == 0 { default } else { &path[..end] }
}

/// The declared length of a request's body in bytes; `None` when it is chunked.
fn declared_body(header: &RequestHeader) -> Option<u64> {
    if header.headers.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    let Some(digits) = header.headers.get(CONTENT_LENGTH) else { return Some(0) };
    // `check_framing` allows digits alone, so a number that does not parse is too large.
    Some(digits.to_str().ok().and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX))
}
