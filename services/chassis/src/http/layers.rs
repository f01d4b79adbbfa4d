//! The layers around every service's routes.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::json;
use tokio::time::{Instant, timeout_at};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use super::caller::verify_identity;
use super::error::localize_error;
use super::observe::{Observer, answer_panic, observe, read_log_filter, set_log_filter};
use super::operators::no_sniffing;
use super::{ApiError, Message, messages};
use crate::health::Health;
use crate::identity::IdentityVerifier;
use crate::metrics::Metrics;
use crate::telemetry::Service;

/// Longest accepted log filter, in bytes.
const MAX_LOG_FILTER_BYTES: usize = 4 << 10;

/// Limits on requests and connections.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Largest request body, in bytes. Default 1 MiB. Bodies are held in memory: all requests in
    /// flight take up to [`HttpLimits::concurrent_requests`] times this.
    pub body_bytes: usize,
    /// Time from a request's complete head to its response's head, in milliseconds. Default 10 s.
    /// Long polls stay below it or set their own limit. After it, a request with an incomplete body
    /// is answered 408, any other 503.
    pub request_timeout_ms: u64,
    /// Requests in flight. More are answered 503. Default 1,024.
    pub concurrent_requests: usize,
    /// Time to read a request's head, in milliseconds. It includes the idle time of a kept-alive
    /// connection. Default 60 s: longer than the gateway keeps an idle connection, so that the
    /// gateway closes it first.
    pub header_read_timeout_ms: u64,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            body_bytes: 1 << 20,
            request_timeout_ms: 10_000,
            concurrent_requests: 1_024,
            header_read_timeout_ms: 60_000,
        }
    }
}

/// [`observed_router`] with new [`Metrics`].
pub fn service_router(
    service: &'static str,
    router: Router,
    verifier: IdentityVerifier,
    health: Health,
    limits: &HttpLimits,
) -> Router {
    let observer = (Service::new(service), Metrics::new(service));
    observed_router(observer, router, verifier, health, limits)
}

/// Adds to a service's routes what every service has: `/healthz`, `/readyz`, `/metrics` and
/// `/internal/log-filter`; the error body for 404, 405 and panics, in the language of the request;
/// the verified identity; a span, a log line and a count per request; the limits.
pub fn observed_router(
    (service, metrics): (Service, Metrics),
    router: Router,
    verifier: IdentityVerifier,
    health: Health,
    limits: &HttpLimits,
) -> Router {
    let bounds = Bounds {
        time: Duration::from_millis(limits.request_timeout_ms),
        body_bytes: limits.body_bytes,
    };
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(limits.concurrent_requests));
    let probes = Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(readiness).with_state(health))
        .merge(metrics.router());
    let observer = Observer { service, metrics };
    router
        .route("/internal/log-filter", get(read_log_filter).put(set_log_filter))
        .fallback(|| async { ApiError::not_found(messages::no_such_path()) })
        .method_not_allowed_fallback(|| async {
            ApiError::method_not_allowed(messages::method_not_allowed())
        })
        .layer(
            ServiceBuilder::new()
                .layer(from_fn(localize_error))
                .layer(from_fn_with_state(observer, observe))
                .layer(CatchPanicLayer::custom(answer_panic))
                .layer(from_fn_with_state(permits, limit_concurrency))
                .layer(from_fn_with_state(verifier, verify_identity))
                .layer(from_fn_with_state(bounds, limit_time_and_body))
                .layer(DefaultBodyLimit::max(limits.body_bytes)),
        )
        .merge(probes)
        .layer(map_response(no_sniffing))
}

/// Routes for operators of a program that does not use [`observed_router`]: `/healthz`, `/metrics`
/// and `/internal/log-filter`. The listener must not be reachable for clients. The program adds its
/// own `/readyz`.
pub fn operators_router(metrics: &Metrics, verifier: IdentityVerifier) -> Router {
    Router::new()
        .route("/internal/log-filter", get(read_log_filter).put(set_log_filter))
        .layer(DefaultBodyLimit::max(MAX_LOG_FILTER_BYTES))
        .layer(from_fn_with_state(verifier, verify_identity))
        .route("/healthz", get(alive))
        .merge(metrics.router())
        .fallback(|| async { ApiError::not_found(Message::for_operators("no such path")) })
}

async fn alive() -> axum::Json<serde_json::Value> {
    axum::Json(json!({"status": "alive"}))
}

async fn readiness(State(health): State<Health>) -> Response {
    let unready = health.unready();
    let (status, word) = if unready.is_empty() {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "unready")
    };
    let mut body = json!({"status": word, "unready": unready});
    let missed = health.missed();
    if !missed.is_empty() {
        body["missed"] = json!(missed);
    }
    (status, axum::Json(body)).into_response()
}

async fn limit_concurrency(
    State(permits): State<std::sync::Arc<tokio::sync::Semaphore>>,
    request: Request,
    next: Next,
) -> Response {
    // Long polls of other services must not use up the permits for clients' calls.
    if request.uri().path().starts_with("/internal/") {
        return next.run(request).await;
    }
    match permits.try_acquire() {
        Ok(_permit) => next.run(request).await,
        Err(_) => ApiError::unavailable(messages::busy(), Duration::from_secs(1)).into_response(),
    }
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    time: Duration,
    body_bytes: usize,
}

/// Enforces the time limit, and calls the handler only with a complete body: a request that is
/// answered as malformed or too large must have no effect, even if the handler ignores the body.
/// `/internal/` routes, which include long polls, enforce their own limits.
async fn limit_time_and_body(
    State(bounds): State<Bounds>,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path().starts_with("/internal/") {
        return next.run(request).await;
    }
    let deadline = Instant::now() + bounds.time;
    let request = match timeout_at(deadline, collect_body(request, bounds.body_bytes)).await {
        Ok(Ok(request)) => request,
        Ok(Err(refusal)) => return refusal.into_response(),
        Err(_) => {
            return ApiError::too_slow(messages::body_too_slow()).into_response();
        }
    };
    timeout_at(deadline, next.run(request)).await.unwrap_or_else(|_| {
        ApiError::unavailable(messages::took_too_long(), Duration::from_secs(1)).into_response()
    })
}

async fn collect_body(request: Request, limit: usize) -> Result<Request, ApiError> {
    if request.body().is_end_stream() {
        return Ok(request);
    }
    let too_large = || ApiError::too_large(messages::body_too_large(limit as u64));
    if request.body().size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let (head, body) = request.into_parts();
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(Request::from_parts(head, Body::from(body.to_bytes()))),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(ApiError::malformed(messages::body_broke_off())),
    }
}
