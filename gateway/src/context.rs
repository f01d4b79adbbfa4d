//! What is known of one request while it is under way.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderValue, Method};
use pingora::http::RequestHeader;
use tokio::sync::OwnedSemaphorePermit;
use tourin_chassis::telemetry::{DeferredRequest, HttpRequest, Service, Span};

use crate::attempt::Attempt;
use crate::auth::sliding::Renewal;
use crate::client_address::Client;
use crate::connection::Connection;
use crate::responses::Response;
use crate::routes::Route;

/// One request's way from its header to its line in the access log.
pub struct RequestContext {
    /// When the header was complete.
    pub started: Instant,
    /// The same by the clock on the wall.
    pub started_at: SystemTime,
    /// How long it took until the answer's head went out.
    pub answered_after: Option<Duration>,
    /// The request in the trace; none before [`RequestContext::begin`].
    pub trace: Option<DeferredRequest>,
    /// The tries towards instances. The last one may be under way.
    pub attempts: Vec<Attempt>,
    /// The client's connection.
    pub connection: Option<Arc<Connection>>,
    /// The id that goes with it everywhere.
    pub request_id: HeaderValue,
    /// The origin of the page that asked, when it is one from elsewhere that is allowed.
    pub cross_origin: Option<HeaderValue>,
    /// What was decided when it was let in; `None` for what the gateway answers itself.
    pub admitted: Option<Admitted>,
    /// The new access token that the answer takes along, if it is there by then.
    pub renewal: Option<Renewal>,
    /// Instances (by id) that are not tried again.
    pub excluded: Vec<String>,
    /// Whether this attempt's head has gone out, as far as this side can tell.
    pub head_sent: bool,
    /// Body bytes seen in this attempt.
    pub body_bytes: u64,
    /// The answer to give when an attempt fails for a reason that Pingora cannot know.
    pub verdict: Option<Response>,
    /// The route that its path has, whether it was let in or not.
    pub route: Option<Arc<Route>>,
    /// The gateway's own path that it asked for, if it did.
    pub own_path: Option<&'static str>,
    /// What stands for the request's span before it begins.
    no_span: Span,
}

/// A request that goes to a service.
pub struct Admitted {
    /// Where to.
    pub route: Arc<Route>,
    /// On whose behalf, signed for that service.
    pub identity: HeaderValue,
    /// From where.
    pub client: Client,
    /// Largest body in bytes.
    pub body_limit: u64,
    /// Wait for the answer's first byte.
    pub first_byte_timeout: Duration,
    /// When it must be over.
    pub deadline: Instant,
    /// Its place among the requests at once.
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
    /// Begins the request's part of the trace, once it is known where its path leads.
    pub fn begin(&mut self, service: &Service, header: &RequestHeader) {
        let request = self.request(&header.method);
        self.trace = Some(service.deferred(&header.headers, &request, self.started_at));
    }

    /// It is over, answered with `status`.
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
            method,
            route: Some(self.route_name()),
            // Probes come every few seconds and tell nothing.
            unsampled: self.own_path.is_some_and(|path| path.ends_with('z')),
        }
    }

    /// The request's span, for its ids and for notes.
    pub fn span(&self) -> &Span {
        self.trace.as_ref().map_or(&self.no_span, DeferredRequest::handle)
    }

    /// The try under way.
    pub fn open_attempt(&mut self) -> Option<&mut Attempt> {
        self.attempts.last_mut().filter(|attempt| attempt.is_open())
    }

    /// The try under way has failed; `again` says whether there will be another one.
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
