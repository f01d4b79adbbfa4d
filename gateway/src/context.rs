//! The state of one request while it is in progress.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderValue, Method};
use pingora::http::RequestHeader;
use tokio::sync::OwnedSemaphorePermit;
use tourin_chassis::identity::KnownSubject;
use tourin_chassis::session_cookies::SessionCookies;
use tourin_chassis::telemetry::{DeferredRequest, HttpRequest, Service, Span, method_name};

use crate::access_log::Line;
use crate::attempt::{Attempt, FailedAttempt};
use crate::auth::sliding::Renewal;
use crate::balance::Member;
use crate::canary::VersionChoice;
use crate::client_address::Client;
use crate::connection::Connection;
use crate::fallback::Fallback;
use crate::limits::ClientRequest;
use crate::mirror::MirrorProbe;
use crate::rate_limits::RateHeaders;
use crate::responses::Response;
use crate::routes::Route;
use crate::service_guards::{Outcome, ServiceCall};
use crate::streams::StreamPlace;
use crate::unserved::Unserved;

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
    /// The instances that are not tried again.
    pub excluded: Vec<Arc<Member>>,
    /// The instance of the next attempt, after one that failed.
    pub next: Option<Arc<Member>>,
    /// Whether an attempt has timed out.
    pub has_timed_out: bool,
    /// What a copy for a mirror is compared with, if one will be made.
    pub mirror: Option<Box<MirrorProbe>>,
    /// Whether it is decided if one will be made.
    pub mirror_decided: bool,
    /// Whether this attempt's head was sent, as far as the gateway knows.
    pub head_sent: bool,
    /// Whether this attempt's body comes from the client while it is sent on.
    pub body_passes: bool,
    /// Body bytes seen in this attempt.
    pub body_bytes: u64,
    /// How its caller stands with the limits of its route.
    pub rate_headers: RateHeaders,
    /// Its way through the guards of its service, until they know how it ended.
    pub service_call: Option<ServiceCall>,
    /// Why the route's fall-back was sent, if it was.
    pub fell_back: Option<Unserved>,
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
    /// The caller.
    pub subject: Arc<KnownSubject>,
    /// The caller's identity, signed for that service; empty before [`AdmissionFilter::enter`].
    ///
    /// [`AdmissionFilter::enter`]: crate::admission::AdmissionFilter::enter
    pub identity: HeaderValue,
    /// The client's address.
    pub client: Client,
    /// The session cookies of the client.
    pub cookies: SessionCookies,
    /// The version of the service that it is for.
    pub version: VersionChoice,
    /// Whether the response is for this caller alone.
    pub is_personal: bool,
    /// The declared length of its body in bytes; `None` when it is chunked.
    pub body_declared: Option<u64>,
    /// Largest body in bytes.
    pub body_limit: u64,
    /// Counts the memory of its body.
    pub body_memory: Option<OwnedSemaphorePermit>,
    /// Longest wait for the response's first byte.
    pub first_byte_timeout: Duration,
    /// Counts the stream that it may become, on routes that allow one.
    pub stream: Option<StreamPlace>,
    /// Its deadline. On routes that allow streams it is for the response's head alone.
    pub deadline: Instant,
    /// Counts it among its client's requests; `None` for a trusted proxy's own.
    pub of_client: Option<ClientRequest>,
    /// Counts it as a concurrent request, from [`AdmissionFilter::enter`] on.
    ///
    /// [`AdmissionFilter::enter`]: crate::admission::AdmissionFilter::enter
    pub permit: Option<OwnedSemaphorePermit>,
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
            next: None,
            has_timed_out: false,
            mirror: None,
            mirror_decided: false,
            head_sent: false,
            body_passes: false,
            body_bytes: 0,
            rate_headers: RateHeaders::default(),
            service_call: None,
            fell_back: None,
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
        trace.finish_with_calls(&self.request(method), Some(status), attempts);
    }

    /// The request's line in the access log, with the times until its end and until its response's head.
    pub fn access_line<'a>(
        &'a self,
        method: &Method,
        status: u16,
        (duration, answered): (Duration, Duration),
    ) -> Line<'a> {
        Line {
            time: self.started_at.into(),
            method: method_name(method),
            route: self.route_name(),
            service: self.route.as_ref().map(|route| &*route.service),
            status,
            duration,
            answered,
            request_bytes: self.body_bytes,
            response_bytes: 0,
            instance: self.attempts.last().map(|attempt| attempt.member.instance.id.as_str()),
            tries: self.attempts.len(),
            fallback: self.fell_back.map(Unserved::label),
            request_id: self.request_id.to_str().unwrap_or("-"),
            trace_id: None,
            error: None,
        }
    }

    fn request<'a>(&'a self, method: &'a Method) -> HttpRequest<'a> {
        HttpRequest {
            route: Some(self.route_name()),
            // Probes come every few seconds and say nothing new.
            unsampled: self.own_path.is_some_and(|path| path.ends_with('z')),
            degraded: self.fell_back.map(Unserved::label),
            ..HttpRequest::new(method, None)
        }
    }

    /// The request's span, for its ids and for notes.
    pub fn span(&self) -> &Span {
        self.trace.as_ref().map_or(&self.no_span, DeferredRequest::handle)
    }

    /// Whether the client's TLS ends here.
    pub fn is_tls(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.is_tls)
    }

    /// The attempt in progress.
    pub fn open_attempt(&mut self) -> Option<&mut Attempt> {
        self.attempts.last_mut().filter(|attempt| attempt.is_open())
    }

    /// The attempt in progress has failed; `is_stale` says that its connection may have been closed before.
    pub fn attempt_failed(
        &mut self,
        error: &pingora::Error,
        is_stale: bool,
    ) -> Option<FailedAttempt> {
        let verdict = self.verdict.take();
        let failed =
            self.open_attempt().map(|attempt| attempt.failed(error, verdict.as_ref(), is_stale));
        self.verdict = verdict;
        if let (Some(Attempt { member, .. }), Some(reason)) =
            (self.attempts.last(), failed.and_then(|failed| failed.ejected))
        {
            let facts = [("instance", member.instance.id.as_str()), ("reason", reason.label())];
            self.span().annotate("ejected", &facts);
        }
        failed
    }

    /// Whether a response of its service with a status of 500 or more is replaced.
    pub fn has_fallback(&self, method: &Method) -> bool {
        let fallback = self.route.as_ref().and_then(|route| route.fallback.as_ref());
        fallback.is_some() && Fallback::serves(method)
    }

    /// A body that passed through has been sent to its end. The service's own time begins now: what came before was
    /// the client's.
    pub fn body_has_passed(&mut self) {
        let now = Instant::now();
        if let Some(call) = &mut self.service_call {
            call.request_sent(now);
        }
        if let Some(attempt) = self.open_attempt() {
            attempt.request_sent(now);
        }
    }

    /// Tells the guards of the service how the request ended, once.
    pub fn settle_call(&mut self, outcome: Outcome) {
        if let Some(call) = self.service_call.take()
            && let Some(attempt) = self.attempts.last()
        {
            call.settle(outcome, &attempt.member.instance.id);
        }
    }

    /// The template under which the request is logged: no ids, no query.
    pub fn route_name(&self) -> &str {
        match &self.route {
            Some(route) => &route.template,
            None => self.own_path.unwrap_or("unmatched"),
        }
    }
}
