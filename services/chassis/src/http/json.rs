//! JSON bodies, and the errors of bodies that are not JSON.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{ApiError, fields, messages, read_value};

/// A JSON body. Another media type is answered 415, invalid JSON 400, JSON of another shape 422.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let headers = request.headers().clone();
        let body = Bytes::from_request(request, state).await?;
        match read_body(&headers, &body)? {
            Some(value) => read_value(value).map(Self).map_err(ApiError::invalid),
            None => Err(ApiError::malformed(messages::body_empty())),
        }
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                Self::too_large(messages::body_larger_than_the_call_accepts())
            }
            _ => Self::malformed(messages::body_broke_off()),
        }
    }
}

/// A body as JSON of any shape, or `None` when it is empty.
///
/// # Errors
/// 415 when the headers name another type or encoding, 400 when the body is not valid JSON.
pub fn read_body(headers: &HeaderMap, body: &[u8]) -> Result<Option<Value>, ApiError> {
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    let mut codings = fields::elements(headers, &CONTENT_ENCODING);
    if !codings.all(|coding| coding.eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::encoded());
    }
    if !headers.get(CONTENT_TYPE).is_some_and(is_json) {
        return Err(ApiError::not_json());
    }
    serde_json::from_slice(body)
        .map(Some)
        .map_err(|error| ApiError::malformed(messages::body_not_json(error.line(), error.column())))
}

/// `application/json`, or a type with the suffix `+json` (RFC 6839).
fn is_json(value: &HeaderValue) -> bool {
    let media_type = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    let media_type = media_type.trim_ascii().to_ascii_lowercase();
    media_type.strip_prefix(b"application/").is_some_and(|subtype| {
        subtype == b"json" || (subtype.ends_with(b"+json") && subtype.len() > b"+json".len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &'static str)| {
            (name.parse().unwrap(), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_body_of_another_type_is_415_with_the_accepted_type() {
        for content_type in
            ["application/json", "Application/JSON ; charset=utf-8", "application/x+json"]
        {
            assert!(read_body(&headers(&[("content-type", content_type)]), b"{}").is_ok());
        }
        let form = headers(&[("content-type", "application/x-www-form-urlencoded")]);
        for headers in [form, headers(&[]), headers(&[("content-type", "application/+json")])] {
            assert_eq!(read_body(&headers, b" \n").unwrap(), None, "the body is empty");
            let refused = read_body(&headers, b"{}").unwrap_err().into_response();
            assert_eq!(refused.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
            assert_eq!(refused.headers()["accept"], "application/json");
        }
        let json = ("content-type", "application/json");
        assert!(read_body(&headers(&[json, ("content-encoding", "identity")]), b"{}").is_ok());
        let zipped = headers(&[json, ("content-encoding", "gzip")]);
        let refused = read_body(&zipped, b"\x1f\x8b").unwrap_err().into_response();
        assert_eq!(refused.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(refused.headers()["accept-encoding"], "identity");
    }

    #[test]
    fn invalid_json_is_located_and_not_quoted() {
        let json = headers(&[("content-type", "application/json")]);
        let deep = vec![b'['; 10_000];
        for body in [&b"{\"password\": \"s3cret\",\n]"[..], b"\xff", b"{}{}", b"NaN", &deep] {
            let error = read_body(&json, body).unwrap_err();
            assert_eq!(error.status(), StatusCode::BAD_REQUEST);
            let message = error.body().message;
            assert!(message.starts_with("the body is not JSON: look at line "), "{message}");
        }
    }
}
