//! The layers around every service's routes.

use std::any::Any;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use serde_json::json;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

use super::ApiError;
use crate::health::Health;
use crate::identity::{IdentityVerifier, REQUEST_ID_HEADER, verify_identity};

/// Bounds on what a service takes from a connection.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Largest request body, in bytes. Default 1 MiB.
    pub body_bytes: usize,
    /// Time from the whole head of a request to its answer's head, in milliseconds. Default 10 s;
    /// long polls bound themselves below it or set their own.
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

/// A service's routes with what every service adds: `/healthz` and `/readyz`, 404 and 405 with the
/// error body, the verified identity, one log line per request, a panic as 500, and the limits.
pub fn service_router(
    service: &'static str,
    router: Router,
    verifier: IdentityVerifier,
    health: Health,
    limits: &HttpLimits,
) -> Router {
    let timeout = Duration::from_millis(limits.request_timeout_ms);
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(limits.concurrent_requests));
    let probes = Router::new()
        .route("/healthz", get(|| async { axum::Json(json!({"status": "alive"})) }))
        .route("/readyz", get(readiness).with_state(health));
    router
        .fallback(|| async { ApiError::not_found("no such path") })
        .method_not_allowed_fallback(|| async {
            ApiError::method_not_allowed("the path is known; see Allow for its methods")
        })
        .layer(
            ServiceBuilder::new()
                .layer(from_fn(log_request))
                .layer(CatchPanicLayer::custom(answer_panic))
                .layer(from_fn_with_state(permits, limit_concurrency))
                .layer(from_fn_with_state(timeout, limit_time))
                .layer(DefaultBodyLimit::max(limits.body_bytes))
                .layer(from_fn_with_state(verifier, verify_identity)),
        )
        .merge(probes)
        .layer(axum::Extension(ServiceName(service)))
}

#[derive(Debug, Clone, Copy)]
struct ServiceName(&'static str);

async fn readiness(State(health): State<Health>) -> Response {
    let unready = health.unready();
    let (status, word) = if unready.is_empty() {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "unready")
    };
    (status, axum::Json(json!({"status": word, "unready": unready}))).into_response()
}

/// One line per request. No query text: it is a person's.
async fn log_request(request: Request, next: Next) -> Response {
    let service = request.extensions().get::<ServiceName>().map_or("", |name| name.0);
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let request_id = request
        .headers()
        .get(REQUEST_ID_HEADER)
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let method = request.method().clone();
    // The mesh talking to itself: heartbeats and long polls would drown what clients do.
    let internal = route.starts_with("/internal/") || route.starts_with("/v1/");
    let span = tracing::info_span!("request", service, %request_id);
    async move {
        let start = Instant::now();
        let response = next.run(request).await;
        let status = response.status().as_u16();
        let duration_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        if internal {
            tracing::debug!(%method, route, status, duration_us, "answered");
        } else {
            tracing::info!(%method, route, status, duration_us, "answered");
        }
        response
    }
    .instrument(span)
    .await
}

fn answer_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned());
    ApiError::internal(anyhow::anyhow!("panicked: {message}")).into_response()
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
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::unavailable(
            "the request took longer than this service allows; try again",
            Duration::from_secs(1),
        )
        .into_response(),
    }
}
