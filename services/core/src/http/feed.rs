//! `/internal/events`: the outbox as a log, by long poll. For services in processes of their own,
//! which ask again from `next`.

use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use tourin_chassis::http::{ApiError, Json, Params};
use tourin_chassis::identity::ServiceCaller;
use tourin_shared_events::outbox::{FeedPage, MAX_PAGE_EVENTS};
use utoipa_axum::router::OpenApiRouter;

use super::AppState;

/// The longest that a follower is kept waiting, in milliseconds.
const MAX_WAIT_MS: u64 = 25_000;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().route("/internal/events", get(follow))
}

async fn follow(
    State(state): State<AppState>,
    _: ServiceCaller,
    params: Params,
) -> Result<Json<FeedPage>, ApiError> {
    let after = params.one::<u64>("after")?.unwrap_or(0);
    let limit = params.one::<u32>("limit")?.unwrap_or(MAX_PAGE_EVENTS);
    let wait_ms = params.one::<u64>("wait_ms")?.unwrap_or(0).min(MAX_WAIT_MS);
    // No sequence number is above what the store counts with.
    let after = after.min(i64::MAX as u64);
    let page = state.content.feed.page(after, limit, Duration::from_millis(wait_ms)).await?;
    Ok(Json(page))
}
