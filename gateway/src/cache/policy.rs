//! What a route says of its cache.

use std::time::{Duration, SystemTime};

use http::header::{AUTHORIZATION, COOKIE, SET_COOKIE, VARY};
use http::{HeaderMap, StatusCode};
use pingora::cache::cache_control::CacheControl;
use pingora::cache::filters::resp_cacheable;
use pingora::cache::{CacheMeta, CacheMetaDefaults, NoCacheReason, RespCacheable};
use pingora::http::ResponseHeader;
use serde::Deserialize;
use toml::Spanned;
use tourin_chassis::http::fields;
use tourin_chassis::identity::{IDENTITY_HEADER, SESSION_ENDED_HEADER, Subject};
use tourin_chassis::invalidation::LONGEST_FRESHNESS;

use crate::policy_fields::{FieldError, number};

/// Longest freshness.
const MAX_AGE_S: u64 = 3_600;
const DEFAULT_MAX_AGE_S: u64 = 60;
const DEFAULT_BODY_BYTES: u64 = 1 << 20;
const MAX_BODY_BYTES: u64 = 16 << 20;
/// Statuses that are stored.
const STORED: [StatusCode; 5] = [
    StatusCode::OK,
    StatusCode::MOVED_PERMANENTLY,
    StatusCode::PERMANENT_REDIRECT,
    StatusCode::NOT_FOUND,
    StatusCode::GONE,
];
/// Without a word of the service nothing is fresh, and nothing stale is served.
const NO_DEFAULTS: CacheMetaDefaults = CacheMetaDefaults::new(|_| None, 0, 0);

/// `[route.cache]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCache {
    max_age_s: Option<Spanned<u64>>,
    default_age_s: Option<Spanned<u64>>,
    max_body_bytes: Option<Spanned<u64>>,
    #[serde(default)]
    shared: bool,
    #[serde(default)]
    tags: Vec<Spanned<String>>,
}

/// What of a route's responses is cached.
#[derive(Debug, Clone)]
pub struct CachePolicy {
    max_age: Duration,
    default_age: Option<Duration>,
    /// Largest body that is stored, in bytes.
    pub max_body_bytes: usize,
    /// Whether members are served too, and the service is asked for everybody.
    pub shared: bool,
    tags: Vec<TagTemplate>,
}

/// A tag such as `spot:{id}`: fixed text before and after the value of the path's parameter, which is its
/// so-many-th segment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TagTemplate {
    before: String,
    segment: Option<usize>,
    after: String,
}

impl RawCache {
    /// Checks the values, for a route with this path template; the table stands `at` this byte. `is_shared`
    /// says whether the route has a GET whose response can be for more than one caller, and is no stream.
    ///
    /// # Errors
    /// When one is not allowed.
    pub fn check(
        self,
        at: usize,
        template: &str,
        is_shared: bool,
    ) -> Result<CachePolicy, FieldError> {
        if !is_shared {
            let reason =
                "cache: only for a route whose GET is \"public\" or \"optional\", and no stream";
            return Err(FieldError { at, reason: reason.to_owned() });
        }
        let longest = if self.tags.is_empty() { MAX_AGE_S } else { LONGEST_FRESHNESS.as_secs() };
        let max_age = number("cache.max_age_s", self.max_age_s.as_ref(), 1..=longest)?;
        let max_age = max_age.unwrap_or(DEFAULT_MAX_AGE_S);
        let default_age = number("cache.default_age_s", self.default_age_s.as_ref(), 1..=max_age)?;
        let body =
            number("cache.max_body_bytes", self.max_body_bytes.as_ref(), 1..=MAX_BODY_BYTES)?;
        let tags = self.tags.iter().map(|tag| {
            parse_tag(tag.get_ref(), template).ok_or_else(|| {
                let expected =
                    "expected a text such as \"spot:{id}\", with at most one parameter of the path";
                let value = format!("{:?}", tag.get_ref());
                FieldError::new(tag.span().start, "cache.tags", value, expected)
            })
        });
        Ok(CachePolicy {
            max_age: Duration::from_secs(max_age),
            default_age: default_age.map(Duration::from_secs),
            max_body_bytes: usize::try_from(body.unwrap_or(DEFAULT_BODY_BYTES))
                .unwrap_or(usize::MAX),
            shared: self.shared,
            tags: tags.collect::<Result<_, _>>()?,
        })
    }
}

fn parse_tag(tag: &str, template: &str) -> Option<TagTemplate> {
    let fixed = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.".contains(&byte))
    };
    let Some((before, rest)) = tag.split_once('{') else {
        let whole = TagTemplate { before: tag.to_owned(), segment: None, after: String::new() };
        return Some(whole).filter(|_| !tag.is_empty() && fixed(tag));
    };
    let (name, after) = rest.split_once('}')?;
    let parameter = format!("{{{name}}}");
    let segment = template.split('/').position(|segment| segment == parameter)?;
    let (before, after) = (before.to_owned(), after.to_owned());
    (fixed(&before) && fixed(&after)).then_some(TagTemplate {
        before,
        segment: Some(segment),
        after,
    })
}

impl TagTemplate {
    fn tag(&self, path: &str) -> String {
        let value = self.segment.and_then(|at| path.split('/').nth(at)).unwrap_or_default();
        format!("{}{value}{}", self.before, self.after)
    }
}

impl CachePolicy {
    /// The tags of the response for this path.
    pub fn tags(&self, path: &str) -> impl Iterator<Item = String> {
        self.tags.iter().map(move |tag| tag.tag(path))
    }

    /// Whether this caller may be served from the cache. `has_cookies` says whether the request has session
    /// cookies.
    pub fn serves(&self, caller: &Subject, headers: &HeaderMap, has_cookies: bool) -> bool {
        let has_credentials = matches!(caller, Subject::Member { .. })
            || headers.contains_key(AUTHORIZATION)
            || has_cookies;
        self.shared || !has_credentials
    }

    /// Whether a response may be stored, and for how long.
    pub fn judge(&self, response: &ResponseHeader) -> RespCacheable {
        let headers = &response.headers;
        let personal = [SET_COOKIE, SESSION_ENDED_HEADER];
        let varies = fields::elements(headers, &VARY).any(|name| {
            let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
            is("*")
                || is(COOKIE.as_str())
                || is(AUTHORIZATION.as_str())
                || is(IDENTITY_HEADER.as_str())
        });
        if !STORED.contains(&response.status)
            || personal.iter().any(|name| headers.contains_key(name))
            || varies
        {
            return RespCacheable::Uncacheable(NoCacheReason::OriginNotCache);
        }
        let control = CacheControl::from_resp_headers(response);
        let is_silent = control.is_none() && !headers.contains_key("expires");
        let now = SystemTime::now();
        if is_silent && let Some(age) = self.default_age {
            return RespCacheable::Cacheable(CacheMeta::new(
                now + age,
                now,
                0,
                0,
                response.clone(),
            ));
        }
        match resp_cacheable(control.as_ref(), response.clone(), false, &NO_DEFAULTS) {
            RespCacheable::Cacheable(meta) => {
                let until = meta.fresh_until().min(now + self.max_age);
                // Never stale, also where the service allows it: a response is no older than `max_age_s`
                // says, and a service that fails is seen to fail.
                let head = meta.response_header_copy();
                RespCacheable::Cacheable(CacheMeta::new(until, now, 0, 0, head))
            }
            uncacheable => uncacheable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "/api/tour-spots/{id}/reviews";

    fn policy(text: &str) -> Result<CachePolicy, String> {
        let raw: RawCache = toml::from_str(text).unwrap();
        raw.check(0, TEMPLATE, true).map_err(|error| error.reason)
    }

    fn fresh_for(
        policy: &CachePolicy,
        status: u16,
        headers: &[(&'static str, &str)],
    ) -> Option<u64> {
        let mut response = ResponseHeader::build(status, None).unwrap();
        for (name, value) in headers {
            response.append_header(*name, *value).unwrap();
        }
        match policy.judge(&response) {
            RespCacheable::Cacheable(meta) => {
                assert_eq!(meta.stale_if_error_sec(), 0, "{headers:?}");
                Some(meta.fresh_sec())
            }
            RespCacheable::Uncacheable(_) => None,
        }
    }

    #[test]
    fn the_service_says_what_is_stored_and_the_route_for_how_long_at_most() {
        let of = policy("max_age_s = 100").unwrap();
        let public = ("cache-control", "public, max-age=30");
        assert_eq!(fresh_for(&of, 200, &[public]), Some(30));
        assert_eq!(fresh_for(&of, 404, &[public]), Some(30));
        let also_stale = ("cache-control", "max-age=30, stale-if-error=600");
        assert_eq!(fresh_for(&of, 200, &[also_stale]), Some(30));
        assert_eq!(fresh_for(&of, 200, &[("cache-control", "max-age=900")]), Some(100));
        assert_eq!(fresh_for(&of, 200, &[("cache-control", "s-maxage=20, max-age=0")]), Some(20));
        for (status, headers) in [
            (200, &[][..]),
            (500, &[public]),
            (206, &[public]),
            (200, &[("cache-control", "private, max-age=30")]),
            (200, &[("cache-control", "no-store")]),
            (200, &[public, ("set-cookie", "a=b")]),
            (200, &[public, ("x-tourin-session-ended", "s1")]),
            (200, &[public, ("vary", "Accept-Language"), ("vary", "Cookie")]),
            (200, &[public, ("vary", "*")]),
            (200, &[public, ("vary", "authorization")]),
        ] {
            assert_eq!(fresh_for(&of, status, headers), None, "{status} {headers:?}");
        }
        let silent = policy("default_age_s = 5").unwrap();
        assert_eq!(fresh_for(&silent, 200, &[]), Some(5));
        assert_eq!(fresh_for(&silent, 200, &[("cache-control", "no-store")]), None);
        assert_eq!(fresh_for(&silent, 500, &[]), None);
    }

    #[test]
    fn tags_have_the_value_of_the_path() {
        let of = policy("tags = [\"spot:{id}\", \"reviews\"]").unwrap();
        let tags: Vec<_> =
            of.tags.iter().map(|tag| tag.tag("/api/tour-spots/42/reviews")).collect();
        assert_eq!(tags, ["spot:42", "reviews"]);
    }

    #[test]
    fn a_bad_value_is_named() {
        for (text, named) in [
            ("max_age_s = 0", "cache.max_age_s = 0"),
            ("max_age_s = 3601", "from 1 to 3600"),
            ("max_age_s = 601\ntags = [\"spot\"]", "from 1 to 600"),
            ("max_age_s = 10\ndefault_age_s = 11", "from 1 to 10"),
            ("max_body_bytes = 99999999", "cache.max_body_bytes"),
            ("tags = [\"spot:{spot}\"]", "\"spot:{spot}\""),
            ("tags = [\"spot {id}\"]", "\"spot {id}\""),
            ("tags = [\"{id}:{id}\"]", "at most one"),
            ("tags = [\"\"]", "cache.tags"),
        ] {
            let reason = policy(text).unwrap_err();
            assert!(reason.contains(named), "{reason}");
        }
    }
}
