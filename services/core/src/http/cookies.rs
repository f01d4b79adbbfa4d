//! The cookies of a session, for browsers that send only cookies.
//!
//! | cookie | path | SameSite |
//! |---|---|---|
//! | `__Host-access_token` | `/` | `Lax` |
//! | `__Host-refresh_token` | `/` | `Strict` |
//! | `device` | `/api/auth/login` | `Strict` |
//!
//! All are `HttpOnly` and `Secure`. Where the gateway says so, for plain HTTP, the session's are
//! `access_token` and `refresh_token`, none is `Secure`, and the refresh token has the path `/api/auth`.
//! The prefix would not allow that path; the gateway removes the refresh cookie from all other calls. It
//! also checks the `Origin` of writes that are authenticated by a cookie. The device's cookie is not of
//! the session and stays when that ends ([`crate::app::devices`]).
//!
//! The access cookie outlives its token: while the client may be idle, the gateway replaces an expired
//! token, so the browser must still send it.

use chrono::{DateTime, TimeDelta, Utc};
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue};
use tourin_chassis::http::fields;
use tourin_chassis::session_cookies::CookieNames;

use crate::app::devices::DEVICE_LIFETIME;
use crate::app::sessions::{AccessToken, TokenPair};

/// Most refresh tokens, and devices, tried per request.
const MAX_TOKENS: usize = 4;
/// The name of the device's cookie.
const DEVICE: &str = "device";

/// How cookies are set.
#[derive(Clone, Copy, Debug, Default)]
pub struct CookieSettings {
    /// How long a browser keeps the access cookie after its token has expired.
    pub idle: TimeDelta,
}

impl CookieSettings {
    /// Adds the headers that set both cookies.
    pub(super) fn set(self, names: CookieNames, headers: &mut HeaderMap, tokens: &TokenPair) {
        let lasts = seconds(tokens.access.issued_at, tokens.refresh_expires_at);
        headers.append(SET_COOKIE, self.access(names, &tokens.access));
        headers.append(SET_COOKIE, refresh(names, &tokens.refresh_token.expose(), lasts));
    }

    /// The header value that sets the access cookie.
    pub(super) fn access(self, names: CookieNames, token: &AccessToken) -> HeaderValue {
        access(names, &token.token, seconds(token.issued_at, token.expires_at + self.idle))
    }
}

/// Adds the headers that remove both cookies.
pub(super) fn clear(names: CookieNames, headers: &mut HeaderMap) {
    headers.append(SET_COOKIE, access(names, "", 0));
    headers.append(SET_COOKIE, refresh(names, "", 0));
}

/// Adds the header that sets a device's cookie.
pub(super) fn set_device(names: CookieNames, headers: &mut HeaderMap, device: &str) {
    let (secure, max_age_s) = (secure(names), DEVICE_LIFETIME.num_seconds());
    headers.append(
        SET_COOKIE,
        set_cookie(&format!(
            "{DEVICE}={device}; Path=/api/auth/login; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}"
        )),
    );
}

fn access(names: CookieNames, token: &str, max_age_s: i64) -> HeaderValue {
    let secure = secure(names);
    let name = names.access();
    set_cookie(&format!(
        "{name}={token}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Lax{secure}"
    ))
}

fn refresh(names: CookieNames, token: &str, max_age_s: i64) -> HeaderValue {
    let (name, secure) = (names.refresh(), secure(names));
    let path = match names {
        CookieNames::HostPrefixed => "/",
        CookieNames::Plain => "/api/auth",
    };
    set_cookie(&format!(
        "{name}={token}; Path={path}; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}"
    ))
}

fn secure(names: CookieNames) -> &'static str {
    match names {
        CookieNames::HostPrefixed => "; Secure",
        CookieNames::Plain => "",
    }
}

fn set_cookie(text: &str) -> HeaderValue {
    let mut header =
        HeaderValue::from_str(text).expect("tokens are base64url and dots, which headers hold");
    header.set_sensitive(true);
    header
}

fn seconds(from: DateTime<Utc>, until: DateTime<Utc>) -> i64 {
    (until - from).num_seconds().max(0)
}

/// At most [`MAX_TOKENS`] refresh tokens of the request's cookies. A browser may send several cookies
/// of one name, a stale one first.
pub(super) fn refresh_tokens(
    names: CookieNames,
    headers: &HeaderMap,
) -> impl Iterator<Item = &str> {
    fields::cookies(headers, names.refresh()).take(MAX_TOKENS)
}

/// At most [`MAX_TOKENS`] devices of the request's cookies.
pub(super) fn devices(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    fields::cookies(headers, DEVICE).take(MAX_TOKENS)
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;

    use super::*;

    #[test]
    fn the_refresh_token_is_found_among_other_cookies() {
        let mut headers = HeaderMap::new();
        let plain = CookieNames::Plain;
        assert_eq!(refresh_tokens(plain, &headers).next(), None);
        headers.append(COOKIE, HeaderValue::from_static("theme=dark; xrefresh_token=no"));
        let others = "access_token=a; ad=광고;refresh_token=r-1_x; refresh_token=\"r-2\"";
        headers.append(COOKIE, HeaderValue::from_bytes(others.as_bytes()).unwrap());
        assert_eq!(refresh_tokens(plain, &headers).collect::<Vec<_>>(), ["r-1_x", "r-2"]);
        assert_eq!(refresh_tokens(CookieNames::HostPrefixed, &headers).next(), None);
    }

    /// What browsers ask of a name with the prefix: `Secure`, the path `/` and no `Domain`.
    #[test]
    fn a_prefixed_cookie_is_one_that_browsers_keep() {
        for (names, expected) in [
            (
                CookieNames::HostPrefixed,
                [
                    "__Host-access_token=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure",
                    "__Host-refresh_token=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure",
                ],
            ),
            (
                CookieNames::Plain,
                [
                    "access_token=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax",
                    "refresh_token=; Path=/api/auth; Max-Age=0; HttpOnly; SameSite=Strict",
                ],
            ),
        ] {
            let mut headers = HeaderMap::new();
            clear(names, &mut headers);
            let cleared: Vec<_> =
                headers.get_all(SET_COOKIE).iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(cleared, expected);
        }
    }
}
