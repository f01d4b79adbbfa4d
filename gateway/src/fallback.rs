//! Fall-backs: the static response of a route whose service does not serve a request, so that a page
//! stays whole without one of its parts.
//!
//! A fall-back is never passed off as the service's own response. It carries [`FALLBACK_HEADER`] with the
//! reason, its request is counted as degraded and not by its status, and the span and the line in the
//! access log say so. It is sent for GET and HEAD alone: a write that did not happen must not look as if
//! it had.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use toml::Spanned;

use crate::policy_fields::{FieldError, number};
use crate::responses::Response;
use crate::unserved::Unserved;

/// Marks a fall-back, with its reason ([`Unserved::label`]).
pub const FALLBACK_HEADER: HeaderName = HeaderName::from_static("x-tourin-fallback");
/// Longest body, in bytes: it is in memory as long as its route.
const MAX_BODY_BYTES: usize = 64 << 10;
const JSON: &str = "application/json";

/// A `[route.fallback]` as it stands in the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawFallback {
    status: Option<Spanned<u64>>,
    content_type: Option<Spanned<String>>,
    body: Spanned<String>,
}

/// The static response of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    status: StatusCode,
    content_type: HeaderValue,
    body: Bytes,
}

impl RawFallback {
    /// The fall-back of a route with these methods.
    ///
    /// # Errors
    /// For a route without GET, a status that cannot have a body, a body that is too long, and JSON that
    /// is not valid.
    pub fn check(self, mut methods: impl Iterator<Item = Method>) -> Result<Fallback, FieldError> {
        let at = self.body.span().start;
        if !methods.any(|method| method == Method::GET) {
            let expected = "a route with GET: other methods get no fall-back";
            return Err(FieldError::new(
                at,
                "fallback.body",
                format!("{:?}", self.body.get_ref()),
                expected,
            ));
        }
        let status = match number("fallback.status", self.status.as_ref(), 200..=599)? {
            None => StatusCode::OK,
            Some(number) => match u16::try_from(number).map(StatusCode::from_u16) {
                Ok(Ok(status)) if ![204, 205, 304].contains(&status.as_u16()) => status,
                _ => {
                    let at = self.status.as_ref().map_or(at, |status| status.span().start);
                    let expected = "a status that can have a body";
                    return Err(FieldError::new(at, "fallback.status", number, expected));
                }
            },
        };
        let (type_at, content_type) = match &self.content_type {
            Some(given) => (given.span().start, given.get_ref().as_str()),
            None => (at, JSON),
        };
        let content_type_value = HeaderValue::from_str(content_type).map_err(|_| {
            let expected = "a media type such as application/json";
            FieldError::new(type_at, "fallback.content_type", format!("{content_type:?}"), expected)
        })?;
        let body = self.body.into_inner();
        if body.len() > MAX_BODY_BYTES {
            let length = format!("{} bytes", body.len());
            let expected = format!("at most {MAX_BODY_BYTES} bytes");
            return Err(FieldError::new(at, "fallback.body", length, expected));
        }
        if content_type.starts_with(JSON)
            && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&body)
        {
            let expected = format!("it is not valid JSON ({error}), as its content type says");
            return Err(FieldError::new(at, "fallback.body", format!("{body:?}"), expected));
        }
        Ok(Fallback { status, content_type: content_type_value, body: body.into() })
    }
}

impl Fallback {
    /// Whether calls of this method get fall-backs.
    pub fn serves(method: &Method) -> bool {
        [Method::GET, Method::HEAD].contains(method)
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The response, marked with its reason.
    pub fn response(&self, reason: Unserved) -> Response {
        Response::fixed(self.status, self.content_type.clone(), self.body.clone())
            .with(FALLBACK_HEADER, HeaderValue::from_static(reason.label()))
    }
}
