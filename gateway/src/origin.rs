//! Protection against cross-site request forgery, and CORS.
//!
//! A browser adds cookies to every request, also to those of other sites' pages. So an unsafe call that
//! is authorised by cookies must come from this host's own pages or from an allowed origin. Clients that
//! are no browsers send none of the headers that are checked, and pass. Bearer tokens pass too, because
//! a browser does not add them by itself.
//!
//! `Sec-Fetch-Site` is set by the browser, cannot be forged by a page, and does not depend on what a
//! proxy makes of `Host`. Browsers send it to https and to localhost. Without it `Origin` is compared
//! with the requested host.
//!
//! Log-in and sign-up use no cookie (`anonymous` in the route table), so a stale one does not matter.
//! Another site's page still cannot log its visitor in: the body must be application/json, which a form
//! cannot send and a script may send only after a preflight, which is refused here.

use std::fmt;
use std::str::FromStr;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, REFERER,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use pingora::http::ResponseHeader;

use crate::authority::Authority;
use crate::messages;
use crate::responses::Response;
use crate::vary::vary;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const ALLOWED_HEADERS: &str =
    "authorization, content-type, accept-language, if-none-match, x-request-id, traceparent";
const EXPOSED_HEADERS: &str = "location, retry-after, ratelimit, ratelimit-policy, x-tourin-fallback, etag, www-authenticate, x-request-id, \
     x-pagination-page, x-pagination-page-size, x-pagination-page-limit, x-pagination-total-page, x-pagination-total-item";
/// How long a browser may remember a preflight, in seconds.
const PREFLIGHT_MAX_AGE_S: u32 = 600;

/// A page's origin: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// Whether the origin is the requested host's own.
    fn is_of(&self, asked: &Authority) -> bool {
        // Without a port in `Host`, the default depends on the scheme, which only the page knows.
        default_port(&self.scheme)
            .is_some_and(|default| asked.host() == self.host && asked.port_or(default) == self.port)
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || "expected an origin such as https://app.example".to_owned();
        let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| expected())?;
        let scheme = uri.scheme_str().ok_or_else(expected)?;
        let default_port = default_port(scheme).ok_or_else(expected)?;
        let authority = uri.authority().ok_or_else(expected)?;
        if uri.path() != "/" || uri.query().is_some() {
            return Err(expected());
        }
        let authority = Authority::parse(authority.as_str().as_bytes()).map_err(|_| expected())?;
        Ok(Self {
            scheme: scheme.to_owned(),
            host: authority.host().to_owned(),
            port: authority.port_or(default_port),
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

/// The cross-origin policy.
#[derive(Debug, Clone, Default)]
pub struct OriginPolicy {
    allowed: Vec<Origin>,
}

impl OriginPolicy {
    /// Allows these origins besides the requested host.
    pub fn new(allowed: Vec<Origin>) -> Self {
        Self { allowed }
    }

    /// The request's `Origin`, if it is an allowed one.
    pub fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let value = only_origin(headers)?;
        let origin: Origin = value.to_str().ok()?.parse().ok()?;
        self.allowed.contains(&origin).then(|| value.clone())
    }

    /// Refuses an unsafe call that comes from another site. `asked` is the requested host; `by_cookie`
    /// says whether the call is authorised by cookies.
    ///
    /// # Errors
    /// The 403 response.
    pub fn check(
        &self,
        method: &Method,
        headers: &HeaderMap,
        asked: Option<&Authority>,
        by_cookie: bool,
    ) -> Result<(), Response> {
        if method.is_safe() || !by_cookie {
            return Ok(());
        }
        self.check_page(headers, asked)
    }

    /// Refuses a call that comes from another site's page. For WebSockets too, although they begin
    /// with a GET: browsers let any page open one, with cookies (RFC 6455, 10.2).
    ///
    /// # Errors
    /// The 403 response.
    pub fn check_page(
        &self,
        headers: &HeaderMap,
        asked: Option<&Authority>,
    ) -> Result<(), Response> {
        let refused = || Response::forbidden(messages::another_sites_page());
        let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
        let claimed = headers
            .contains_key(ORIGIN)
            .then(|| only_origin(headers).and_then(|value| value.to_str().ok()?.parse().ok()))
            .or_else(|| headers.get(REFERER).map(referring_origin));
        match (claimed, site) {
            (Some(Some(origin)), _) if self.allowed.contains(&origin) => Ok(()),
            (_, Some(b"same-origin" | b"none")) => Ok(()),
            (_, Some(_)) => Err(refused()),
            (Some(Some(origin)), _) if asked.is_some_and(|asked| origin.is_of(asked)) => Ok(()),
            (Some(_), _) => Err(refused()),
            (None, _) => Ok(()),
        }
    }

    /// Adds the CORS headers for `allowed_origin`, and `Vary` if the response depends on the origin.
    ///
    /// # Errors
    /// Pingora's, which the headers set here do not cause.
    pub fn mark(
        &self,
        response: &mut ResponseHeader,
        method: &Method,
        allowed_origin: Option<&HeaderValue>,
    ) -> pingora::Result<()> {
        let is_read = [Method::GET, Method::HEAD].contains(method);
        if !is_read || !self.allowed.is_empty() {
            vary(response, &ORIGIN)?;
        }
        if let Some(origin) = allowed_origin {
            response.insert_header(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone())?;
            response.insert_header(ACCESS_CONTROL_ALLOW_CREDENTIALS, "true")?;
            response.insert_header(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS)?;
        }
        Ok(())
    }

    /// The response to a preflight request; `None` for other requests.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap, allow: &str) -> Option<Response> {
        let asks =
            headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if method != Method::OPTIONS || !asks {
            return None;
        }
        if self.allowed_origin(headers).is_none() {
            return Some(Response::forbidden(messages::origin_not_allowed()));
        }
        let methods = HeaderValue::from_str(allow).ok()?;
        Some(
            Response::empty(StatusCode::NO_CONTENT)
                .with(ACCESS_CONTROL_ALLOW_METHODS, methods)
                .with(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS))
                .with(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(PREFLIGHT_MAX_AGE_S)),
        )
    }
}

/// `Origin`, unless there are several: a browser sends one (RFC 6454, 7.3).
fn only_origin(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut origins = headers.get_all(ORIGIN).iter();
    origins.next().filter(|_| origins.next().is_none())
}

/// The origin in a `Referer`, whose path may have any bytes.
fn referring_origin(referer: &HeaderValue) -> Option<Origin> {
    let bytes = referer.as_bytes();
    let start = bytes.windows(3).position(|window| window == b"://")? + 3;
    let length = bytes[start..].iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
    let end = length.map_or(bytes.len(), |length| start + length);
    std::str::from_utf8(&bytes[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use http::header::VARY;

    use super::*;

    const OWN: &str = "tourin.example:8080";

    fn verdict(pairs: &[(&'static str, &str)], by_cookie: bool) -> bool {
        let policy = OriginPolicy::new(vec!["https://app.example".parse().unwrap()]);
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let own = Authority::parse(OWN.as_bytes()).unwrap();
        policy.check(&Method::POST, &headers, Some(&own), by_cookie).is_ok()
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
            (
                vec![("origin", "http://tourin.example:8080"), ("origin", "https://evil.example")],
                false,
            ),
            (vec![("referer", "http://tourin.example:8080/page?x=1")], true),
            (vec![("referer", "https://evil.example/http://tourin.example:8080")], false),
            (vec![("referer", "http://tourin.example:8080/{a|b}?서울")], true),
            (vec![("referer", "nonsense")], false),
            (vec![("referer", "http://evil.example?http://tourin.example:8080/")], false),
            (
                vec![
                    ("origin", "https://evil.example"),
                    ("referer", "http://tourin.example:8080/"),
                ],
                false,
            ),
            // A proxy has rewritten Host.
            (vec![("origin", "https://t.example"), ("sec-fetch-site", "same-origin")], true),
            (vec![("origin", "https://t.example"), ("sec-fetch-site", "none")], true),
            (vec![("origin", "https://t.example"), ("sec-fetch-site", "same-origin, x")], false),
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
            assert!(policy.check(&method, &headers, None, true).is_ok());
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
    fn an_answer_says_that_it_depends_on_the_origin() {
        let varies = |allowed: &[&str], method: Method, there: &[&str]| {
            let policy = OriginPolicy::new(allowed.iter().map(|o| o.parse().unwrap()).collect());
            let mut response = ResponseHeader::build(200, None).unwrap();
            for line in there {
                response.append_header(VARY, *line).unwrap();
            }
            policy.mark(&mut response, &method, None).unwrap();
            let lines = response.headers.get_all(VARY).iter();
            lines.map(|line| line.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let app = ["https://app.example"];
        assert_eq!(varies(&app, Method::GET, &[]), ["origin"]);
        assert_eq!(
            varies(&app, Method::GET, &["Accept-Language, accept", "cookie"]),
            ["Accept-Language, accept, cookie, origin"]
        );
        assert_eq!(varies(&app, Method::GET, &["accept", "Origin"]), ["accept", "Origin"]);
        assert_eq!(varies(&app, Method::GET, &["*"]), ["*"]);
        assert_eq!(varies(&[], Method::POST, &[]), ["origin"]);
        assert_eq!(varies(&[], Method::OPTIONS, &[]), ["origin"]);
        assert!(varies(&[], Method::GET, &[]).is_empty());
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
        let response = ask("https://app.example").unwrap();
        assert_eq!(response.status, StatusCode::NO_CONTENT);
        assert!(
            response
                .headers
                .contains(&(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST")))
        );
        assert_eq!(ask("https://evil.example").unwrap().status, StatusCode::FORBIDDEN);
        assert!(policy.preflight(&Method::OPTIONS, &HeaderMap::new(), "GET").is_none());
    }
}
