//! The layers around every service's routes.

use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use serde_json::json;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use super::ApiError;
use super::arrival::Arrival;
use super::observe::{Observer, answer_panic, observe, read_log_filter, set_log_filter};
use crate::health::Health;
use crate::identity::{IdentityVerifier, verify_identity};
use crate::metrics::Metrics;
use crate::telemetry::Service;

/// Longest log filter that is taken, in bytes.
const MAX_LOG_FILTER_BYTES: usize = 4 << 10;

/// Bounds on what a service takes from a connection.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Largest request body, in bytes. Default 1 MiB.
    pub body_bytes: usize,
    /// Time from the whole head of a request to its answer's head, in milliseconds. Default 10 s;
    /// long polls bound themselves below it or set their own. A request whose body is waited for
    /// then is answered 408, another one 503.
    pub request_timeout_ms: u64,
    /// Requests handled at once; more are answered 503. Default 1,024.
    pub concurrent_requests: usize,
    /// Time to read a request's head, idle time on a kept-alive connection included, in
    /// milliseconds. Default 60 s: longer than the gateway keeps an idle connection, so that the
    /// gateway is the one that closes it.
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

/// [`observed_router`] with metrics that have nothing but the service's requests.
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

/// A service's routes with what every service adds: `/healthz`, `/readyz` and `/metrics`, 404 and
/// 405 with the error body, the verified identity, a span, a log line and a count for each request, a panic as
/// 500, the limits, and `/internal/log-filter`.
pub fn observed_router(
    (service, metrics): (Service, Metrics),
    router: Router,
    verifier: IdentityVerifier,
    health: Health,
    limits: &HttpLimits,
) -> Router {
    let timeout = Duration::from_millis(limits.request_timeout_ms);
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(limits.concurrent_requests));
    let probes = Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(readiness).with_state(health))
        .merge(metrics.router());
    let observer = Observer { service, metrics };
    router
        .route("/internal/log-filter", get(read_log_filter).put(set_log_filter))
        .fallback(|| async { ApiError::not_found("no such path") })
        .method_not_allowed_fallback(|| async {
            ApiError::method_not_allowed("the path is known; see Allow for its methods")
        })
        .layer(
            ServiceBuilder::new()
                .layer(from_fn_with_state(observer, observe))
                .layer(CatchPanicLayer::custom(answer_panic))
                .layer(from_fn_with_state(permits, limit_concurrency))
                .layer(from_fn_with_state(timeout, limit_time))
                .layer(DefaultBodyLimit::max(limits.body_bytes))
                .layer(from_fn_with_state(verifier, verify_identity)),
        )
        .merge(probes)
}

/// What an operator asks of a program whose clients do not come through [`observed_router`]:
/// `/healthz`, `/metrics` and `/internal/log-filter`. For a listener that clients do not reach; the
/// program adds its own `/readyz`.
pub fn operators_router(metrics: &Metrics, verifier: IdentityVerifier) -> Router {
    Router::new()
        .route("/internal/log-filter", get(read_log_filter).put(set_log_filter))
        .layer(DefaultBodyLimit::max(MAX_LOG_FILTER_BYTES))
        .layer(from_fn_with_state(verifier, verify_identity))
        .route("/healthz", get(alive))
        .merge(metrics.router())
        .fallback(|| async { ApiError::not_found("no such path") })
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
    // Long polls of the mesh's own members must not take the places of clients' calls.
    if request.uri().path().starts_with("/internal/") {
        return next.run(request).await;
    }
    match permits.try_acquire() {
        Ok(_permit) => next.run(request).await,
        Err(_) => ApiError::unavailable(
            "this instance is at its limit of concurrent requests; try again",
            Duration::from_secs(1),
        )
        .into_response(),
    }
}

async fn limit_time(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    // A long poll bounds its own wait.
    if request.uri().path().starts_with("/internal/") {
        return next.run(request).await;
    }
    let (request, body) = Arrival::watch(request);
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) if body.is_awaited() => {
            ApiError::too_slow("the request's body took too long to arrive").into_response()
        }
        Err(_) => ApiError::unavailable(
            "the request took longer than this service allows; try again",
            Duration::from_secs(1),
        )
        .into_response(),
    }
}
