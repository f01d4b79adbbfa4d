//! What is known of one request while it is under way.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderValue;
use pingora::http::RequestHeader;
use tokio::sync::OwnedSemaphorePermit;
use tourin_chassis::telemetry::{HttpRequest, Service, Span, Text};
use tourin_registry_api::Instance;

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
    pub span: Arc<Span>,
    /// The try under way.
    pub attempt: Option<Attempt>,
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
    /// The instance that it went to last.
    pub instance: Option<Instance>,
    /// Instances (by id) that are not tried again.
    pub excluded: Vec<String>,
    /// Attempts made.
    pub tries: usize,
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
            span: Arc::new(Span::none()),
            attempt: None,
            connection: None,
            request_id: HeaderValue::from_static("unknown"),
            cross_origin: None,
            admitted: None,
            renewal: None,
            instance: None,
            excluded: Vec::new(),
            tries: 0,
            head_sent: false,
            body_bytes: 0,
            verdict: None,
            route: None,
            own_path: None,
        }
    }
}

impl RequestContext {
    /// Begins the request's span, once it is known where its path leads.
    pub fn begin(&mut self, service: &Service, header: &RequestHeader) {
        let request = HttpRequest {
            method: &header.method,
            route: Some(self.template()),
            started: Some(self.started_at),
            // Probes come every few seconds and tell nothing.
            unwatched: self.own_path.is_some_and(|path| path.ends_with('z')),
        };
        self.span = Arc::new(service.server(&header.headers, &request));
    }

    /// The try under way has failed; `again` says whether there will be another one.
    pub fn attempt_failed(&mut self, error: &pingora::Error, again: bool) {
        let Some(mut attempt) = self.attempt.take() else { return };
        let reason = attempt.failed(error, self.verdict.as_ref());
        if again {
            attempt.retried();
            let instance = self.instance.as_ref().map_or("-", |instance| instance.id.as_str());
            self.span.annotate("retry", &[("reason", reason), ("failed", instance)]);
        }
    }

    /// The template under which the request is logged: no ids, no query.
    pub fn route_name(&self) -> &str {
        self.template().as_str()
    }

    fn template(&self) -> Text<'_> {
        match &self.route {
            Some(route) => Text::from(&route.template),
            None => Text::from(self.own_path.unwrap_or("unmatched")),
        }
    }
}
