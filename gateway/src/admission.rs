//! Admission of requests: all checks on a request's head, before a byte goes to a service.

mod start;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ALLOW, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Uri};
use pingora::http::RequestHeader;
use pingora::http::authority::{RawTargetAuthority, raw_target_authority};
use pingora::proxy::Session;
use tourin_chassis::identity::{IdentitySigner, Subject};

use crate::auth::cookies::CookiePolicy;
use crate::auth::{Authenticator, Caller, Credentials, check_bearer};
use crate::authority::{self, Authority};
use crate::canary::CallerFacts;
use crate::client_address::{Client, TrustedProxies};
use crate::connection::BodyEnd;
use crate::context::{Admitted, RequestContext};
use crate::headers;
use crate::landing_page::{LANDING_PATH, LandingPage};
use crate::limits::{ClientRequests, ConcurrencyLimit};
use crate::messages;
use crate::openapi::ApiDescription;
use crate::origin::OriginPolicy;
use crate::path::{self, PathError};
use crate::rate_limits::{Caller as RateCaller, RateLimits};
use crate::readiness::Readiness;
use crate::request_body::BodyMemory;
use crate::response_headers::ResponseHeaders;
use crate::responses::Response;
use crate::routes::{Access, CurrentRoutes, OPENAPI_PATH};
use crate::service_guards::ServiceGuards;
use crate::streams::OpenStreams;
use crate::traffic::Traffic;
use crate::unserved::Unserved;
use crate::upstreams::Upstreams;
pub use start::{SessionRedis, start};

const OWN_PATHS: [&str; 3] = ["/healthz", "/readyz", OPENAPI_PATH];

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
    pub routes: Arc<CurrentRoutes>,
    /// Checks tokens and sessions.
    pub authenticator: Authenticator,
    /// The services' instances.
    pub upstreams: Arc<Upstreams>,
    /// The cross-origin policy.
    pub origins: OriginPolicy,
    /// Headers that every response gets.
    pub response_headers: ResponseHeaders,
    /// Proxies whose forwarding header is used.
    pub trusted_proxies: TrustedProxies,
    /// Names the session cookies.
    pub cookies: CookiePolicy,
    /// Signs the caller's identity for services.
    pub signer: Arc<IdentitySigner>,
    /// Calls per minute.
    pub rates: Arc<RateLimits>,
    /// Requests in flight of each client.
    pub client_requests: ClientRequests,
    /// WebSockets and streams of events.
    pub streams: OpenStreams,
    /// Cache, canary releases and mirrors.
    pub traffic: Traffic,
    /// The memory of bodies.
    pub bodies: BodyMemory,
    /// Concurrent requests.
    pub concurrency: ConcurrencyLimit,
    /// The routes' circuit breakers and the services' limits.
    pub guards: Arc<ServiceGuards>,
    /// The merged API description.
    pub api: Arc<ApiDescription>,
    /// The page at `/`.
    pub landing_page: LandingPage,
    /// Bounds on requests.
    pub limits: RequestLimits,
    /// The token keys, for readiness.
    pub keys: Arc<crate::auth::keys::KeyStore>,
    /// What makes the gateway ready beside that.
    pub readiness: Readiness,
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
            ctx.route = self.routes.find(&path);
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
        // A body of HTTP/2 needs no header that announces it.
        let is_open = session.is_http2() && !session.is_body_done();
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
        check_bearer(&header.headers)?;
        let connection = ctx.connection.as_ref().ok_or_else(Response::internal)?;
        let declared = declared_body(header, is_open);
        connection.expect_body(declared.map_or(BodyEnd::Chunked, BodyEnd::After));
        let asked = authority::of_request(header, connection.target_authority())?;
        let from = (connection.scheme(), connection.peer);
        let client = Client::of(from, asked.clone(), &header.headers, &self.trusted_proxies);

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
        let is_proxy = self.trusted_proxies.contains(client.address);
        let of_client = if is_proxy {
            None
        } else {
            let counted = self.client_requests.try_add(client.address);
            Some(counted.ok_or_else(Response::client_has_too_many_requests)?)
        };
        let route = ctx.route.clone().ok_or_else(Response::not_found)?;

        let header = session.req_header();
        if header.method == Method::OPTIONS
            && let Some(response) =
                self.origins.preflight(&header.method, &header.headers, &route.allow())
        {
            return Err(response);
        }
        let access = route
            .access(&header.method)
            .ok_or_else(|| Response::method_not_allowed(&route.allow()))?;
        if declared != Some(0) && !takes_body(&header.method) {
            return Err(Response::malformed(messages::body_not_expected(header.method.as_str())));
        }
        let body_limit = route.body_limit_bytes.unwrap_or(self.limits.body_bytes);
        if declared.is_some_and(|bytes| bytes > body_limit) {
            return Err(Response::body_too_large(body_limit));
        }
        let caller = RateCaller { address: client.address, member: None };
        self.rates.check_address(route.limited(), caller, &mut ctx.rate_headers).await?;
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
        if route.streams.upgrade.is_some() {
            self.origins.check_page(&header.headers, client.host.as_ref())?;
        }
        let total_timeout = route.total_timeout.unwrap_or(self.limits.total_timeout);
        let response_deadline = Instant::now() + total_timeout;
        let stream =
            self.streams.admit(&route.streams, session, client.address, response_deadline)?;
        let Caller { subject, renewal } =
            self.authenticator.admit(access, &credentials, client.address).await?;
        ctx.renewal = renewal;
        let member = match &**subject {
            Subject::Member { id, .. } => Some(id.as_str()),
            Subject::Visitor { .. } => None,
        };
        let caller = RateCaller { member, ..caller };
        self.rates.check_caller(route.limited(), caller, &mut ctx.rate_headers).await?;
        let headers = &header.headers;
        let facts = CallerFacts { subject: &subject, address: client.address, headers };
        let version = self.traffic.choose_version(&route, &facts)?;
        if !self.upstreams.is_up(&route.service) {
            let refusal = Response::unavailable(messages::no_instance_is_up(&route.service));
            return Err(refusal.because(Unserved::NoInstance));
        }
        let is_personal = match access {
            Access::Public => false,
            Access::Optional => matches!(**subject, Subject::Member { .. }),
            Access::Logout | Access::Anonymous | Access::Session | Access::Role(_) => true,
        };
        self.rewrite(session, path, asked.as_ref())?;
        let first_byte_timeout = route.first_byte_timeout.unwrap_or(self.limits.first_byte_timeout);
        let deadline = match &stream {
            Some(_) => response_deadline.min(Instant::now() + first_byte_timeout),
            None => response_deadline,
        };
        ctx.admitted = Some(Admitted {
            subject,
            identity: HeaderValue::from_static(""),
            client,
            cookies,
            version,
            is_personal,
            body_declared: declared,
            body_limit,
            body_memory: None,
            first_byte_timeout,
            deadline,
            stream,
            route,
            of_client,
            permit: None,
        });
        Ok(())
    }

    /// Gives an admitted request, whose body has been read, a permit of the concurrent requests, its way
    /// through the guards of its service, and its identity. All come after the body, which may have taken
    /// longer than an identity is valid. A body that is not `complete` will pass through as it comes.
    ///
    /// # Errors
    /// The refusal at a limit of concurrent requests or of the circuit breaker.
    pub fn enter(&self, ctx: &mut RequestContext, complete: bool) -> Result<(), Response> {
        let Some(admitted) = &mut ctx.admitted else { return Ok(()) };
        let permit = self.concurrency.try_acquire();
        admitted.permit = Some(
            permit.ok_or_else(|| Response::unavailable(messages::too_many_requests_at_once()))?,
        );
        let call = self.guards.enter(&admitted.route, complete)?;
        admitted.identity = self.signer.sign_known(&admitted.subject, &admitted.route.service);
        if call.is_probe() {
            ctx.span().annotate("breaker_probe", &[]);
        }
        ctx.service_call = Some(call);
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
        let host = asked.map_or("", Authority::as_str);
        if header.headers.get(HOST).is_none_or(|known| *known != *host) {
            let host = HeaderValue::from_str(host).map_err(|_| Response::internal())?;
            header.insert_header(HOST, host).map_err(|_| Response::internal())?;
        }
        // A target in another form, or with an authority, is replaced whole.
        let is_plain = header.raw_path().starts_with(b"/") && header.uri.authority().is_none();
        if is_plain && header.uri.path() == path {
            return Ok(());
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
            unready.insert(service, "no instance is up".into());
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
        self.readiness.report(unready, essential)
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

/// Whether calls of this method can have a body. One that is not read would only be waited for.
fn takes_body(method: &Method) -> bool {
    ![Method::GET, Method::HEAD, Method::DELETE, Method::OPTIONS].contains(method)
}

/// The declared length of a request's body in bytes; `None` when it is chunked, or `is_open` without a
/// length.
fn declared_body(header: &RequestHeader, is_open: bool) -> Option<u64> {
    if header.headers.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    let Some(digits) = header.headers.get(CONTENT_LENGTH) else {
        return if is_open { None } else { Some(0) };
    };
    // `check_framing` allows digits alone, so a number that does not parse is too large.
    Some(digits.to_str().ok().and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX))
}
