//! The one error body of the contract, `{"error", "message"}` with the trace id beside them, and the statuses it comes with.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

/// What a client reads when a call fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// The kind of error, for programs: `malformed`, `unauthenticated`, `forbidden`, `not_found`,
    /// `method_not_allowed`, `timeout`, `conflict`, `too_large`, `invalid`, `rate_limited`,
    /// `internal`, `bad_gateway` or `unavailable`. There may be more of them one day.
    #[schema(example = "invalid")]
    pub error: String,
    /// What was wrong, what was expected and what to do, for people.
    #[schema(example = "pageNo must be a whole number from 1 on")]
    pub message: String,
    /// The trace in which it failed: what to tell whoever runs the service.
    #[serde(rename = "traceId", default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "4bf92f3577b34da6a3ce929d0e0e4736")]
    pub trace_id: Option<String>,
}

impl ErrorBody {
    /// With the trace that is current here, if any.
    pub fn new(error: impl Into<String>, message: impl Into<String>) -> Self {
        let trace_id = crate::telemetry::current_trace_id();
        Self { error: error.into(), message: message.into(), trace_id }
    }
}

/// A failed call: its status and its [`ErrorBody`]. Handlers return it; nothing below `http` knows
/// it.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    retry_after: Option<Duration>,
    cause: Option<anyhow::Error>,
}

macro_rules! plain {
    ($(#[$doc:meta] $name:ident, $status:ident, $kind:literal;)*) => {$(
        #[$doc]
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(StatusCode::$status, $kind, message)
        }
    )*};
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), retry_after: None, cause: None }
    }

    plain! {
        /// 400: the request is not of the form that HTTP or JSON asks for.
        malformed, BAD_REQUEST, "malformed";
        /// 401: the call needs a session, and there is none.
        unauthenticated, UNAUTHORIZED, "unauthenticated";
        /// 403: the caller may not do this.
        forbidden, FORBIDDEN, "forbidden";
        /// 404: no such thing.
        not_found, NOT_FOUND, "not_found";
        /// 405: the path is known, the method is not.
        method_not_allowed, METHOD_NOT_ALLOWED, "method_not_allowed";
        /// 408: the client does not send what it announced.
        too_slow, REQUEST_TIMEOUT, "timeout";
        /// 409: the state of things forbids it.
        conflict, CONFLICT, "conflict";
        /// 413: the body is over the limit.
        too_large, PAYLOAD_TOO_LARGE, "too_large";
        /// 422: well-formed, but a value is not allowed.
        invalid, UNPROCESSABLE_ENTITY, "invalid";
    }

    /// 429: too many calls; `retry_after` says when to try again.
    pub fn rate_limited(message: impl Into<String>, retry_after: Duration) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message);
        error.retry_after = Some(retry_after);
        error
    }

    /// 503: something this service needs is down; `retry_after` says when to try again.
    pub fn unavailable(message: impl Into<String>, retry_after: Duration) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message);
        error.retry_after = Some(retry_after);
        error
    }

    /// 500: a fault of ours. The cause is logged when the answer is made; the client is not told.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        let mut error = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "something went wrong on our side; the fault is logged under this request's id",
        );
        error.cause = Some(cause.into());
        error
    }

    /// The status it is answered with.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What the client reads.
    pub fn body(&self) -> ErrorBody {
        ErrorBody::new(self.kind, self.message.clone())
    }
}

impl From<anyhow::Error> for ApiError {
    fn from(cause: anyhow::Error) -> Self {
        Self::internal(cause)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Some(cause) = &self.cause {
            tracing::error!(error = format!("{cause:#}"), "request failed");
        }
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up: a client that waits this long is not refused again.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}
