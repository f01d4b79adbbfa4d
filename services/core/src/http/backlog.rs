//! `/internal/events/backlog`: how many events wait in the outbox for the bus.

use axum::extract::State;
use axum::routing::get;
use serde::Serialize;
use tourin_chassis::http::{ApiError, Json, ServiceCaller};

use utoipa_axum::router::OpenApiRouter;

use super::AppState;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().route("/internal/events/backlog", get(backlog))
}

#[derive(Serialize)]
struct Backlog {
    /// Events that the bus has not confirmed.
    pending: u64,
    /// When the oldest of them was recorded, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest: Option<String>,
}

async fn backlog(
    State(state): State<AppState>,
    _: ServiceCaller,
) -> Result<Json<Backlog>, ApiError> {
    let depth = state.content.waiting_events().await?;
    let oldest = depth.oldest.map(|oldest| oldest.to_rfc3339());
    Ok(Json(Backlog { pending: depth.pending, oldest }))
}
