//! Responses that the gateway makes itself, mostly refusals: `{"error", "message", "traceId"}`, with
//! the codes and messages that services use too.
//!
//! A refusal is rendered when it is sent, inside the request's span and in the client's language. The
//! code that refuses knows neither.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER,
    SEC_WEBSOCKET_VERSION, UPGRADE, VARY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue, StatusCode};
use pingora::http::ResponseHeader;
use tourin_chassis::http::{ErrorBody, Language, Message, messages as shared};

use crate::messages;
use crate::response_headers::ResponseHeaders;
use crate::unserved::Unserved;

/// The version of WebSockets, that of RFC 6455.
pub const WEBSOCKET_VERSION: HeaderValue = HeaderValue::from_static("13");

/// A response made by the gateway.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// Headers besides content type, length and caching.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Why its service did not serve the request; `None` for all other reasons. A route's fall-back is
    /// sent in place of such a refusal.
    pub unserved: Option<Unserved>,
    body: Body,
    cacheable: bool,
}

#[derive(Debug, Clone)]
enum Body {
    /// For 204 and 304.
    Empty,
    Json(Bytes),
    Html(Bytes),
    Fixed {
        content_type: HeaderValue,
        body: Bytes,
    },
    Refusal {
        error: &'static str,
        message: Message,
    },
}

impl Response {
    /// A response without a body.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), unserved: None, body: Body::Empty, cacheable: false }
    }

    /// A JSON response.
    pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { body: Body::Json(body.into()), ..Self::empty(status) }
    }

    /// An HTML page.
    pub fn html(body: impl Into<Bytes>) -> Self {
        Self { body: Body::Html(body.into()), ..Self::empty(StatusCode::OK) }
    }

    /// A response with a configured body.
    pub fn fixed(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Self {
        Self { body: Body::Fixed { content_type, body }, ..Self::empty(status) }
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Leaves `Cache-Control` to the caller; responses are `no-store` otherwise.
    #[must_use]
    pub fn cacheable(mut self) -> Self {
        self.cacheable = true;
        self
    }

    fn refusal(status: StatusCode, error: &'static str, message: Message) -> Self {
        Self { body: Body::Refusal { error, message }, ..Self::empty(status) }
    }

    /// The error code of a refusal; `None` for other responses.
    pub fn refusal_kind(&self) -> Option<&'static str> {
        match self.body {
            Body::Refusal { error, .. } => Some(error),
            Body::Empty | Body::Json(_) | Body::Html(_) | Body::Fixed { .. } => None,
        }
    }

    /// The body, with the id of the current trace.
    fn body(&self, language: Language) -> Bytes {
        match &self.body {
            Body::Empty => Bytes::new(),
            Body::Json(text) | Body::Html(text) | Body::Fixed { body: text, .. } => text.clone(),
            Body::Refusal { error, message } => {
                // Strings always serialise.
                serde_json::to_vec(&ErrorBody::new(*error, message.text(language)))
                    .unwrap_or_default()
                    .into()
            }
        }
    }

    /// 400: not valid HTTP.
    pub fn malformed(message: Message) -> Self {
        Self::refusal(StatusCode::BAD_REQUEST, "malformed", message)
    }

    /// 401. `shown` says whether the request had a token.
    pub fn unauthenticated(message: Message, shown: bool) -> Self {
        let challenge = if shown {
            "Bearer realm=\"tourin\", error=\"invalid_token\""
        } else {
            "Bearer realm=\"tourin\""
        };
        Self::refusal(StatusCode::UNAUTHORIZED, "unauthenticated", message)
            .with(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    /// 403.
    pub fn forbidden(message: Message) -> Self {
        Self::refusal(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 404.
    pub fn not_found() -> Self {
        Self::refusal(StatusCode::NOT_FOUND, "not_found", shared::no_such_path())
    }

    /// 405 with the allowed methods.
    pub fn method_not_allowed(allow: &str) -> Self {
        let response = Self::refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            shared::method_not_allowed(),
        );
        match HeaderValue::from_str(allow) {
            Ok(allow) => response.with(ALLOW, allow),
            Err(_) => response,
        }
    }

    /// 405 for CONNECT.
    pub fn no_tunnel() -> Self {
        Self::refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            messages::tunnels_are_not_served(),
        )
        .with(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE"))
    }

    /// 408: the client was too slow.
    pub fn client_too_slow() -> Self {
        Self::refusal(StatusCode::REQUEST_TIMEOUT, "timeout", messages::request_too_slow())
    }

    /// 413.
    pub fn body_too_large(limit_bytes: u64) -> Self {
        Self::refusal(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            shared::body_too_large(limit_bytes),
        )
    }

    /// 414.
    pub fn uri_too_long(limit_bytes: usize) -> Self {
        Self::refusal(StatusCode::URI_TOO_LONG, "too_large", messages::target_too_long(limit_bytes))
    }

    /// 426: this path is for WebSockets of RFC 6455.
    pub fn upgrade_required(message: Message) -> Self {
        Self::refusal(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message)
            .with(UPGRADE, HeaderValue::from_static("websocket"))
            .with(SEC_WEBSOCKET_VERSION, WEBSOCKET_VERSION)
    }

    /// 431; the message names the limit.
    pub fn head_too_large(message: Message) -> Self {
        Self::refusal(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_large", message)
    }

    /// 505: a major version other than 1.
    pub fn version_not_supported() -> Self {
        Self::refusal(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "malformed",
            messages::unknown_version(),
        )
    }

    /// 429; the message says whose calls were too many.
    pub fn rate_limited(message: Message, after: Duration) -> Self {
        Self::refusal(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message).retry_after(after)
    }

    /// 429: the client has too many requests in flight.
    pub fn client_has_too_many_requests() -> Self {
        let message = messages::too_many_of_your_requests_at_once();
        Self::refusal(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message)
            .retry_after(Duration::from_secs(1))
    }

    /// 429: the client has too many open streams.
    pub fn client_has_too_many_streams() -> Self {
        let message = messages::too_many_of_your_streams();
        Self::refusal(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message)
            .retry_after(Duration::from_secs(1))
    }

    /// 501: an unknown transfer coding.
    pub fn unknown_transfer_encoding() -> Self {
        let message = messages::unknown_transfer_encoding();
        Self::refusal(StatusCode::NOT_IMPLEMENTED, "unsupported", message)
    }

    /// 502: an instance broke off its response, or it was not HTTP.
    pub fn bad_gateway() -> Self {
        Self::refusal(StatusCode::BAD_GATEWAY, "bad_gateway", messages::service_broke_off())
            .retry_after(Duration::from_secs(1))
            .because(Unserved::BrokenOff)
    }

    /// 503: no instance or store can answer; nothing was done.
    pub fn unavailable(message: Message) -> Self {
        Self::unavailable_for(message, Duration::from_secs(1))
    }

    /// 503 for at least so long; nothing was done.
    pub fn unavailable_for(message: Message, after: Duration) -> Self {
        Self::refusal(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message).retry_after(after)
    }

    /// 504: the response did not come in time.
    pub fn upstream_too_slow() -> Self {
        Self::refusal(StatusCode::GATEWAY_TIMEOUT, "timeout", messages::service_too_slow())
            .because(Unserved::TimedOut)
    }

    /// 500: a fault of the gateway.
    pub fn internal() -> Self {
        Self::refusal(StatusCode::INTERNAL_SERVER_ERROR, "internal", shared::internal())
    }

    /// Notes why the service did not serve the request.
    #[must_use]
    pub fn because(self, reason: Unserved) -> Self {
        Self { unserved: Some(reason), ..self }
    }

    fn retry_after(self, after: Duration) -> Self {
        // Rounded up, so that a client that waits this long is not refused again.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.with(RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    /// Head and body for Pingora, in `language` and with the id of the current trace.
    ///
    /// # Errors
    /// Pingora's, which the statuses and headers made here do not cause.
    pub fn render(&self, language: Language) -> pingora::Result<(ResponseHeader, Bytes)> {
        let body = self.body(language);
        let mut head = ResponseHeader::build(self.status, Some(self.headers.len() + 10))?;
        if let Body::Refusal { message, .. } = &self.body {
            head.insert_header(CONTENT_LANGUAGE, message.language(language).tag())?;
            head.append_header(VARY, "accept-language")?;
        }
        if !body.is_empty() {
            let kind = match &self.body {
                Body::Html(_) => HeaderValue::from_static("text/html; charset=utf-8"),
                Body::Fixed { content_type, .. } => content_type.clone(),
                _ => HeaderValue::from_static("application/json"),
            };
            head.insert_header(CONTENT_TYPE, kind)?;
        }
        if !matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            head.insert_header(CONTENT_LENGTH, body.len())?;
        }
        head.insert_header(X_CONTENT_TYPE_OPTIONS, "nosniff")?;
        if !self.cacheable {
            head.insert_header(CACHE_CONTROL, "no-store")?;
        }
        for (name, value) in &self.headers {
            head.append_header(name.clone(), value.clone())?;
        }
        Ok((head, body))
    }

    /// The whole response as bytes, for a connection that is closed after it, with the headers that `every`
    /// response over TLS or not gets. In English, because no `Accept-Language` could be read.
    ///
    /// # Errors
    /// Those of [`Response::render`].
    pub fn to_wire(&self, every: &ResponseHeaders, is_tls: bool) -> pingora::Result<Bytes> {
        let (mut head, body) = self.render(Language::English)?;
        head.remove_header(&VARY);
        head.insert_header(CONNECTION, "close")?;
        every.add(&mut head, is_tls)?;
        let (status, reason) = (self.status.as_u16(), self.status.canonical_reason());
        let line = format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or_default());
        let mut wire = line.into_bytes();
        for (name, value) in &head.headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                wire.extend_from_slice(part);
            }
        }
        wire.extend_from_slice(b"\r\n");
        wire.extend_from_slice(&body);
        Ok(wire.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::response_headers::ResponseHeaderSettings;

    #[test]
    fn an_answer_as_bytes_has_all_its_headers() {
        let every = ResponseHeaders::new(&ResponseHeaderSettings {
            hsts: "max-age=60".parse().unwrap(),
            fields: ["Allow: PUT", "Content-Language: ko", "X-Own: 1"]
                .map(|field| field.parse().unwrap())
                .into(),
        });
        let response = Response::method_not_allowed("GET, HEAD").retry_after(Duration::ZERO);
        let wire = |is_tls| {
            let wire = response.to_wire(&every, is_tls).unwrap();
            String::from_utf8(wire.to_vec()).unwrap()
        };
        let tls = wire(true);
        let (head, body) = tls.split_once("\r\n\r\n").unwrap();
        let mut lines: Vec<_> = head.split("\r\n").collect();
        assert_eq!(lines.remove(0), "HTTP/1.1 405 Method Not Allowed");
        lines.sort_unstable();
        let length = format!("content-length: {}", body.len());
        // Each once: what the response itself says.
        let expected = [
            "allow: GET, HEAD",
            "cache-control: no-store",
            "connection: close",
            "content-language: en",
            length.as_str(),
            "content-type: application/json",
            "retry-after: 1",
            "strict-transport-security: max-age=60",
            "x-content-type-options: nosniff",
            "x-own: 1",
        ];
        assert_eq!(lines, expected);
        assert!(!wire(false).contains("strict-transport-security"));
    }
}
