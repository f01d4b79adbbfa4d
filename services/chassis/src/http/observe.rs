//! The span, the log line and the metrics of each request.

use std::any::Any;
use std::time::{Instant, SystemTime};

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Method};

use super::{ApiError, Message, ServiceCaller};
use crate::identity::REQUEST_ID_HEADER;
use crate::metrics::{self, Gauge, Metrics};
use crate::telemetry::{self, DeferredRequest, HttpRequest, Service, method_name};

/// Carries the trace and span ids of the response (W3C Trace Context level 2).
pub const TRACE_RESPONSE_HEADER: HeaderName = HeaderName::from_static("traceresponse");

/// Longest accepted request id, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

#[derive(Debug, Clone)]
pub(super) struct Observer {
    pub service: Service,
    pub metrics: Metrics,
    pub in_flight: Gauge,
}

/// Counts a request until its response's head, or until its client has left.
struct InFlight<'a>(&'a Gauge);

impl<'a> InFlight<'a> {
    fn counted_in(gauge: &'a Gauge) -> Self {
        gauge.add(1.0);
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

/// A request's span, which ends with the response, or when its client leaves before.
struct Observed {
    trace: DeferredRequest,
    method: Method,
    route: Option<MatchedPath>,
}

impl Observed {
    fn begin(service: &Service, request: &Request) -> Self {
        let method = request.method().clone();
        let route = request.extensions().get::<MatchedPath>().cloned();
        let seen = seen(&method, route.as_ref());
        let trace = service.deferred(request.headers(), &seen, SystemTime::now());
        Self { trace, method, route }
    }

    fn end(&mut self, status: Option<u16>) {
        self.trace.finish(&seen(&self.method, self.route.as_ref()), status);
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.end(None);
    }
}

fn seen<'a>(method: &'a Method, route: Option<&'a MatchedPath>) -> HttpRequest<'a> {
    let route = template(route);
    HttpRequest { unsampled: is_internal(route), ..HttpRequest::new(method, Some(route)) }
}

fn template(route: Option<&MatchedPath>) -> &str {
    route.map_or("unmatched", MatchedPath::as_str)
}

/// Heartbeats and long polls between services would hide clients' requests.
fn is_internal(route: &str) -> bool {
    route.starts_with("/internal/") || route.starts_with("/v1/")
}

/// Records one span, one log line and one count per request. Query text is left out because it is
/// personal data.
pub(super) async fn observe(
    State(observer): State<Observer>,
    mut request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let _in_flight = InFlight::counted_in(&observer.in_flight);
    let mut observed = Observed::begin(&observer.service, &request);
    let span = observed.trace.handle().handle();
    let request_id = request_id(&request).or_else(|| {
        // Without an id from the caller, the trace id is used.
        let id = HeaderValue::try_from(span.trace_id()?).ok()?;
        request.headers_mut().insert(REQUEST_ID_HEADER, id.clone());
        Some(id)
    });
    let mut response = span.run(next.run(request)).await;

    let status = response.status().as_u16();
    observed.end(Some(status));
    let took = start.elapsed();
    let (method, route) = (method_name(&observed.method), template(observed.route.as_ref()));
    observer.metrics.http().observe(route, method, status, took);
    let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    {
        let _current = span.enter();
        let request_id = request_id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or("-");
        if is_internal(route) && status < 500 {
            tracing::debug!(method, route, status, duration_us, request_id, "answered");
        } else {
            tracing::info!(method, route, status, duration_us, request_id, "answered");
        }
    }
    let headers = response.headers_mut();
    if let Some(value) = span.trace_response() {
        headers.insert(TRACE_RESPONSE_HEADER, value);
    }
    if let Some(id) = request_id {
        headers.insert(REQUEST_ID_HEADER, id);
    }
    response
}

/// The caller's request id, if it is safe to log.
fn request_id(request: &Request) -> Option<HeaderValue> {
    let is_safe = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    request.headers().get_all(REQUEST_ID_HEADER).into_iter().find(is_safe).cloned()
}

/// Answers a panic in a handler with 500. It is logged with its trace, and counted.
pub(super) fn answer_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
    metrics::count_panic();
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned());
    telemetry::Span::current().annotate("panic", &[]);
    ApiError::internal(anyhow::anyhow!("panicked: {message}")).into_response()
}

/// `GET /internal/log-filter`: the current log filter.
pub(super) async fn read_log_filter(_: ServiceCaller) -> Result<String, ApiError> {
    telemetry::log_filter().ok_or_else(not_started)
}

/// `PUT /internal/log-filter`: the body is a filter in the form of `--log`. It applies to the
/// process until its end or the next change.
pub(super) async fn set_log_filter(
    caller: ServiceCaller,
    filter: String,
) -> Result<String, ApiError> {
    let before = telemetry::log_filter().unwrap_or_default();
    telemetry::set_log_filter(filter.trim())
        .map_err(|reason| ApiError::invalid(Message::for_operators(reason)))?;
    tracing::warn!(by = caller.name, before, after = filter.trim(), "the log filter was changed");
    telemetry::log_filter().ok_or_else(not_started)
}

fn not_started() -> ApiError {
    ApiError::not_found(Message::for_operators(
        "the logging of this process was not started by this service",
    ))
}
