//! `/internal/events`: the outbox as a log, by long poll. For services in processes of their own,
//! which ask again from `next`. `/internal/events/backlog`: what of it waits for the bus.

use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use serde::Serialize;
use tourin_chassis::http::{ApiError, Json, Params};
use tourin_chassis::identity::ServiceCaller;
use tourin_shared_events::outbox::{FeedPage, MAX_PAGE_EVENTS};
use utoipa_axum::router::OpenApiRouter;

use super::AppState;

/// The longest that a follower is kept waiting, in milliseconds.
const MAX_WAIT_MS: u64 = 25_000;
/// No sequence number is above what the store counts with.
const LAST: u64 = i64::MAX as u64;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .route("/internal/events", get(follow))
        .route("/internal/events/backlog", get(backlog))
}

/// What `GET /internal/events/backlog` answers.
#[derive(Serialize)]
struct Backlog {
    /// Events that the bus has not confirmed. Without a bus this is all that is kept of the log.
    pending: u64,
    /// When the oldest of them was recorded, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest: Option<String>,
    /// The number of the log's last event.
    last: u64,
}

async fn backlog(
    State(state): State<AppState>,
    _: ServiceCaller,
) -> Result<Json<Backlog>, ApiError> {
    let log = &state.content.feed;
    // First the end: what comes in between is of no matter to who asks.
    let last = log.page(LAST, 1, Duration::ZERO).await?.next;
    let depth = log.depth().await?;
    let oldest = depth.oldest.map(|oldest| oldest.to_rfc3339());
    Ok(Json(Backlog { pending: depth.pending, oldest, last }))
}

async fn follow(
    State(state): State<AppState>,
    _: ServiceCaller,
    params: Params,
) -> Result<Json<FeedPage>, ApiError> {
    let after = params.one::<u64>("after")?.unwrap_or(0);
    let limit = params.one::<u32>("limit")?.unwrap_or(MAX_PAGE_EVENTS);
    let wait_ms = params.one::<u64>("wait_ms")?.unwrap_or(0).min(MAX_WAIT_MS);
    let after = after.min(LAST);
    let page = state.content.feed.page(after, limit, Duration::from_millis(wait_ms)).await?;
    Ok(Json(page))
}
