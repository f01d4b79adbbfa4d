//! `/internal/tour-spots`: all spots by id, for replicas that start or have missed events. A replica
//! that consumes events at the same time keeps the higher version of each spot.

use axum::extract::State;
use axum::routing::get;
use serde::Serialize;
use tourin_chassis::http::{ApiError, Json, Message, Parameter, Params, ServiceCaller};

use tourin_shared_events::events::TourSpotUpsert;
use utoipa_axum::router::OpenApiRouter;

use super::AppState;
use crate::app::spots::{MAX_RESYNC_PAGE, upsert_payload};
use crate::domain::spot::{InvalidId, SpotId};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().route("/internal/tour-spots", get(walk))
}

impl Parameter for SpotId {
    fn refusal(name: &str, _: &InvalidId) -> Message {
        Message::for_operators(format!("{name} must be a spot's id"))
    }
}

#[derive(Serialize)]
struct SpotsAnswer {
    /// The id of core's event history. Spot versions are comparable only within one history.
    log_id: String,
    spots: Vec<TourSpotUpsert>,
    /// The cursor of the next page; null at the end.
    next: Option<String>,
}

async fn walk(
    State(state): State<AppState>,
    _: ServiceCaller,
    params: Params,
) -> Result<Json<SpotsAnswer>, ApiError> {
    let after = params.one::<SpotId>("after")?;
    let limit = params.one::<u32>("limit")?.unwrap_or(MAX_RESYNC_PAGE).clamp(1, MAX_RESYNC_PAGE);
    let spots = state.content.spots.page_after(after, limit).await?;
    let full = spots.len() == limit as usize;
    Ok(Json(SpotsAnswer {
        log_id: state.content.log_id().await?,
        next: spots.last().filter(|_| full).map(|spot| spot.id.to_string()),
        spots: spots.iter().map(upsert_payload).collect(),
    }))
}
