//! Operators' calls: leases, overrides, protection, and the report on scaling.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use tourin_chassis::http::{ApiError, Json, Params, Path};
use tourin_registry_api::wire::{LeaseReport, OverrideRequest, ScaleReport};
use tourin_registry_api::{Departure, limits};

use super::instances::{english, invalid, lease_error, unavailable, wait};
use crate::app::Discovery;

pub(super) async fn leases(
    State(discovery): State<Arc<Discovery>>,
    params: Params,
) -> Result<Json<LeaseReport>, ApiError> {
    let service: Option<String> = params.one("service")?;
    discovery.leases(service.as_deref()).await.map(Json).map_err(unavailable)
}

pub(super) async fn departures(
    State(discovery): State<Arc<Discovery>>,
    params: Params,
) -> Result<Json<ScaleReport>, ApiError> {
    let service: Option<String> = params.one("service")?;
    discovery.departures(service.as_deref()).await.map(Json).map_err(unavailable)
}

pub(super) async fn set_override(
    State(discovery): State<Arc<Discovery>>,
    Path((service, id)): Path<(String, String)>,
    params: Params,
    Json(request): Json<OverrideRequest>,
) -> Result<Json<Departure>, ApiError> {
    let wait = wait(&params)?;
    limits::weight(request.weight.unwrap_or_default()).map_err(invalid)?;
    let set = discovery.set_override((&service, &id), &request, wait).await;
    set.map(Json).map_err(lease_error)
}

pub(super) async fn end_protection(
    State(discovery): State<Arc<Discovery>>,
    Path(service): Path<String>,
) -> Result<StatusCode, ApiError> {
    if discovery.end_protection(&service).await.map_err(unavailable)? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found(english(format!("{service} is not protected"))))
    }
}
