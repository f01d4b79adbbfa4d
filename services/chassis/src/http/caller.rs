//! The identity of a request, verified, as extractors of handlers.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::{ApiError, Message, messages};
use crate::identity::Subject;
use crate::peer::Peer;

/// The subject of a request, or `None` when it did not come through the gateway.
#[derive(Debug, Clone)]
pub struct Caller(pub Option<Subject>);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(parts.extensions.get::<Subject>().cloned()))
    }
}

/// A member with a live session. Other callers are answered 401.
#[derive(Debug, Clone)]
pub struct MemberCaller {
    /// The member's id.
    pub id: String,
    /// The session's id.
    pub session: String,
    /// The member's roles.
    pub roles: Vec<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for MemberCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        match parts.extensions.get::<Subject>().cloned() {
            Some(Subject::Member { id, session, roles }) => Ok(Self { id, session, roles }),
            _ => Err(ApiError::unauthenticated(messages::session_needed())),
        }
    }
}

/// A service of the mesh that calls on its own behalf. Other callers are answered 403.
#[derive(Debug, Clone)]
pub struct ServiceCaller {
    /// The calling service's name.
    pub name: String,
}

impl<S: Send + Sync> FromRequestParts<S> for ServiceCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        match (parts.extensions.get::<Arc<Peer>>(), parts.extensions.get::<Subject>()) {
            (Some(peer), None) => Ok(Self { name: peer.service.clone() }),
            _ => {
                let message = Message::for_operators("this path is for the mesh's own services");
                Err(ApiError::forbidden(message))
            }
        }
    }
}

/// The peer of the request's connection. Requests without one are answered 403.
#[derive(Debug, Clone)]
pub struct PeerOf(pub Arc<Peer>);

impl<S: Send + Sync> FromRequestParts<S> for PeerOf {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        match parts.extensions.get::<Arc<Peer>>() {
            Some(peer) => Ok(Self(Arc::clone(peer))),
            None => {
                let message = "this call needs a certificate of the mesh";
                Err(ApiError::forbidden(Message::for_operators(message)))
            }
        }
    }
}
