//! `/.well-known/jwks.json`: the keys that verify access tokens.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CACHE_CONTROL;
use serde::Serialize;
use tourin_chassis::http::Json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use super::openapi::Unavailable;
use crate::app::signing::PublicKey;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(jwks))
}

/// A JSON Web Key Set (RFC 7517).
#[derive(Serialize, ToSchema)]
#[schema(as = JsonWebKeySet)]
struct KeySet {
    keys: Vec<Key>,
}

/// An Ed25519 public key (RFC 8037).
#[derive(Serialize, ToSchema)]
#[schema(as = JsonWebKey)]
struct Key {
    #[schema(pattern = "^OKP$")]
    kty: &'static str,
    #[schema(pattern = "^Ed25519$")]
    crv: &'static str,
    #[schema(pattern = "^EdDSA$")]
    alg: &'static str,
    #[serde(rename = "use")]
    #[schema(pattern = "^sig$")]
    usage: &'static str,
    /// The key's RFC 7638 thumbprint
    kid: String,
    /// The key, in unpadded base64url
    #[schema(min_length = 43, max_length = 43)]
    x: String,
}

impl From<&PublicKey> for Key {
    fn from(key: &PublicKey) -> Self {
        Self {
            kty: "OKP",
            crv: "Ed25519",
            alg: "EdDSA",
            usage: "sig",
            kid: key.kid.clone(),
            x: key.x.clone(),
        }
    }
}

/// The public keys of access tokens
///
/// The current key first, then those that it replaced.
#[utoipa::path(
    get, path = "/.well-known/jwks.json", operation_id = "listPublicKeys", tag = "auth",
    responses((status = 200, description = "The keys", body = KeySet), Unavailable),
)]
async fn jwks(State(state): State<AppState>) -> Response {
    let keys = state.keys.public().iter().map(Key::from).collect();
    // Short, so that a cache does not hide a new key for long.
    ([(CACHE_CONTROL, "public, max-age=60")], Json(KeySet { keys })).into_response()
}
