//! `/internal/access-tokens`: a new access token for a session in cookies. Gateways call it when a
//! cookie's token is due, and pass the new cookie on unchanged.

use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use serde::{Deserialize, Serialize};
use tourin_chassis::http::{ApiError, Json, Message, ServiceCaller};
use tourin_chassis::session_cookies::CookieNames;
use utoipa_axum::router::OpenApiRouter;

use super::super::AppState;
use super::super::body::Object;
use super::private;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().route("/internal/access-tokens", post(issue))
}

/// The only service that may call.
const GATEWAY: &str = "gateway";

/// The session that the last access token names.
#[derive(Deserialize)]
struct SlideRequest {
    member: String,
    session: String,
    /// The names of the browser's cookies.
    #[serde(default)]
    cookies: CookieNames,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SlideResponse {
    access_token: String,
    /// The value of the `Set-Cookie` header for the browser.
    set_cookie: String,
}

/// Responds with `null` when the session is not open.
async fn issue(
    State(state): State<AppState>,
    caller: ServiceCaller,
    Object(request): Object<SlideRequest>,
) -> Result<Response, ApiError> {
    if caller.name != GATEWAY {
        let message = Message::for_operators("access tokens are for gateways to ask for");
        return Err(ApiError::forbidden(message));
    }
    let issued = state.sessions.slide(&request.member, &request.session).await?;
    let response = issued.map(|access| {
        let cookie = state.cookies.access(request.cookies, &access);
        SlideResponse {
            set_cookie: String::from_utf8_lossy(cookie.as_bytes()).into_owned(),
            access_token: access.token,
        }
    });
    Ok(private(Json(response)))
}
