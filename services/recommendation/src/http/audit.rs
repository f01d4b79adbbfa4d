//! What the stores hold, for the mesh's own services and tools. The gateway routes nothing below
//! `/internal`, and nobody but a service gets an answer.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::Serialize;
use tourin_chassis::http::{ApiError, Json, Message, Params, Path};
use tourin_chassis::identity::ServiceCaller;

use super::unavailable;
use crate::app::audit::Audit;
use crate::domain::interaction::Kind;
use crate::domain::spot::SpotId;

/// The most spots in one question.
const MAX_IDS: usize = 1_000;

/// What `GET /internal/trend/scores` answers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Scores {
    /// The time that the values are as of, RFC 3339.
    at: String,
    /// The time in which a value halves, in milliseconds.
    half_life_ms: u64,
    /// What one of each kind is worth when it happens.
    weights: Weights,
    /// By spot, 0 for one that nothing counts for.
    scores: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct Weights {
    bookmark: f64,
    view: f64,
}

/// What `GET /internal/histories/{member}` answers.
#[derive(Serialize)]
struct History {
    bookmarked: Vec<String>,
    viewed: Vec<String>,
}

/// What `GET /internal/events/backlog` answers.
#[derive(Serialize)]
struct EventBacklog {
    /// Events that wait for this instance or are in its hands.
    waiting: u64,
    /// Events that it is done with, since its start.
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
    let worth = audit.worth(&ids).await.map_err(unavailable)?;
    let value = |id: &SpotId| worth.values.get(id).copied().unwrap_or_default();
    Ok(Json(Scores {
        at: worth.at.to_rfc3339(),
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
    let deeds = audit.deeds(&member).await.map_err(unavailable)?;
    let strings = |ids: Vec<SpotId>| ids.iter().map(ToString::to_string).collect();
    Ok(Json(History { bookmarked: strings(deeds.bookmarked), viewed: strings(deeds.viewed) }))
}

async fn backlog(
    State(audit): State<Audit>,
    _: ServiceCaller,
) -> Result<Json<EventBacklog>, ApiError> {
    let (waiting, handled) = audit.backlog().await.map_err(|error| {
        tracing::info!(error = format!("{error:#}"), "the backlog cannot be read");
        ApiError::unavailable(
            Message::for_operators("the bus is out of reach; try again"),
            super::RETRY_AFTER,
        )
    })?;
    Ok(Json(EventBacklog { waiting, handled }))
}
