//! Certificates and join tokens.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use tourin_chassis::http::{ApiError, Json, PeerOf, fields};
use tourin_chassis::peer::Peer;
use tourin_registry_api::REGISTRY;
use tourin_registry_api::limits::{self, MAX_JOIN_TOKEN_TTL_S};
use tourin_registry_api::wire::{
    CertificateRequest, IssuedCertificate, IssuedJoinToken, JoinClaims, JoinTokenRequest, codes,
};

use super::instances::{english, invalid};
use crate::app::ports::TokenUses;
use crate::authority::{Authority, JoinRefused};

/// A first certificate by a join token, or a new one for a peer that has one.
pub(super) async fn issue(
    State(authority): State<Arc<Authority>>,
    State(uses): State<Arc<dyn TokenUses>>,
    peer: Option<axum::Extension<Arc<Peer>>>,
    headers: HeaderMap,
    Json(request): Json<CertificateRequest>,
) -> Result<Json<IssuedCertificate>, ApiError> {
    let is_renewal = peer.is_some();
    let (service, instance) = match peer {
        Some(axum::Extension(peer)) => {
            Authority::check_request(&request.csr).map_err(not_understood)?;
            (peer.service.clone(), peer.instance.clone())
        }
        None => {
            limits::instance_id(&request.instance).map_err(invalid)?;
            let token = fields::bearer_tokens(&headers).next().ok_or_else(|| {
                ApiError::unauthenticated(english(
                    "this call needs a certificate of the mesh, or Authorization: Bearer <join token>",
                ))
            })?;
            // Who has no token has nothing parsed.
            let claims = authority.check_token(token).map_err(refused)?;
            // Before a use is counted.
            let digest = Authority::digest_of_request(&request.csr, &request.instance);
            let digest = digest.map_err(not_understood)?;
            count_use(&*uses, &claims, &digest).await.map_err(refused)?;
            (claims.sub, request.instance)
        }
    };
    let issued =
        authority.issue(&request.csr, (&service, &instance)).map_err(ApiError::internal)?;
    tracing::info!(service, instance, is_renewal, "certificate issued");
    Ok(Json(issued))
}

/// Counts the use of a join token by a request, if its uses are limited.
async fn count_use(
    uses: &dyn TokenUses,
    claims: &JoinClaims,
    request: &str,
) -> Result<(), JoinRefused> {
    let Some(limit) = claims.uses else { return Ok(()) };
    match uses.count(claims, limit, request).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(JoinRefused::UsedUp),
        Err(error) => Err(JoinRefused::Failed(error.to_string())),
    }
}

fn refused(error: JoinRefused) -> ApiError {
    match error {
        JoinRefused::Failed(_) => ApiError::unavailable(english(error), Duration::from_secs(1)),
        JoinRefused::Invalid => {
            ApiError::unauthenticated(english(error)).coded(codes::JOIN_TOKEN_INVALID)
        }
        JoinRefused::UsedUp => {
            ApiError::unauthenticated(english(error)).coded(codes::JOIN_TOKEN_USED_UP)
        }
    }
}

pub(super) async fn make_join_token(
    PeerOf(peer): PeerOf,
    State(authority): State<Arc<Authority>>,
    Json(request): Json<JoinTokenRequest>,
) -> Result<Json<IssuedJoinToken>, ApiError> {
    let JoinTokenRequest { service, uses, ttl_s } = request;
    limits::service_name(&service).map_err(invalid)?;
    if service == REGISTRY {
        return Err(ApiError::invalid(english(
            "the registry needs no join token, and has no replicas",
        )));
    }
    if !(1..=MAX_JOIN_TOKEN_TTL_S).contains(&ttl_s) || uses == Some(0) {
        return Err(ApiError::invalid(english(format!(
            "ttl_s is 1 to {MAX_JOIN_TOKEN_TTL_S}, and uses 1 or more"
        ))));
    }
    let token = authority
        .join_token(&service, uses, Duration::from_secs(ttl_s))
        .map_err(ApiError::internal)?;
    tracing::info!(service, ?uses, ttl_s, by = ?peer, "join token made");
    Ok(Json(IssuedJoinToken { token }))
}

/// Begins to replace the root.
pub(super) async fn rotate_root(
    PeerOf(peer): PeerOf,
    State(authority): State<Arc<Authority>>,
) -> Result<axum::http::StatusCode, ApiError> {
    blocking(move || authority.rotate_root()).await?.map_err(|error| {
        ApiError::conflict(english(format!("{error:#}"))).coded(codes::ROOT_FIXED)
    })?;
    tracing::info!(by = ?peer, "the root is being replaced");
    Ok(axum::http::StatusCode::ACCEPTED)
}

fn not_understood(error: anyhow::Error) -> ApiError {
    ApiError::invalid(english(format!("{error:#}")))
}

/// Runs what waits for files on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::internal(anyhow::Error::from(error)))
}
