//! `/internal/visitor-key`: the key of the day for visitors' pseudonyms. Gateways keep it in memory
//! until the day is over.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use http::header::CACHE_CONTROL;
use serde::Serialize;
use tourin_chassis::http::{ApiError, Json, Message, ServiceCaller};
use utoipa_axum::router::OpenApiRouter;

use super::AppState;

/// The only service that may call.
const GATEWAY: &str = "gateway";

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().route("/internal/visitor-key", get(show))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeyResponse {
    /// In unpadded base64url.
    key: String,
    /// Milliseconds until the day is over (UTC).
    ms_left: u64,
}

async fn show(State(state): State<AppState>, caller: ServiceCaller) -> Result<Response, ApiError> {
    if caller.name != GATEWAY {
        let message = Message::for_operators("the visitor key is for gateways");
        return Err(ApiError::forbidden(message));
    }
    let (key, left) = state.visitor_keys.today().await?;
    let ms_left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let answer = KeyResponse { key: URL_SAFE_NO_PAD.encode(key), ms_left };
    let mut response = Json(answer).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
