//! The state of one request while it is in progress.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderValue, Method};
use pingora::http::RequestHeader;
use tokio::sync::OwnedSemaphorePermit;
use tourin_chassis::session_cookies::SessionCookies;
use tourin_chassis::telemetry::{DeferredRequest, HttpRequest, Service, Span};

use crate::attempt::Attempt;
use crate::auth::sliding::Renewal;
use crate::client_address::Client;
use crate::connection::Connection;
use crate::responses::Response;
use crate::routes::Route;

/// The state of a request, from its head to its line in the access log.
pub struct RequestContext {
    /// When the head was complete.
    pub started: Instant,
    /// The same as wall-clock time.
    pub started_at: SystemTime,
    /// The time until the response's head was sent.
    pub answered_after: Option<Duration>,
    /// The request's span; `None` before [`RequestContext::begin`].
    pub trace: Option<DeferredRequest>,
    /// The attempts on instances. The last one may be in progress.
    pub attempts: Vec<Attempt>,
    /// The client's connection.
    pub connection: Option<Arc<Connection>>,
    /// The request's id, in logs, headers and responses.
    pub request_id: HeaderValue,
    /// The page's origin, if it is another site's and allowed.
    pub cross_origin: Option<HeaderValue>,
    /// The result of admission; `None` for what the gateway answers itself.
    pub admitted: Option<Admitted>,
    /// The renewal whose cookie goes on the response, if it is done by then.
    pub renewal: Option<Renewal>,
    /// The ids of instances that are not tried again.
    pub excluded: Vec<String>,
    /// Whether this attempt's head was sent, as far as the gateway knows.
    pub head_sent: bool,
    /// Body bytes seen in this attempt.
    pub body_bytes: u64,
    /// The response if an attempt fails for a reason that Pingora does not know.
    pub verdict: Option<Response>,
    /// The route of its path, also of a refused request.
    pub route: Option<Arc<Route>>,
    /// The path, if it is one of the gateway's own.
    pub own_path: Option<&'static str>,
    /// Stands for the request's span before it begins.
    no_span: Span,
}

/// An admitted request.
pub struct Admitted {
    /// Its route.
    pub route: Arc<Route>,
    /// The caller's identity, signed for that service.
    pub identity: HeaderValue,
    /// The client's address.
    pub client: Client,
    /// The session cookies of the client.
    pub cookies: SessionCookies,
    /// Whether the response is for this caller alone.
    pub is_personal: bool,
    /// Largest body in bytes.
    pub body_limit: u64,
    /// Longest wait for the response's first byte.
    pub first_byte_timeout: Duration,
    /// Its deadline.
    pub deadline: Instant,
    /// Counts it as a concurrent request.
    pub _permit: OwnedSemaphorePermit,
}

impl Default for RequestContext {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            started_at: SystemTime::now(),
            answered_after: None,
            trace: None,
            attempts: Vec::new(),
            connection: None,
            request_id: HeaderValue::from_static("unknown"),
            cross_origin: None,
            admitted: None,
            renewal: None,
            excluded: Vec::new(),
            head_sent: false,
            body_bytes: 0,
            verdict: None,
            route: None,
            own_path: None,
            no_span: Span::none(),
        }
    }
}

impl RequestContext {
    /// Begins the request's span, once its route is known. The sender's sampling decision counts if the
    /// sender `is_trusted`.
    pub fn begin(&mut self, service: &Service, header: &RequestHeader, is_trusted: bool) {
        let request = HttpRequest { sender_decides: is_trusted, ..self.request(&header.method) };
        self.trace = Some(service.deferred(&header.headers, &request, self.started_at));
    }

    /// The request has ended, with `status`.
    pub fn finish(&mut self, method: &Method, status: u16) {
        let Some(mut trace) = self.trace.take() else { return };
        let attempts = || {
            let route = self.route.as_deref().into_iter();
            route.flat_map(|route| {
                let attempts = self.attempts.iter().enumerate();
                attempts.map(move |(number, attempt)| attempt.as_call(method, route, number))
            })
        };
        trace.finish(&self.request(method), status, attempts);
    }

    fn request<'a>(&'a self, method: &'a Method) -> HttpRequest<'a> {
        HttpRequest {
            route: Some(self.route_name()),
            // Probes come every few seconds and say nothing new.
            unsampled: self.own_path.is_some_and(|path| path.ends_with('z')),
            ..HttpRequest::new(method, None)
        }
    }

    /// The request's span, for its ids and for notes.
    pub fn span(&self) -> &Span {
        self.trace.as_ref().map_or(&self.no_span, DeferredRequest::handle)
    }

    /// The attempt in progress.
    pub fn open_attempt(&mut self) -> Option<&mut Attempt> {
        self.attempts.last_mut().filter(|attempt| attempt.is_open())
    }

    /// The attempt in progress has failed; `again` says whether another one follows.
    pub fn attempt_failed(&mut self, error: &pingora::Error, again: bool) {
        let verdict = self.verdict.take();
        if let Some(attempt) = self.open_attempt() {
            let reason = attempt.failed(error, verdict.as_ref());
            if again {
                attempt.retried();
                let failed = attempt.instance.id.clone();
                self.span().annotate("retry", &[("reason", reason), ("failed", &failed)]);
            }
        }
        self.verdict = verdict;
    }

    /// The template under which the request is logged: no ids, no query.
    pub fn route_name(&self) -> &str {
        match &self.route {
            Some(route) => &route.template,
            None => self.own_path.unwrap_or("unmatched"),
        }
    }
}
