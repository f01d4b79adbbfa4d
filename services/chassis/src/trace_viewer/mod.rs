//! The traces in a [`MemoryStore`] over HTTP: Zipkin's read API, and a page that shows them.

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{Html, IntoResponse, Redirect};
use axum::routing::{get, post};
use chrono::Utc;
use http::{HeaderName, StatusCode, header};
use serde_json::{Value, json};

use crate::http::{ApiError, Json, Message, Params, Path};
use crate::telemetry::ZipkinSpan;
use crate::telemetry::memory::{Link, MemoryStore, TraceQuery};

const PAGE: &str = include_str!("page.html");
/// The page loads nothing from other servers and calls this server only; it shows text, never
/// markup.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The largest batch that the collector accepts, in bytes.
const MAX_BATCH_BYTES: usize = 8 << 20;
/// Most traces in one response.
const MAX_LIMIT: usize = 1_000;
/// Zipkin's default number of traces, and its default lookback.
const DEFAULT_LIMIT: usize = 10;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// The page at `/` and at Zipkin's path of a trace, and `GET` of `/api/v2/services`, `spans`,
/// `remoteServices`, `traces`, `trace/{id}`, `traceMany` and `dependencies`, with Zipkin's responses.
pub fn router(store: MemoryStore) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/zipkin/traces/{id}", get(redirect_to_trace))
        .route("/health", get(|| async { Json(json!({"status": "UP"})) }))
        .route("/api/v2/services", get(services))
        .route("/api/v2/spans", get(span_names))
        .route("/api/v2/remoteServices", get(remote_services))
        .route("/api/v2/traces", get(traces))
        .route("/api/v2/traceMany", get(trace_many))
        .route("/api/v2/trace/{id}", get(trace))
        .route("/api/v2/dependencies", get(dependencies))
        .fallback(|| async { ApiError::not_found(Message::for_operators("no such path")) })
        .with_state(store)
}

/// `POST /api/v2/spans` like a Zipkin collector; for tests, and for processes that share one viewer.
pub fn collector(store: MemoryStore) -> Router {
    Router::new()
        .route("/api/v2/spans", post(collect))
        .layer(DefaultBodyLimit::max(MAX_BATCH_BYTES))
        .with_state(store)
}

async fn page() -> impl IntoResponse {
    const CSP: HeaderName = header::CONTENT_SECURITY_POLICY;
    ([(CSP, POLICY), (header::CACHE_CONTROL, "no-store")], Html(PAGE))
}

/// Zipkin's path of a trace works here too.
async fn redirect_to_trace(Path(id): Path<String>) -> Result<Redirect, ApiError> {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(ApiError::malformed(Message::for_operators(
            "expected a trace's id in hexadecimal digits",
        )));
    }
    Ok(Redirect::temporary(&format!("/#{id}")))
}

async fn services(State(store): State<MemoryStore>) -> Json<Value> {
    Json(json!(store.services()))
}

fn service_name(params: &Params) -> Result<String, ApiError> {
    params
        .text("serviceName")
        .ok_or_else(|| ApiError::malformed(Message::for_operators("serviceName is missing")))
}

async fn span_names(
    State(store): State<MemoryStore>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!(store.span_names(&service_name(&params)?))))
}

async fn remote_services(
    State(store): State<MemoryStore>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!(store.remote_services(&service_name(&params)?))))
}

async fn traces(
    State(store): State<MemoryStore>,
    params: Params,
) -> Result<Json<Vec<Vec<ZipkinSpan>>>, ApiError> {
    Ok(Json(store.traces(&trace_query(&params)?)))
}

fn now_ms() -> u64 {
    Utc::now().timestamp_millis().unsigned_abs()
}

/// The query in `params`, with Zipkin's names and defaults; 422 for an invalid number.
fn trace_query(params: &Params) -> Result<TraceQuery, ApiError> {
    let lower = |name: &str| {
        // Zipkin's page sends "all" for any.
        params.text(name).map(|text| text.to_lowercase()).filter(|text| text != "all")
    };
    let annotations = params.text("annotationQuery").unwrap_or_default();
    Ok(TraceQuery {
        service: lower("serviceName"),
        span: lower("spanName"),
        remote_service: lower("remoteServiceName"),
        annotations: annotations
            .split(" and ")
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| match part.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (part.to_owned(), None),
            })
            .collect(),
        min_duration: params.one("minDuration")?,
        max_duration: params.one("maxDuration")?,
        end_ms: params.one("endTs")?.unwrap_or_else(now_ms),
        lookback_ms: params.one("lookback")?.unwrap_or(DAY_MS),
        limit: params.one::<usize>("limit")?.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT),
    })
}

async fn trace(
    State(store): State<MemoryStore>,
    Path(id): Path<String>,
) -> Result<Json<Vec<ZipkinSpan>>, ApiError> {
    let unknown = || ApiError::not_found(Message::for_operators("no such trace is kept"));
    store.trace(&id).map(Json).ok_or_else(unknown)
}

async fn trace_many(
    State(store): State<MemoryStore>,
    params: Params,
) -> Json<Vec<Vec<ZipkinSpan>>> {
    let ids = params.list("traceIds");
    Json(ids.iter().take(100).filter_map(|id| store.trace(id)).collect())
}

async fn dependencies(
    State(store): State<MemoryStore>,
    params: Params,
) -> Result<Json<Vec<Link>>, ApiError> {
    let end = params.one("endTs")?.unwrap_or_else(now_ms);
    let lookback = params.one("lookback")?.unwrap_or(DAY_MS);
    Ok(Json(store.dependencies(end, lookback)))
}

async fn collect(
    State(store): State<MemoryStore>,
    Json(spans): Json<Vec<ZipkinSpan>>,
) -> StatusCode {
    store.insert(spans);
    StatusCode::ACCEPTED
}
