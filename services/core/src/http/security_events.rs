//! `/api/security-events`: Security Event Tokens that a transmitter elsewhere pushes (RFC 8935). A path
//! of nothing while no transmitter is set.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::header::{CONTENT_LANGUAGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use tourin_chassis::http::{ApiError, Json, messages};
use utoipa_axum::router::OpenApiRouter;

use super::AppState;
use super::auth::name_ended;
use crate::app::signals::receive::{ReceiveError, Refusal};
use crate::domain::security_event::EVENT_MEDIA_TYPE;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().route("/api/security-events", post(receive))
}

/// RFC 8935, 2.3.
#[derive(Serialize)]
struct RefusalBody {
    err: &'static str,
    description: &'static str,
}

async fn receive(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let Some(receiver) = &state.signals else {
        return Err(ApiError::not_found(messages::no_such_thing()));
    };
    let is_event = headers.get(CONTENT_TYPE).is_some_and(|value| {
        let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(EVENT_MEDIA_TYPE.as_bytes())
    });
    let unreadable = |description| refused(Refusal { code: "invalid_request", description });
    if !is_event {
        return Ok(unreadable("Content-Type must be application/secevent+jwt"));
    }
    let Ok(body) = body else { return Ok(unreadable("the body cannot be read")) };
    let Ok(token) = std::str::from_utf8(&body) else {
        return Ok(unreadable("it is not a Security Event Token"));
    };
    match receiver.receive(token.trim()).await {
        Ok(ended) => {
            let mut response = StatusCode::ACCEPTED.into_response();
            name_ended(&state, response.headers_mut(), &ended);
            Ok(response)
        }
        Err(ReceiveError::Refused(refusal)) => Ok(refused(refusal)),
        Err(ReceiveError::Unavailable(error)) => Err(error.into()),
    }
}

fn refused(refusal: Refusal) -> Response {
    let Refusal { code, description } = refusal;
    let body = Json(RefusalBody { err: code, description });
    let mut response = (StatusCode::BAD_REQUEST, body).into_response();
    response.headers_mut().insert(CONTENT_LANGUAGE, HeaderValue::from_static("en"));
    response
}
