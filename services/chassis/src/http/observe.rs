//! What is seen of a request from outside its handler: its span, its log line, its count.

use std::any::Any;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue};

use super::{ApiError, Message};
use crate::identity::{REQUEST_ID_HEADER, ServiceCaller};
use crate::metrics::{self, Metrics};
use crate::telemetry::{self, HttpRequest, Service, method_name};

/// Tells the caller the trace and the span that answered it (W3C Trace Context level 2).
pub const TRACE_RESPONSE_HEADER: HeaderName = HeaderName::from_static("traceresponse");

/// Longest request id that is taken over into an answer and a log line, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// What a service's requests are seen with.
#[derive(Debug, Clone)]
pub(super) struct Observer {
    pub service: Service,
    pub metrics: Metrics,
}

/// One span, one line and one count for each request. No query text: it is a person's.
pub(super) async fn observe(
    State(observer): State<Observer>,
    mut request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("unmatched", MatchedPath::as_str);
    let method = request.method().clone();
    // The mesh talking to itself: heartbeats and long polls would drown what clients do.
    let internal = route.starts_with("/internal/") || route.starts_with("/v1/");
    let seen = HttpRequest { unsampled: internal, ..HttpRequest::new(&method, Some(route)) };
    let span = observer.service.server(request.headers(), &seen);
    let request_id = request_id(&request).or_else(|| {
        // One id for both where the caller brought none.
        let id = HeaderValue::try_from(span.trace_id()?).ok()?;
        request.headers_mut().insert(REQUEST_ID_HEADER, id.clone());
        Some(id)
    });
    let mut response = span.run(next.run(request)).await;

    let status = response.status().as_u16();
    span.set_status(status);
    let took = start.elapsed();
    observer.metrics.http().observe(route, method_name(&method), status, took);
    let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    {
        let _current = span.enter();
        let request_id = request_id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or("-");
        if internal && status < 500 {
            tracing::debug!(%method, route, status, duration_us, request_id, "answered");
        } else {
            tracing::info!(%method, route, status, duration_us, request_id, "answered");
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

/// The caller's id for the request, if it is harmless to log.
fn request_id(request: &Request) -> Option<HeaderValue> {
    let harmless = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    request.headers().get_all(REQUEST_ID_HEADER).into_iter().find(harmless).cloned()
}

/// A panic in a handler: logged with its trace, counted, answered 500.
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

/// `GET /internal/log-filter`: what the process logs now.
pub(super) async fn read_log_filter(_: ServiceCaller) -> Result<String, ApiError> {
    telemetry::log_filter().ok_or_else(not_started)
}

/// `PUT /internal/log-filter`: the body is a filter in the form of `--log`. It holds for the whole
/// process until it ends or the filter is set again.
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
    ApiError::not_found(Message::for_operators("this process's logging was not started here"))
}
