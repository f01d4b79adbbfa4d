//! What the gateway says itself, above all its refusals: `{"error", "message", "traceId"}` with the
//! right status, in the same words for the same thing as the services.
//!
//! A refusal becomes text when it is sent, inside the request's span, so that whoever decides on one
//! need not know of traces.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderName, HeaderValue, StatusCode};
use pingora::http::ResponseHeader;
use tourin_chassis::http::ErrorBody;

/// An answer that is the gateway's own.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// Headers besides content type, length and caching.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    body: Body,
    cacheable: bool,
}

#[derive(Debug, Clone)]
enum Body {
    /// As for 204 and 304.
    Empty,
    Json(Bytes),
    Html(Bytes),
    Refusal {
        error: &'static str,
        message: Cow<'static, str>,
    },
}

impl Answer {
    /// An answer without a body.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), body: Body::Empty, cacheable: false }
    }

    /// JSON.
    pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { body: Body::Json(body.into()), ..Self::empty(status) }
    }

    /// A page.
    pub fn html(body: impl Into<Bytes>) -> Self {
        Self { body: Body::Html(body.into()), ..Self::empty(StatusCode::OK) }
    }

    /// The same with one more header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The same, not marked as private; whoever uses this says how long it may be kept.
    #[must_use]
    pub fn cacheable(mut self) -> Self {
        self.cacheable = true;
        self
    }

    fn refusal(
        status: StatusCode,
        error: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { body: Body::Refusal { error, message: message.into() }, ..Self::empty(status) }
    }

    /// The kind of refusal, as its body names it; `None` for what is none.
    pub fn refusal_kind(&self) -> Option<&'static str> {
        match self.body {
            Body::Refusal { error, .. } => Some(error),
            Body::Empty | Body::Json(_) | Body::Html(_) => None,
        }
    }

    /// The body as text, with the trace that is current here.
    fn body(&self) -> Bytes {
        match &self.body {
            Body::Empty => Bytes::new(),
            Body::Json(text) | Body::Html(text) => text.clone(),
            Body::Refusal { error, message } => {
                // Strings always serialise.
                serde_json::to_vec(&ErrorBody::new(*error, message.clone()))
                    .unwrap_or_default()
                    .into()
            }
        }
    }

    /// 400: not of the form that HTTP asks for.
    pub fn malformed(message: impl Into<Cow<'static, str>>) -> Self {
        Self::refusal(StatusCode::BAD_REQUEST, "malformed", message)
    }

    /// 401. `shown` says whether there was a token at all.
    pub fn unauthenticated(message: &'static str, shown: bool) -> Self {
        let challenge = if shown {
            "Bearer realm=\"tourin\", error=\"invalid_token\""
        } else {
            "Bearer realm=\"tourin\""
        };
        Self::refusal(StatusCode::UNAUTHORIZED, "unauthenticated", message)
            .with(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    /// 403.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::refusal(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 404.
    pub fn not_found() -> Self {
        Self::refusal(StatusCode::NOT_FOUND, "not_found", "no such path")
    }

    /// 405 with the methods that there are.
    pub fn method_not_allowed(allow: &str) -> Self {
        let answer = Self::refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "the path is known; see Allow for its methods",
        );
        match HeaderValue::from_str(allow) {
            Ok(allow) => answer.with(ALLOW, allow),
            Err(_) => answer,
        }
    }

    /// 405 for CONNECT.
    pub fn no_tunnel() -> Self {
        Self::refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this is no proxy: CONNECT is not served, for no path",
        )
        .with(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE"))
    }

    /// 408: the client was too slow.
    pub fn client_too_slow() -> Self {
        Self::refusal(StatusCode::REQUEST_TIMEOUT, "timeout", "the request took too long to arrive")
    }

    /// 413.
    pub fn body_too_large(limit_bytes: u64) -> Self {
        Self::refusal(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("the request's body is over the limit of {limit_bytes} bytes"),
        )
    }

    /// 414.
    pub fn uri_too_long(limit_bytes: usize) -> Self {
        Self::refusal(
            StatusCode::URI_TOO_LONG,
            "too_large",
            format!("the request's target is over the limit of {limit_bytes} bytes"),
        )
    }

    /// 431.
    pub fn head_too_large(limit: impl std::fmt::Display) -> Self {
        Self::refusal(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "too_large",
            format!("the request's header is over the limit of {limit}"),
        )
    }

    /// 505: another major version than that of HTTP/1.1.
    pub fn version_not_supported() -> Self {
        Self::refusal(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "malformed",
            "HTTP/1.1 is spoken here, and HTTP/1.0",
        )
    }

    /// 429.
    pub fn rate_limited(after: Duration) -> Self {
        Self::refusal(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limited",
            "too many calls of this kind from your address; see Retry-After",
        )
        .retry_after(after)
    }

    /// 502: an instance broke off or made no sense.
    pub fn bad_gateway() -> Self {
        Self::refusal(
            StatusCode::BAD_GATEWAY,
            "bad_gateway",
            "the service broke off its answer; whether the call took effect is unknown",
        )
        .retry_after(Duration::from_secs(1))
    }

    /// 503: nobody there to answer; nothing was done.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::refusal(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
            .retry_after(Duration::from_secs(1))
    }

    /// 504: the answer did not come in time.
    pub fn upstream_too_slow() -> Self {
        Self::refusal(
            StatusCode::GATEWAY_TIMEOUT,
            "timeout",
            "the service did not answer in time; whether the call took effect is unknown",
        )
    }

    /// 500: a fault of ours.
    pub fn internal() -> Self {
        Self::refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "something went wrong on our side; the fault is logged under this request's id",
        )
    }

    fn retry_after(self, after: Duration) -> Self {
        // Whole seconds, rounded up: a client that waits this long is not refused again.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.with(RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    /// Header and body as Pingora sends them, with the trace that is current here.
    ///
    /// # Errors
    /// Never for the statuses and headers made here; Pingora's signature asks for it.
    pub fn render(&self) -> pingora::Result<(ResponseHeader, Bytes)> {
        let body = self.body();
        let mut head = ResponseHeader::build(self.status, Some(self.headers.len() + 7))?;
        if !body.is_empty() {
            let is_page = matches!(self.body, Body::Html(_));
            let kind = if is_page { "text/html; charset=utf-8" } else { "application/json" };
            head.insert_header(CONTENT_TYPE, kind)?;
        }
        if !matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            head.insert_header(CONTENT_LENGTH, body.len())?;
        }
        if !self.cacheable {
            head.insert_header(CACHE_CONTROL, "no-store")?;
        }
        for (name, value) in &self.headers {
            head.append_header(name.clone(), value.clone())?;
        }
        Ok((head, body))
    }

    /// The whole answer as bytes, with the trace that is current here, for a connection that is closed
    /// after it.
    pub fn to_wire(&self) -> Bytes {
        let body = self.body();
        let reason = self.status.canonical_reason().unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\ncache-control: no-store\r\nconnection: close\r\n",
            self.status.as_u16(),
            body.len(),
        );
        let mut wire = head.into_bytes();
        for (name, value) in &self.headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                wire.extend_from_slice(part);
            }
        }
        wire.extend_from_slice(b"\r\n");
        wire.extend_from_slice(&body);
        wire.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_as_bytes_has_all_its_headers() {
        let wire = Answer::method_not_allowed("GET, HEAD").retry_after(Duration::ZERO).to_wire();
        let wire = String::from_utf8(wire.to_vec()).unwrap();
        let (head, body) = wire.split_once("\r\n\r\n").unwrap();
        let lines: Vec<_> = head.split("\r\n").collect();
        assert_eq!(lines[0], "HTTP/1.1 405 Method Not Allowed");
        assert!(lines.contains(&"allow: GET, HEAD") && lines.contains(&"retry-after: 1"), "{head}");
        assert!(lines.contains(&format!("content-length: {}", body.len()).as_str()), "{head}");
    }
}
