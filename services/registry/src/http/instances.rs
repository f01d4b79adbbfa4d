//! Instances: register, renew, drain, deregister, list.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use chrono::TimeDelta;
use tourin_chassis::http::PeerOf;
use tourin_chassis::http::{ApiError, Json, Message, Params, Path};
use tourin_registry_api::wire::{LeaveRequest, MAX_WAIT_MS, RegisterRequest, codes};
use tourin_registry_api::{Departure, Instance, Registered, Snapshot, Status, limits};

use crate::app::Discovery;
use crate::app::ports::{StoreError, Unavailable};
use crate::domain::{LeaseError, RegisterError};

type Key = Path<(String, String)>;

pub(super) async fn register(
    peer: PeerOf,
    State(discovery): State<Arc<Discovery>>,
    Path((service, id)): Key,
    Json(request): Json<RegisterRequest>,
) -> Result<Json<Registered>, ApiError> {
    is_itself(&peer, &service, &id)?;
    limits::service_name(&service).map_err(invalid)?;
    limits::instance_id(&id).map_err(invalid)?;
    limits::metadata(&request.metadata).map_err(invalid)?;
    limits::lease_ms(request.lease_ms).map_err(invalid)?;
    if request.address.port() == 0 || request.address.ip().is_unspecified() {
        return Err(ApiError::invalid(Message::for_operators(
            "address is where others reach the instance: a port other than 0 on an address other than 0.0.0.0 or [::]",
        )));
    }
    if !matches!(request.status, Status::Up | Status::Draining) {
        return Err(ApiError::invalid(english(
            "status is up or draining: an instance cannot take itself out of service",
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
    let version = discovery.register(instance, lease).await.map_err(register_error)?;
    Ok(Json(Registered { version }))
}

fn register_error(error: StoreError<RegisterError>) -> ApiError {
    let error = match error {
        StoreError::Refused(error) => error,
        StoreError::Unavailable(error) => return unavailable(error),
    };
    match error {
        RegisterError::Held { .. } => ApiError::conflict(english(error)).coded(codes::ID_HELD),
        RegisterError::Unverified { .. } => {
            ApiError::invalid(english(error)).coded(codes::UNVERIFIED)
        }
        RegisterError::Full { .. } => ApiError::unavailable(english(error), Duration::from_secs(1))
            .coded(codes::REGISTRY_FULL),
        RegisterError::ServiceFull { .. } => {
            ApiError::conflict(english(error)).coded(codes::TOO_MANY_INSTANCES)
        }
    }
}

pub(super) async fn renew(
    peer: PeerOf,
    State(discovery): State<Arc<Discovery>>,
    Path((service, id)): Key,
) -> Result<StatusCode, ApiError> {
    is_itself(&peer, &service, &id)?;
    discovery.renew(&service, &id).await.map_err(lease_error)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn drain(
    peer: PeerOf,
    State(discovery): State<Arc<Discovery>>,
    Path((service, id)): Key,
    params: Params,
) -> Result<Json<Departure>, ApiError> {
    is_itself(&peer, &service, &id)?;
    let wait = wait(&params)?;
    discovery.drain(&service, &id, wait).await.map(Json).map_err(lease_error)
}

pub(super) async fn deregister(
    peer: PeerOf,
    State(discovery): State<Arc<Discovery>>,
    Path((service, id)): Key,
    params: Params,
) -> Result<Json<Departure>, ApiError> {
    is_itself(&peer, &service, &id)?;
    let wait = wait(&params)?;
    discovery.deregister(&service, &id, None, wait).await.map(Json).map_err(lease_error)
}

/// The last call of an instance that has drained: nobody sends to it, so there is nothing to wait for.
pub(super) async fn leave(
    peer: PeerOf,
    State(discovery): State<Arc<Discovery>>,
    Path((service, id)): Key,
    Json(said): Json<LeaveRequest>,
) -> Result<Json<Departure>, ApiError> {
    is_itself(&peer, &service, &id)?;
    let left = discovery.deregister(&service, &id, Some(said), Duration::ZERO).await;
    left.map(Json).map_err(lease_error)
}

pub(super) async fn list(
    State(discovery): State<Arc<Discovery>>,
    params: Params,
) -> Result<Json<Snapshot>, ApiError> {
    let service: Option<String> = params.one("service")?;
    discovery.list(service.as_deref()).map(Json).map_err(unavailable)
}

/// An instance speaks for itself alone.
fn is_itself(PeerOf(peer): &PeerOf, service: &str, id: &str) -> Result<(), ApiError> {
    if (&*peer.service, &*peer.instance) == (service, id) {
        return Ok(());
    }
    Err(ApiError::forbidden(english(format!(
        "the certificate is that of {}/{}, which may not speak for others",
        peer.service, peer.instance
    ))))
}

/// How long to wait for acknowledgements: 0 by default, at most [`MAX_WAIT_MS`].
pub(super) fn wait(params: &Params) -> Result<Duration, ApiError> {
    let wait_ms: u64 = params.one("wait_ms")?.unwrap_or(0);
    if wait_ms > MAX_WAIT_MS {
        return Err(ApiError::invalid(english(format!("wait_ms is at most {MAX_WAIT_MS}"))));
    }
    Ok(Duration::from_millis(wait_ms))
}

pub(super) fn invalid(error: limits::InvalidValue) -> ApiError {
    ApiError::invalid(english(error))
}

pub(super) fn lease_error(error: StoreError<LeaseError>) -> ApiError {
    match error {
        StoreError::Refused(error @ LeaseError::Unknown) => ApiError::not_found(english(error)),
        StoreError::Unavailable(error) => unavailable(error),
    }
}

/// Another registry may answer: clients try the next one.
pub(super) fn unavailable(error: Unavailable) -> ApiError {
    tracing::debug!(%error, "a call is not answered");
    ApiError::unavailable(english("the registry's store does not answer"), Duration::from_secs(1))
}

/// A message in English: the registry's clients are programs and operators.
pub(super) fn english(text: impl ToString) -> Message {
    Message::for_operators(text.to_string())
}
