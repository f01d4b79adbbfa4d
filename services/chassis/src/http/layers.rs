//! The layers around every service's routes.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::BytesMut;
use http::StatusCode;
use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use super::callers::{Admission, AdmissionFilter, admit};
use super::error::localize_error;
use super::observe::{Observer, answer_panic, observe, read_log_filter, set_log_filter};
use super::operators::no_sniffing;
use super::{ApiError, Message, messages};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::telemetry::Service;

/// Longest accepted log filter, in bytes.
const MAX_LOG_FILTER_BYTES: usize = 4 << 10;

/// Memory for the bodies of all requests, in bytes. Beyond it requests are answered 503.
const BODY_MEMORY_BYTES: usize = 64 << 20;

/// Limits on requests and connections.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Largest request body, in bytes. Default 1 MiB. Bodies are held in memory, all together at most
    /// 64 MiB.
    pub body_bytes: usize,
    /// Time from a request's complete head to its response's head, in milliseconds. Default 10 s.
    /// Long polls stay below it or set their own limit. After it, a request with an incomplete body
    /// is answered 408, any other 503.
    pub request_timeout_ms: u64,
    /// Requests whose body is complete and whose response is not. More are answered 503. Default 1,024.
    pub concurrent_requests: usize,
    /// Time to read a request's head, in milliseconds. It includes the idle time of a kept-alive
    /// connection. Default 60 s: longer than the gateway keeps an idle connection, so that the
    /// gateway closes it first.
    pub header_read_timeout_ms: u64,
    /// TLS handshakes at once at one listener, and connections of clients without a certificate of the mesh,
    /// which have five seconds as well. One more ends the oldest. Default 512.
    pub handshakes: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            body_bytes: 1 << 20,
            request_timeout_ms: 10_000,
            concurrent_requests: 1_024,
            header_read_timeout_ms: 60_000,
            handshakes: 512,
        }
    }
}

/// [`observed_router`] with new [`Metrics`].
pub fn service_router(
    service: &'static str,
    router: Router,
    admission: Admission,
    health: Health,
    limits: &HttpLimits,
) -> Router {
    let observer = (Service::new(service), Metrics::new(service));
    observed_router(observer, router, admission, health, limits)
}

/// Adds to a service's routes what every service has: `/healthz`, `/readyz`, `/metrics` and
/// `/internal/log-filter`; the error body for 404, 405 and panics, in the language of the request; the
/// admission of peers and identities; a span, a log line and a count per request; the limits.
pub fn observed_router(
    (service, metrics): (Service, Metrics),
    router: Router,
    admission: Admission,
    health: Health,
    limits: &HttpLimits,
) -> Router {
    let bounds = Bounds {
        time: Duration::from_millis(limits.request_timeout_ms),
        body_bytes: limits.body_bytes,
        memory: Arc::new(Semaphore::new(BODY_MEMORY_BYTES)),
    };
    let permits = Arc::new(Semaphore::new(limits.concurrent_requests));
    let probes = Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(readiness).with_state(health))
        .merge(metrics.router());
    let filter = AdmissionFilter::new(admission, &metrics);
    let in_flight = metrics.gauge("tourin_http_requests_in_flight", "Requests being answered");
    let observer = Observer { service, metrics, in_flight };
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
                .layer(from_fn_with_state(filter.clone(), admit))
                .layer(from_fn_with_state(bounds, limit_time_and_body))
                // After the body: a permit is for work, not for waiting on a client.
                .layer(from_fn_with_state(permits, limit_concurrency))
                .layer(DefaultBodyLimit::max(limits.body_bytes)),
        )
        .merge(probes.layer(from_fn_with_state(filter, admit)))
        .layer(map_response(no_sniffing))
}

/// Routes for operators of a program that does not use [`observed_router`]: `/healthz`, `/metrics`
/// and `/internal/log-filter`. The program adds its own `/readyz`, and then [`admitted`].
pub fn operators_router(metrics: &Metrics) -> Router {
    Router::new()
        .route("/internal/log-filter", get(read_log_filter).put(set_log_filter))
        .layer(DefaultBodyLimit::max(MAX_LOG_FILTER_BYTES))
        .route("/healthz", get(alive))
        .merge(metrics.router())
        .fallback(|| async { ApiError::not_found(Message::for_operators("no such path")) })
}

/// `router` for the peers that `admission` admits. Refusals are counted in `metrics`.
pub fn admitted(router: Router, admission: Admission, metrics: &Metrics) -> Router {
    router.layer(from_fn_with_state(AdmissionFilter::new(admission, metrics), admit))
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
    State(permits): State<Arc<Semaphore>>,
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

#[derive(Debug, Clone)]
struct Bounds {
    time: Duration,
    body_bytes: usize,
    /// One permit for each byte.
    memory: Arc<Semaphore>,
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
    let (request, _memory) = match timeout_at(deadline, collect_body(request, &bounds)).await {
        Ok(Ok(collected)) => collected,
        Ok(Err(refusal)) => return refusal.into_response(),
        Err(_) => {
            return ApiError::too_slow(messages::body_too_slow()).into_response();
        }
    };
    timeout_at(deadline, next.run(request)).await.unwrap_or_else(|_| {
        ApiError::unavailable(messages::took_too_long(), Duration::from_secs(1)).into_response()
    })
}

/// The request with its body in memory, and what that memory counts for. The parts are counted as they
/// arrive: what a client only announces takes no memory.
async fn collect_body(
    request: Request,
    bounds: &Bounds,
) -> Result<(Request, Option<OwnedSemaphorePermit>), ApiError> {
    if request.body().is_end_stream() {
        return Ok((request, None));
    }
    let limit = bounds.body_bytes;
    let too_large = || ApiError::too_large(messages::body_too_large(limit as u64));
    if request.body().size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let (head, mut body) = request.into_parts();
    let (mut whole, mut memory) = (BytesMut::new(), None::<OwnedSemaphorePermit>);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::malformed(messages::body_broke_off()))?;
        let Some(part) = frame.data_ref() else { continue };
        if whole.len() + part.len() > limit {
            return Err(too_large());
        }
        let bytes = u32::try_from(part.len()).unwrap_or(u32::MAX);
        let more = Arc::clone(&bounds.memory).try_acquire_many_owned(bytes);
        let busy = |_| ApiError::unavailable(messages::busy(), Duration::from_secs(1));
        let more = more.map_err(busy)?;
        match &mut memory {
            Some(memory) => memory.merge(more),
            None => memory = Some(more),
        }
        whole.extend_from_slice(part);
    }
    Ok((Request::from_parts(head, Body::from(whole.freeze())), memory))
}
