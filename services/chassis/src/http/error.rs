//! The error body of every failed call, `{"error", "message", "traceId"}`, and its statuses.
//!
//! Handlers write English. [`localize_error`] translates the message into the language that the
//! request prefers.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_LANGUAGE, CONTENT_LENGTH, RETRY_AFTER, VARY,
    WWW_AUTHENTICATE,
};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use super::{Language, Message, messages};

/// The body of a failed call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// The kind of error, for programs: `malformed`, `unauthenticated`, `forbidden`, `not_found`,
    /// `method_not_allowed`, `timeout`, `conflict`, `too_large`, `unsupported`, `invalid`,
    /// `rate_limited`, `internal`, `bad_gateway` or `unavailable`. Later versions may add more.
    #[schema(example = "invalid")]
    pub error: String,
    /// What was wrong, what was expected and what to do, for people. In Korean if
    /// `Accept-Language` prefers it, otherwise in English.
    #[schema(example = "pageNo must be a whole number from 1 on")]
    pub message: String,
    /// The trace of the failed call. Give it to the operator when you report the failure.
    #[serde(rename = "traceId", default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "4bf92f3577b34da6a3ce929d0e0e4736")]
    pub trace_id: Option<String>,
}

impl ErrorBody {
    /// An error body with the id of the current trace, if there is one.
    pub fn new(error: impl Into<String>, message: impl Into<String>) -> Self {
        let trace_id = crate::telemetry::current_trace_id();
        Self { error: error.into(), message: message.into(), trace_id }
    }
}

/// A failed call: its status and its [`ErrorBody`]. Only the HTTP layer uses it.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: Message,
    headers: Vec<(HeaderName, HeaderValue)>,
    cause: Option<anyhow::Error>,
}

macro_rules! plain {
    ($(#[$doc:meta] $name:ident, $status:ident, $kind:literal;)*) => {$(
        #[$doc]
        pub fn $name(message: Message) -> Self {
            Self::new(StatusCode::$status, $kind, message)
        }
    )*};
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: Message) -> Self {
        Self { status, kind, message, headers: Vec::new(), cause: None }
    }

    plain! {
        /// 400: the request is not valid HTTP or JSON.
        malformed, BAD_REQUEST, "malformed";
        /// 403: the caller is not allowed to do this.
        forbidden, FORBIDDEN, "forbidden";
        /// 404: the resource does not exist.
        not_found, NOT_FOUND, "not_found";
        /// 405: the path exists, but not with this method.
        method_not_allowed, METHOD_NOT_ALLOWED, "method_not_allowed";
        /// 408: the request's body does not arrive in time.
        too_slow, REQUEST_TIMEOUT, "timeout";
        /// 409: the request conflicts with the current state.
        conflict, CONFLICT, "conflict";
        /// 413: the body is over the limit.
        too_large, PAYLOAD_TOO_LARGE, "too_large";
        /// 422: a well-formed request with a value that is not allowed.
        invalid, UNPROCESSABLE_ENTITY, "invalid";
    }

    /// 401: the call needs a session.
    pub fn unauthenticated(message: Message) -> Self {
        // A 401 must say how to authenticate (RFC 9110, 15.5.2).
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", message)
            .with(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tourin\""))
    }

    /// 415: the `Content-Type` is not JSON.
    pub(super) fn not_json() -> Self {
        let message = messages::content_type_not_json();
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported", message)
            .with(ACCEPT, HeaderValue::from_static("application/json"))
    }

    /// 415: the body is compressed.
    pub(super) fn encoded() -> Self {
        let message = messages::content_is_encoded();
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported", message)
            .with(ACCEPT_ENCODING, HeaderValue::from_static("identity"))
    }

    /// 429: too many calls. The client may try again after `retry_after`.
    pub fn rate_limited(message: Message, retry_after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message).retry_after(retry_after)
    }

    /// 503: a dependency is down. The client may try again after `retry_after`.
    pub fn unavailable(message: Message, retry_after: Duration) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message).retry_after(retry_after)
    }

    /// 500: a fault of this service. The cause is logged, and not sent to the client.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        let error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", messages::internal());
        Self { cause: Some(cause.into()), ..error }
    }

    /// The same with a kind of its own, for programs that must tell it from others with its status.
    #[must_use]
    pub fn coded(self, kind: &'static str) -> Self {
        Self { kind, ..self }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    fn retry_after(self, after: Duration) -> Self {
        // Seconds are rounded up, so that a client that waits this long is not refused again.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.with(RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    /// The response's status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The response's body in English.
    pub fn body(&self) -> ErrorBody {
        ErrorBody::new(self.kind, self.message.to_string())
    }
}

impl From<anyhow::Error> for ApiError {
    fn from(cause: anyhow::Error) -> Self {
        Self::internal(cause)
    }
}

/// The input of [`localize_error`], in the response's extensions.
#[derive(Clone)]
struct Translatable {
    body: ErrorBody,
    message: Message,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Some(cause) = &self.cause {
            tracing::error!(error = format!("{cause:#}"), "request failed");
        }
        let body = self.body();
        let mut response = (self.status, axum::Json(&body)).into_response();
        response.headers_mut().extend(self.headers);
        response.headers_mut().insert(CONTENT_LANGUAGE, Language::English.tag());
        if self.message.is_translated() {
            response.extensions_mut().insert(Translatable { body, message: self.message });
        }
        response
    }
}

/// Translates the error body into the language that the request prefers.
pub(super) async fn localize_error(request: Request, next: Next) -> Response {
    let wanted = Language::preferred(request.headers());
    let mut response = next.run(request).await;
    let Some(Translatable { mut body, message }) = response.extensions_mut().remove() else {
        return response;
    };
    response.headers_mut().append(VARY, HeaderValue::from_name(ACCEPT_LANGUAGE));
    if wanted != Language::English {
        message.text(wanted).clone_into(&mut body.message);
        response.headers_mut().insert(CONTENT_LANGUAGE, wanted.tag());
        response.headers_mut().remove(CONTENT_LENGTH);
        // Serialising strings cannot fail.
        *response.body_mut() = Body::from(serde_json::to_vec(&body).unwrap_or_default());
    }
    response
}
