//! The identity of a request, verified, as extractors of handlers.

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;

use super::{ApiError, Message, messages};
use crate::identity::{IDENTITY_HEADER, IdentityVerifier, Subject};

/// Removes the identity header and puts the verified subject into the request's extensions.
pub(super) async fn verify_identity(
    State(verifier): State<IdentityVerifier>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Some(value) = request.headers_mut().remove(IDENTITY_HEADER) {
        match verifier.verify(&value) {
            Some(subject) => {
                request.extensions_mut().insert(subject);
            }
            None => {
                // For operators: the gateway removes clients' identities, so only services send one.
                let message =
                    Message::for_operators("the request's internal identity is not valid");
                return ApiError::forbidden(message).into_response();
            }
        }
    }
    next.run(request).await
}

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

/// A service of the mesh. Other callers are answered 403.
#[derive(Debug, Clone)]
pub struct ServiceCaller {
    /// The calling service's name.
    pub name: String,
}

impl<S: Send + Sync> FromRequestParts<S> for ServiceCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        match parts.extensions.get::<Subject>().cloned() {
            Some(Subject::Service { name }) => Ok(Self { name }),
            _ => {
                let message = Message::for_operators("this path is for the mesh's own services");
                Err(ApiError::forbidden(message))
            }
        }
    }
}
