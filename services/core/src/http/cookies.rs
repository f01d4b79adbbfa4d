//! The cookies of a session, for browsers that send only cookies.
//!
//! | cookie | path | SameSite |
//! |---|---|---|
//! | `access_token` | `/` | `Lax` |
//! | `refresh_token` | `/api/auth` | `Strict` |
//!
//! Both are `HttpOnly`, and `Secure` if the settings say so. The gateway checks the `Origin` of
//! writes that are authenticated by a cookie.
//!
//! The access cookie outlives its token: while the client may be idle, the gateway replaces an expired
//! token, so the browser must still send it.

use chrono::{DateTime, TimeDelta, Utc};
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue};
use tourin_chassis::http::fields;

use crate::app::sessions::{AccessToken, TokenPair};

/// Most refresh tokens tried per request.
const MAX_TOKENS: usize = 4;
const ACCESS: Cookie = Cookie { name: "access_token", path: "/", same_site: "Lax" };
const REFRESH: Cookie = Cookie { name: "refresh_token", path: "/api/auth", same_site: "Strict" };

struct Cookie {
    name: &'static str,
    path: &'static str,
    same_site: &'static str,
}

/// How cookies are set.
#[derive(Clone, Copy, Debug, Default)]
pub struct CookieSettings {
    /// Whether browsers may send them over HTTPS only.
    pub secure: bool,
    /// How long a browser keeps the access cookie after its token has expired.
    pub idle: TimeDelta,
}

impl CookieSettings {
    /// Adds the headers that set both cookies.
    pub(super) fn set(self, headers: &mut HeaderMap, tokens: &TokenPair) {
        let refresh = tokens.refresh_token.expose();
        let lasts = seconds(tokens.access.issued_at, tokens.refresh_expires_at);
        headers.append(SET_COOKIE, self.access(&tokens.access));
        headers.append(SET_COOKIE, self.cookie(&REFRESH, &refresh, lasts));
    }

    /// The header value that sets the access cookie.
    pub(super) fn access(self, access: &AccessToken) -> HeaderValue {
        let lasts = seconds(access.issued_at, access.expires_at + self.idle);
        self.cookie(&ACCESS, &access.token, lasts)
    }

    /// Adds the headers that remove both cookies.
    pub(super) fn clear(self, headers: &mut HeaderMap) {
        headers.append(SET_COOKIE, self.cookie(&ACCESS, "", 0));
        headers.append(SET_COOKIE, self.cookie(&REFRESH, "", 0));
    }

    fn cookie(self, cookie: &Cookie, value: &str, max_age_s: i64) -> HeaderValue {
        let Cookie { name, path, same_site } = cookie;
        let secure = if self.secure { "; Secure" } else { "" };
        let text = format!(
            "{name}={value}; Path={path}; Max-Age={max_age_s}; HttpOnly; SameSite={same_site}{secure}"
        );
        let mut header = HeaderValue::from_str(&text)
            .expect("tokens are base64url and dots, which headers hold");
        header.set_sensitive(true);
        header
    }
}

fn seconds(from: DateTime<Utc>, until: DateTime<Utc>) -> i64 {
    (until - from).num_seconds().max(0)
}

/// At most [`MAX_TOKENS`] refresh tokens of the request's cookies. A browser may send several cookies
/// of one name, a stale one first.
pub(super) fn refresh_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    fields::cookies(headers, REFRESH.name).take(MAX_TOKENS)
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;

    use super::*;

    #[test]
    fn the_refresh_token_is_found_among_other_cookies() {
        let mut headers = HeaderMap::new();
        assert_eq!(refresh_tokens(&headers).next(), None);
        headers.append(COOKIE, HeaderValue::from_static("theme=dark; xrefresh_token=no"));
        let others = "access_token=a; ad=광고;refresh_token=r-1_x; refresh_token=\"r-2\"";
        headers.append(COOKIE, HeaderValue::from_bytes(others.as_bytes()).unwrap());
        assert_eq!(refresh_tokens(&headers).collect::<Vec<_>>(), ["r-1_x", "r-2"]);
    }

    #[test]
    fn clearing_names_the_same_paths_as_setting() {
        let mut headers = HeaderMap::new();
        CookieSettings { secure: true, ..CookieSettings::default() }.clear(&mut headers);
        let cleared: Vec<_> =
            headers.get_all(SET_COOKIE).iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(
            cleared,
            [
                "access_token=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure",
                "refresh_token=; Path=/api/auth; Max-Age=0; HttpOnly; SameSite=Strict; Secure",
            ]
        );
    }
}
