//! The contents of the stores, for services and tools of the mesh. The gateway does not route
//! `/internal`, and only services are answered.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::Serialize;
use tourin_chassis::http::{ApiError, Json, Message, Params, Path, ServiceCaller};

use super::unavailable;
use crate::app::audit::Audit;
use crate::domain::interaction::Kind;
use crate::domain::spot::SpotId;

/// The maximum number of spots in one request.
const MAX_IDS: usize = 1_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Scores {
    /// The time of the values, RFC 3339.
    at: String,
    /// The time in which a value halves, in milliseconds.
    half_life_ms: u64,
    /// The initial value of each kind of interaction.
    weights: Weights,
    /// The values by spot, 0 for a spot without any count.
    scores: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct Weights {
    bookmark: f64,
    view: f64,
}

#[derive(Serialize)]
struct History {
    bookmarked: Vec<String>,
    viewed: Vec<String>,
}

#[derive(Serialize)]
struct EventBacklog {
    /// Events that wait for this instance or are in progress.
    waiting: u64,
    /// Events handled since the start.
    handled: u64,
}

pub(super) fn router(audit: Audit) -> Router {
    Router::new()
        .route("/internal/trend/scores", get(scores))
        .route("/internal/histories/{member}", get(history))
        .route("/internal/events/backlog", get(backlog))
        .with_state(audit)
}

fn invalid_ids() -> ApiError {
    let expected = format!("ids must be 1 to {MAX_IDS} ids of spots, separated by commas");
    ApiError::invalid(Message::for_operators(expected))
}

async fn scores(
    State(audit): State<Audit>,
    _: ServiceCaller,
    params: Params,
) -> Result<Json<Scores>, ApiError> {
    let ids = params.list("ids");
    if ids.is_empty() || ids.len() > MAX_IDS {
        return Err(invalid_ids());
    }
    let ids: Vec<SpotId> =
        ids.iter().map(|id| id.parse()).collect::<Result<_, _>>().map_err(|_| invalid_ids())?;
    let trend = audit.trend_values(&ids).await.map_err(unavailable)?;
    let value = |id: &SpotId| trend.values.get(id).copied().unwrap_or_default();
    Ok(Json(Scores {
        at: trend.at.to_rfc3339(),
        half_life_ms: u64::try_from(audit.half_life.as_millis()).unwrap_or(u64::MAX),
        weights: Weights { bookmark: Kind::Bookmark.weight(), view: Kind::View.weight() },
        scores: ids.iter().map(|id| (id.to_string(), value(id))).collect(),
    }))
}

async fn history(
    State(audit): State<Audit>,
    _: ServiceCaller,
    Path(member): Path<String>,
) -> Result<Json<History>, ApiError> {
    let interactions = audit.interactions(&member).await.map_err(unavailable)?;
    let strings = |ids: Vec<SpotId>| ids.iter().map(ToString::to_string).collect();
    Ok(Json(History {
        bookmarked: strings(interactions.bookmarked),
        viewed: strings(interactions.viewed),
    }))
}

async fn backlog(
    State(audit): State<Audit>,
    _: ServiceCaller,
) -> Result<Json<EventBacklog>, ApiError> {
    let (waiting, handled) = audit.backlog().await.map_err(|error| {
        tracing::info!(error = format!("{error:#}"), "the backlog cannot be read");
        ApiError::unavailable(
            Message::for_operators("the bus is unreachable; try again"),
            super::RETRY_AFTER,
        )
    })?;
    Ok(Json(EventBacklog { waiting, handled }))
}
