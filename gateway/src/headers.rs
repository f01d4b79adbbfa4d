//! Headers of requests and responses that pass through the gateway.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, SERVER, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Version, request, response};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use tourin_chassis::http::{TRACE_RESPONSE_HEADER, fields};
use tourin_chassis::identity::{IDENTITY_HEADER, REQUEST_ID_HEADER};
use tourin_chassis::session_cookies::{CookieNames, SESSION_COOKIES_HEADER, SessionCookies};
use tourin_chassis::telemetry::TRACE_HEADERS;
use uuid::Uuid;

use crate::client_address::Client;
use crate::messages;
use crate::responses::Response;

/// Longest request id that is accepted from a client (bytes).
const MAX_REQUEST_ID_BYTES: usize = 64;

/// The most fields that are added to a message.
const MAX_ADDED: usize = 12;

/// Headers by which proxies and frameworks pass on identity, address, method or path. A client could
/// forge them, so they are removed.
const CLAIMS: &[&str] = &[
    "client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "forwarded",
    "remote-user",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
    "x-real-ip",
    "x-remote-user",
    "x-rewrite-url",
    "x-roles",
    "x-session-id",
    "x-userid",
    "x-username",
];
/// The calls that take a refresh token.
const AUTH_PATHS: &str = "/api/auth/";
const CLAIM_PREFIXES: &[&str] =
    &["x-tourin-", "x-user-", "x-auth-", "x-forwarded-", "x-authenticated-"];

/// Refuses ambiguous framing, by which requests could be smuggled.
///
/// `raw` is the head as received: Pingora drops a `Content-Length` beside a `Transfer-Encoding`, as
/// RFC 9112 allows, so `headers` would not show it.
///
/// # Errors
/// The 400 to answer with.
pub fn check_framing(raw: &[u8], headers: &HeaderMap) -> Result<(), Response> {
    let lengths: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().collect();
    let codings: Vec<_> = headers.get_all(TRANSFER_ENCODING).iter().collect();
    if !codings.is_empty() {
        let codings: Vec<_> = codings
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .collect();
        let chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
        // If chunked is not last, or comes twice, the end is ambiguous: 400. An unknown coding
        // before it is 501 (RFC 9112, 6.1 and 6.3).
        if !codings.last().is_some_and(chunked) || codings.iter().filter(|c| chunked(c)).count() > 1
        {
            return Err(Response::malformed(messages::invalid_transfer_encoding()));
        }
        if codings.len() > 1 {
            return Err(Response::unknown_transfer_encoding());
        }
        if !lengths.is_empty() || has_field(raw, b"content-length") {
            return Err(Response::malformed(messages::length_and_transfer_encoding()));
        }
    }
    let digits =
        |value: &HeaderValue| !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    if lengths.len() > 1 || !lengths.iter().all(|value| digits(value)) {
        return Err(Response::malformed(messages::invalid_length()));
    }
    Ok(())
}

fn has_field(raw: &[u8], name: &[u8]) -> bool {
    raw.split(|byte| *byte == b'\n').skip(1).any(|line| {
        let field = line.split(|byte| *byte == b':').next().unwrap_or_default();
        field.trim_ascii().eq_ignore_ascii_case(name)
    })
}

/// The request's id: the client's own if it is safe to log, else the trace's, else a new one.
pub fn request_id(headers: &HeaderMap, trace: Option<&str>) -> HeaderValue {
    let harmless = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    match headers.get_all("x-request-id").into_iter().find(harmless) {
        Some(id) => id.clone(),
        None => trace
            .map_or_else(|| Uuid::now_v7().to_string(), str::to_owned)
            .try_into()
            .unwrap_or_else(|_| HeaderValue::from_static("unknown")),
    }
}

/// Removes `Upgrade` before Pingora reads it: no service supports it.
pub fn forbid_upgrade(request: &mut RequestHeader) {
    request.remove_header(&UPGRADE);
}

fn is_older(session: &Session) -> bool {
    session.req_header().version < Version::HTTP_11
}

/// Applies `Connection` and the request's version. Pingora reads the first `Connection` line alone, and
/// ignores `keep-alive` among other tokens.
pub fn apply_version(session: &mut Session) {
    let has = |token| fields::has_token(&session.req_header().headers, &CONNECTION, token);
    let (close, keep_alive) = (has("close"), has("keep-alive"));
    if close {
        session.set_keepalive(None);
    }
    if is_older(session) {
        if keep_alive && !close {
            session.set_keepalive(Some(0)); // No limit here; the stream has one.
        }
        // HTTP/1.0 has no interim responses (RFC 9110, 15.2 and 10.1.1).
        session.set_ignore_info_resp(true);
        session.req_header_mut().remove_header(&EXPECT);
    }
}

/// Removes chunked coding for HTTP/1.0 clients (RFC 9112, 6.1); the body then ends with the
/// connection.
pub fn downgrade_response(session: &mut Session, response: &mut ResponseHeader) {
    if is_older(session) && response.remove_header(&TRANSFER_ENCODING).is_some() {
        session.set_keepalive(None);
    }
}

/// Forgets the spelling of the names of a request's fields, which Pingora keeps beside each name and would
/// copy and maintain from here on. Names have no case (RFC 9110, 5.1).
pub fn forget_spelling(request: &mut RequestHeader) {
    // Another target is not whole in the URI, and stays as it is.
    if request.raw_path().starts_with(b"/") && request.raw_path_is_utf8() {
        *request = take(request).into();
    }
}

fn take(request: &mut RequestHeader) -> request::Parts {
    let nothing = Request::new(()).into_parts().0;
    std::mem::replace(request, nothing.into()).into()
}

/// Prepares a request's headers for a service: removes forgeable headers, the access token, hop-by-hop
/// headers and the client's trace context; adds the signed identity, the client's address and `trace`.
pub fn prepare_request(
    request: &mut RequestHeader,
    request_id: &HeaderValue,
    identity: &HeaderValue,
    client: &Client,
    cookies: SessionCookies,
    trace: Vec<(HeaderName, HeaderValue)>,
) {
    let mut parts = take(request);
    let headers = &mut parts.headers;
    let unwanted: Vec<HeaderName> =
        headers.keys().filter(|name| is_unwanted(name)).cloned().collect();
    for name in &unwanted {
        headers.remove(name);
    }
    pass_cookies(headers, parts.uri.path());
    headers.reserve(MAX_ADDED);
    headers.extend(trace);
    client.put_headers(headers);
    headers.insert(SESSION_COOKIES_HEADER, cookies.to_header());
    headers.insert(REQUEST_ID_HEADER, request_id.clone());
    headers.insert(IDENTITY_HEADER, identity.clone());
    *request = parts.into();
}

/// Whether no service may get a client's field of this name.
fn is_unwanted(name: &HeaderName) -> bool {
    is_claim(name.as_str())
        || is_hop_by_hop(name)
        || *name == AUTHORIZATION
        || TRACE_HEADERS.contains(name)
}

fn is_claim(name: &str) -> bool {
    CLAIMS.iter().any(|claim| claim.len() == name.len() && begins(name, claim))
        || CLAIM_PREFIXES.iter().any(|prefix| begins(name, prefix))
}

/// Whether a name begins with a prefix. Some servers treat `_` as `-`.
fn begins(name: &str, prefix: &str) -> bool {
    name.len() >= prefix.len()
        && name
            .bytes()
            .zip(prefix.bytes())
            .all(|(byte, expected)| byte == expected || (byte == b'_' && expected == b'-'))
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    // Pingora sets Transfer-Encoding when it frames the body.
    [CONNECTION, TE, TRAILER, UPGRADE].contains(name)
        || [
            "keep-alive",
            "proxy-connection",
            "proxy-authorization",
            "proxy-authenticate",
            "http2-settings",
        ]
        .contains(&name.as_str())
}

/// Removes access tokens, and refresh tokens of calls that have no use for them.
fn pass_cookies(headers: &mut HeaderMap, path: &str) {
    if !headers.contains_key(COOKIE) {
        return;
    }
    let takes_refresh = path.starts_with(AUTH_PATHS);
    // Other sites' cookies may have any bytes.
    let is_ours = |pair: &&[u8]| {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        CookieNames::ALL.iter().any(|names| {
            name == names.access().as_bytes()
                || (name == names.refresh().as_bytes() && !takes_refresh)
        })
    };
    let kept: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty() && !is_ours(pair))
        .collect();
    // The bytes are those of valid values.
    let kept = HeaderValue::try_from(kept.join(b"; ".as_slice())).ok();
    headers.remove(COOKIE);
    if let Some(kept) = kept.filter(|kept| !kept.is_empty()) {
        headers.insert(COOKIE, kept);
    }
}

/// Prepares a response's headers for a client: removes hop-by-hop and internal headers, adds the ids.
/// Forgets the spelling of names, as [`forget_spelling`] does.
///
/// # Errors
/// Pingora's, which the headers set here do not cause.
pub fn prepare_response(
    response: &mut ResponseHeader,
    request_id: &HeaderValue,
    trace_response: Option<HeaderValue>,
) -> pingora::Result<()> {
    let phrase = response.get_reason_phrase();
    let phrase = phrase.filter(|_| phrase != response.status.canonical_reason()).map(str::to_owned);
    let nothing = http::Response::new(()).into_parts().0;
    let mut parts: response::Parts = std::mem::replace(response, nothing.into()).into();
    let headers = &mut parts.headers;
    let named: Vec<HeaderName> = fields::elements(headers, &CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect();
    let unwanted: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            is_hop_by_hop(name)
                || **name == SERVER
                // The service's own names its span; the client called the gateway.
                || **name == TRACE_RESPONSE_HEADER
                || name.as_str().starts_with("x-tourin-")
                || (named.contains(name)
                    && **name != TRANSFER_ENCODING
                    && **name != CONTENT_LENGTH)
        })
        .cloned()
        .collect();
    for name in &unwanted {
        headers.remove(name);
    }
    headers.reserve(MAX_ADDED);
    if let Some(value) = trace_response {
        headers.insert(TRACE_RESPONSE_HEADER, value);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REQUEST_ID_HEADER, request_id.clone());
    *response = parts.into();
    response.set_reason_phrase(phrase.as_deref().or_else(|| response.status.canonical_reason()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;
    use crate::client_address::TrustedProxies;

    fn request(pairs: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("POST", b"/api/auth/reissue", None).unwrap();
        for (name, value) in pairs {
            request.append_header(*name, value.as_bytes()).unwrap();
        }
        request
    }

    #[test]
    fn forged_claims_and_tokens_are_stripped() {
        let mut request = request(&[
            ("Host", "tourin.example"),
            ("X-Tourin-Identity", "forged"),
            ("X_Tourin_Identity", "forged"),
            ("X-User-Id", "admin"),
            ("X-Forwarded-User", "admin"),
            ("X-Forwarded-For", "1.1.1.1"),
            ("Forwarded", "for=1.1.1.1"),
            ("X-Http-Method-Override", "DELETE"),
            ("Authorization", "Bearer secret"),
            ("Cookie", "access_token=secret; refresh_token=r; theme=dark; name=서울"),
            ("Cookie", "access_token=again; access_token =\u{e9}"),
            ("TE", "trailers"),
            ("Keep-Alive", "timeout=5"),
            ("Accept-Language", "ko"),
            ("Traceparent", "theirs"),
            ("Tracestate", "theirs"),
            ("B3", "theirs"),
            ("X-B3-TraceId", "theirs"),
        ]);
        let host = Authority::parse(b"tourin.example").ok();
        let peer = ("http", "203.0.113.9:1".parse().unwrap());
        let client = Client::of(peer, host, &request.headers, &TrustedProxies::default());
        prepare_request(
            &mut request,
            &HeaderValue::from_static("id-1"),
            &HeaderValue::from_static("signed"),
            &client,
            SessionCookies::default(),
            vec![(HeaderName::from_static("traceparent"), HeaderValue::from_static("ours"))],
        );
        let mut names: Vec<_> = request.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept-language",
                "cookie",
                "forwarded",
                "host",
                "traceparent",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-proto",
                "x-request-id",
                "x-tourin-identity",
                "x-tourin-session-cookies"
            ]
        );
        assert_eq!(request.headers["x-tourin-identity"], "signed");
        assert_eq!(request.headers["traceparent"], "ours");
        assert_eq!(request.headers["x-forwarded-for"], "203.0.113.9");
        assert_eq!(
            request.headers["cookie"].as_bytes(),
            "refresh_token=r; theme=dark; name=서울".as_bytes()
        );
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        let check = |pairs: &[(&'static str, &str)], raw: &str| {
            let request = request(pairs);
            check_framing(raw.as_bytes(), &request.headers).is_ok()
        };
        let host = ("Host", "h");
        assert!(check(&[host], ""));
        assert!(check(&[host, ("Content-Length", "3")], ""));
        assert!(check(&[host, ("Transfer-Encoding", "Chunked")], "POST / HTTP/1.1\r\nHost: h\r\n"));
        assert!(!check(&[host, ("Content-Length", "3"), ("Content-Length", "3")], ""));
        assert!(!check(&[host, ("Content-Length", "3, 3")], ""));
        assert!(!check(&[host, ("Content-Length", "+3")], ""));
        assert!(!check(
            &[host, ("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
            ""
        ));
        assert!(!check(&[host, ("Transfer-Encoding", "gzip, chunked")], ""));
        assert!(!check(
            &[host, ("Transfer-Encoding", "chunked")],
            "POST / HTTP/1.1\r\nHost: h\r\ncontent-LENGTH : 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        ));
    }

    #[test]
    fn request_ids() {
        let id = |value: &str| {
            let headers = HeaderMap::from_iter([(
                HeaderName::from_static("x-request-id"),
                value.parse().unwrap(),
            )]);
            request_id(&headers, None).to_str().unwrap().to_owned()
        };
        let headers = HeaderMap::new();
        assert_eq!(request_id(&headers, Some("4bf92f3577b34da6")), "4bf92f3577b34da6");
        assert_eq!(id("abc-1.2_3"), "abc-1.2_3");
        for bad in ["", "a b", "<script>", &"a".repeat(65)] {
            let new = id(bad);
            assert_eq!(Uuid::parse_str(&new).unwrap().get_version_num(), 7, "{bad}");
        }
    }

    #[test]
    fn services_inner_matters_stay_inside() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("Server", "hyper"),
            ("X-Tourin-Session-Ended", "s1"),
            ("Connection", "X-Hop"),
            ("X-Hop", "1"),
            ("Content-Type", "application/json"),
            ("X-Pagination-Page", "1"),
            ("Traceresponse", "the service's"),
        ] {
            response.append_header(name, value).unwrap();
        }
        let ours = Some(HeaderValue::from_static("ours"));
        prepare_response(&mut response, &HeaderValue::from_static("id-1"), ours).unwrap();
        assert_eq!(response.headers["traceresponse"], "ours");
        let mut names: Vec<_> = response.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "content-type",
                "traceresponse",
                "x-content-type-options",
                "x-pagination-page",
                "x-request-id"
            ]
        );
    }
}
