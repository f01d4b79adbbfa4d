//! Instances: register, renew, drain, deregister, list.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use chrono::TimeDelta;
use tourin_chassis::http::{ApiError, Json, Message, Params, Path};
use tourin_registry_api::wire::{MAX_WAIT_MS, RegisterRequest};
use tourin_registry_api::{Departure, Instance, Registered, Snapshot, limits};

use super::authority::SecretHolder;
use crate::app::Discovery;
use crate::domain::{RegisterError, Unknown};

type Key = Path<(String, String)>;

pub(super) async fn register(
    _: SecretHolder,
    State(discovery): State<Arc<Discovery>>,
    Path((service, id)): Key,
    Json(request): Json<RegisterRequest>,
) -> Result<Json<Registered>, ApiError> {
    limits::service_name(&service).map_err(invalid)?;
    limits::instance_id(&id).map_err(invalid)?;
    limits::metadata(&request.metadata).map_err(invalid)?;
    limits::lease_ms(request.lease_ms).map_err(invalid)?;
    if request.address.port() == 0 || request.address.ip().is_unspecified() {
        return Err(ApiError::invalid(Message::for_operators(
            "address is where others reach the instance: a port other than 0 on an address other than 0.0.0.0 or [::]",
        )));
    }
    let lease = TimeDelta::milliseconds(i64::try_from(request.lease_ms).unwrap_or(i64::MAX));
    let instance = Instance {
        service,
        id,
        address: request.address,
        status: request.status,
        metadata: request.metadata,
    };
    let version = discovery.register(instance, lease).map_err(|error| match error {
        RegisterError::Held { .. } => ApiError::conflict(english(error)),
        RegisterError::Full { .. } => ApiError::unavailable(english(error), Duration::from_secs(1)),
    })?;
    Ok(Json(Registered { version }))
}

pub(super) async fn renew(
    _: SecretHolder,
    State(discovery): State<Arc<Discovery>>,
    Path((service, id)): Key,
) -> Result<StatusCode, ApiError> {
    discovery.renew(&service, &id).map_err(unknown)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn drain(
    _: SecretHolder,
    State(discovery): State<Arc<Discovery>>,
    Path((service, id)): Key,
    params: Params,
) -> Result<Json<Departure>, ApiError> {
    let wait = wait(&params)?;
    discovery.drain(&service, &id, wait).await.map(Json).map_err(unknown)
}

pub(super) async fn deregister(
    _: SecretHolder,
    State(discovery): State<Arc<Discovery>>,
    Path((service, id)): Key,
    params: Params,
) -> Result<Json<Departure>, ApiError> {
    let wait = wait(&params)?;
    discovery.deregister(&service, &id, wait).await.map(Json).map_err(unknown)
}

pub(super) async fn list(
    State(discovery): State<Arc<Discovery>>,
    params: Params,
) -> Result<Json<Snapshot>, ApiError> {
    let service: Option<String> = params.one("service")?;
    Ok(Json(discovery.list(service.as_deref())))
}

/// How long to wait for acknowledgements: 0 by default, at most [`MAX_WAIT_MS`].
fn wait(params: &Params) -> Result<Duration, ApiError> {
    let wait_ms: u64 = params.one("wait_ms")?.unwrap_or(0);
    if wait_ms > MAX_WAIT_MS {
        return Err(ApiError::invalid(english(format!("wait_ms is at most {MAX_WAIT_MS}"))));
    }
    Ok(Duration::from_millis(wait_ms))
}

pub(super) fn invalid(error: limits::InvalidValue) -> ApiError {
    ApiError::invalid(english(error))
}

fn unknown(error: Unknown) -> ApiError {
    ApiError::not_found(english(error))
}

/// A message in English: the registry's clients are programs and operators.
pub(super) fn english(text: impl ToString) -> Message {
    Message::for_operators(text.to_string())
}
