//! Requests that another site makes a browser send.
//!
//! A browser adds its cookies to any request, whoever's page asked for it. So a call that changes
//! something and leans on cookies must come from this host's own pages or from an origin that the
//! operator allows. Callers that are no browsers send none of the headers by which that shows and
//! pass; a bearer token is never added by a browser by itself and passes too.

use std::fmt;
use std::str::FromStr;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, REFERER, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

use crate::answers::Answer;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Request headers that pages of allowed origins may set.
const ALLOWED_HEADERS: &str =
    "authorization, content-type, accept-language, if-none-match, x-request-id, traceparent";
/// Response headers that pages of allowed origins may read.
const EXPOSED_HEADERS: &str = "location, retry-after, etag, www-authenticate, x-request-id, \
     x-pagination-page, x-pagination-page-size, x-pagination-page-limit, x-pagination-total-page, x-pagination-total-item";
/// How long a browser may remember a preflight, in seconds.
const PREFLIGHT_MAX_AGE_S: u32 = 600;

/// Where a page comes from: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// Whether a `Host` header names this origin's host and port.
    fn is_host(&self, host: &str) -> bool {
        // Without a port the host means the scheme's own, and only the page knows the scheme.
        Self::from_str(&format!("{}://{host}", self.scheme)).is_ok_and(|own| own == *self)
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || "expected an origin such as https://app.example".to_owned();
        let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| expected())?;
        let scheme = uri.scheme_str().ok_or_else(expected)?;
        let default_port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return Err(expected()),
        };
        let authority = uri.authority().ok_or_else(expected)?;
        let bare = uri.path() == "/" && uri.query().is_none();
        if !bare || authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(expected());
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            host: authority.host().to_ascii_lowercase(),
            port: authority.port_u16().unwrap_or(default_port),
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

/// The origins that are let in from elsewhere.
#[derive(Debug, Clone, Default)]
pub struct OriginPolicy {
    allowed: Vec<Origin>,
}

impl OriginPolicy {
    /// A policy that lets these in besides the gateway's own host.
    pub fn new(allowed: Vec<Origin>) -> Self {
        Self { allowed }
    }

    /// The request's `Origin`, when it is one that the operator allows.
    pub fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let value = headers.get(ORIGIN)?;
        let origin: Origin = value.to_str().ok()?.parse().ok()?;
        self.allowed.contains(&origin).then(|| value.clone())
    }

    /// Lets a call pass, or refuses it as another site's. `own_host` is the host that the client
    /// asked for; `by_cookie` says whether the call leans on cookies alone.
    ///
    /// # Errors
    /// The 403 to answer with.
    pub fn check(
        &self,
        method: &Method,
        headers: &HeaderMap,
        own_host: Option<&str>,
        by_cookie: bool,
    ) -> Result<(), Answer> {
        if method.is_safe() || !by_cookie {
            return Ok(());
        }
        let refused =
            || Answer::forbidden("cookies do not authorise calls from another site's pages");
        let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
        let claimed = headers
            .get(ORIGIN)
            .map(|value| value.to_str().ok().and_then(|text| text.parse().ok()))
            .or_else(|| headers.get(REFERER).map(referring_origin));
        match (claimed, site) {
            (Some(Some(origin)), _) if self.allowed.contains(&origin) => Ok(()),
            (_, Some(site)) if site != b"same-origin" && site != b"none" => Err(refused()),
            (Some(Some(origin)), _) if own_host.is_some_and(|host| origin.is_host(host)) => Ok(()),
            (Some(_), _) => Err(refused()),
            (None, _) => Ok(()),
        }
    }

    /// The answer to a preflight, when the request is one.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap, allow: &str) -> Option<Answer> {
        let asks =
            headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if method != Method::OPTIONS || !asks {
            return None;
        }
        if self.allowed_origin(headers).is_none() {
            return Some(Answer::forbidden("this origin is not allowed to call from a browser"));
        }
        let methods = HeaderValue::from_str(allow).ok()?;
        Some(
            Answer::empty(StatusCode::NO_CONTENT)
                .with(ACCESS_CONTROL_ALLOW_METHODS, methods)
                .with(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS))
                .with(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(PREFLIGHT_MAX_AGE_S)),
        )
    }
}

/// What every answer to an allowed origin carries.
pub fn cors_headers(origin: &HeaderValue) -> [(HeaderName, HeaderValue); 4] {
    [
        (ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
        (ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")),
        (ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS)),
        (VARY, HeaderValue::from_static("origin")),
    ]
}

fn referring_origin(referer: &HeaderValue) -> Option<Origin> {
    let uri: Uri = referer.to_str().ok()?.parse().ok()?;
    format!("{}://{}", uri.scheme_str()?, uri.authority()?).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "tourin.example:8080";

    fn verdict(pairs: &[(&'static str, &str)], by_cookie: bool) -> bool {
        let policy = OriginPolicy::new(vec!["https://app.example".parse().unwrap()]);
        let headers: HeaderMap = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        policy.check(&Method::POST, &headers, Some(OWN), by_cookie).is_ok()
    }

    #[test]
    fn cookies_work_from_own_and_allowed_pages_only() {
        for (pairs, expected) in [
            (vec![], true),
            (vec![("origin", "http://tourin.example:8080")], true),
            (vec![("origin", "http://TOURIN.example:8080")], true),
            (vec![("origin", "https://app.example")], true),
            (vec![("origin", "https://app.example:443"), ("sec-fetch-site", "cross-site")], true),
            (vec![("origin", "http://app.example")], false),
            (vec![("origin", "http://tourin.example")], false),
            (vec![("origin", "http://tourin.example:8080.evil.example")], false),
            (vec![("origin", "null")], false),
            (vec![("origin", "https://evil.example")], false),
            (vec![("referer", "http://tourin.example:8080/page?x=1")], true),
            (vec![("referer", "https://evil.example/http://tourin.example:8080")], false),
            (vec![("referer", "nonsense")], false),
            (
                vec![
                    ("origin", "https://evil.example"),
                    ("referer", "http://tourin.example:8080/"),
                ],
                false,
            ),
            (vec![("sec-fetch-site", "same-origin")], true),
            (vec![("sec-fetch-site", "none")], true),
            (vec![("sec-fetch-site", "same-site")], false),
            (vec![("sec-fetch-site", "cross-site")], false),
            (
                vec![("sec-fetch-site", "same-site"), ("origin", "http://tourin.example:8080")],
                false,
            ),
        ] {
            assert_eq!(verdict(&pairs, true), expected, "{pairs:?}");
            assert!(verdict(&pairs, false), "without cookies: {pairs:?}");
        }
    }

    #[test]
    fn reading_is_never_refused() {
        let policy = OriginPolicy::default();
        let headers =
            HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("https://evil.example"))]);
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            assert!(policy.check(&method, &headers, Some(OWN), true).is_ok());
        }
    }

    #[test]
    fn origins_are_exact() {
        let parse = |text: &str| text.parse::<Origin>();
        assert_eq!(parse("https://a.example"), parse("https://A.example:443/"));
        assert_ne!(parse("https://a.example"), parse("http://a.example"));
        for bad in [
            "",
            "*",
            "null",
            "a.example",
            "ftp://a.example",
            "https://",
            "https://u@a.example",
            "https://a.example/x",
            "https://a.example?x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_preflight_is_answered_here() {
        let policy = OriginPolicy::new(vec!["https://app.example".parse().unwrap()]);
        let ask = |origin: &'static str| {
            let headers = HeaderMap::from_iter([
                (ORIGIN, HeaderValue::from_static(origin)),
                (ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("POST")),
            ]);
            policy.preflight(&Method::OPTIONS, &headers, "GET, POST")
        };
        let answer = ask("https://app.example").unwrap();
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        assert!(
            answer
                .headers
                .contains(&(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST")))
        );
        assert_eq!(ask("https://evil.example").unwrap().status, StatusCode::FORBIDDEN);
        assert!(policy.preflight(&Method::OPTIONS, &HeaderMap::new(), "GET").is_none());
    }
}
