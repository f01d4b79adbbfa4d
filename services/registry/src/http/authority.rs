//! Authentication by the registration secret.

use axum::extract::{FromRef, FromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use tourin_chassis::http::{ApiError, Message, fields};
use tourin_chassis::secret::Secret;

/// The caller sent the secret. Extracted before the body is read.
pub(super) struct SecretHolder;

impl<S> FromRequestParts<S> for SecretHolder
where
    S: Send + Sync,
    Secret: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        match MaybeSecretHolder::from_request_parts(parts, state).await? {
            MaybeSecretHolder(true) => Ok(Self),
            MaybeSecretHolder(false) => Err(refused(
                "this call needs the registration secret: Authorization: Bearer <secret>",
            )),
        }
    }
}

/// Whether the caller sent the secret. A wrong secret is refused even where none is needed, so that
/// the mistake is noticed.
pub(super) struct MaybeSecretHolder(pub(super) bool);

impl<S> FromRequestParts<S> for MaybeSecretHolder
where
    S: Send + Sync,
    Secret: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        if !parts.headers.contains_key(AUTHORIZATION) {
            return Ok(Self(false));
        }
        let secret = Secret::from_ref(state);
        if fields::bearer_tokens(&parts.headers).any(|shown| secret.matches(shown)) {
            Ok(Self(true))
        } else {
            Err(refused("the registration secret is not right"))
        }
    }
}

fn refused(reason: &'static str) -> ApiError {
    ApiError::unauthenticated(Message::for_operators(reason))
}
