//! The names of the cookies that carry a session. The gateway chooses them for each call, and core
//! sets cookies of these names.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use crate::http::fields;

/// Carries [`SessionCookies`] from the gateway to a service.
pub const SESSION_COOKIES_HEADER: HeaderName = HeaderName::from_static("x-tourin-session-cookies");

/// How a client's session cookies are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CookieNames {
    /// `__Host-access_token` and `__Host-refresh_token`. Browsers keep such cookies only if they are
    /// `Secure`, for the path `/` and without a `Domain`. So no other host and no plain HTTP response
    /// can set them (draft-ietf-httpbis-rfc6265bis, 4.1.3.2).
    #[default]
    HostPrefixed,
    /// `access_token` and `refresh_token`, which plain HTTP can carry.
    Plain,
}

impl CookieNames {
    /// Both ways.
    pub const ALL: [Self; 2] = [Self::HostPrefixed, Self::Plain];

    /// The name of the access token's cookie.
    pub const fn access(self) -> &'static str {
        match self {
            Self::HostPrefixed => "__Host-access_token",
            Self::Plain => "access_token",
        }
    }

    /// The name of the refresh token's cookie.
    pub const fn refresh(self) -> &'static str {
        match self {
            Self::HostPrefixed => "__Host-refresh_token",
            Self::Plain => "refresh_token",
        }
    }
}

/// The session cookies of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCookies {
    /// The names that count; cookies of the other names are ignored.
    pub names: CookieNames,
    /// Whether the call brought one. Its client is a browser then, and gets tokens in cookies alone.
    pub sent: bool,
}

impl SessionCookies {
    /// Those of a request to a client that gets cookies of these names.
    pub fn of(names: CookieNames, headers: &HeaderMap) -> Self {
        let has = |name| fields::cookies(headers, name).next().is_some();
        Self { names, sent: has(names.access()) || has(names.refresh()) }
    }

    /// The value of [`SESSION_COOKIES_HEADER`].
    pub fn to_header(self) -> HeaderValue {
        HeaderValue::from_static(match (self.names, self.sent) {
            (CookieNames::HostPrefixed, false) => "host-prefixed",
            (CookieNames::HostPrefixed, true) => "host-prefixed, sent",
            (CookieNames::Plain, false) => "plain",
            (CookieNames::Plain, true) => "plain, sent",
        })
    }
}

/// From the gateway's header. Without it, the names are those that plain HTTP cannot carry.
impl<S: Send + Sync> FromRequestParts<S> for SessionCookies {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let has = |word| fields::has_token(&parts.headers, &SESSION_COOKIES_HEADER, word);
        let names = if has("plain") { CookieNames::Plain } else { CookieNames::HostPrefixed };
        Ok(Self { names, sent: has("sent") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_service_reads_what_the_gateway_wrote() {
        for names in CookieNames::ALL {
            for sent in [false, true] {
                let cookies = SessionCookies { names, sent };
                let request =
                    http::Request::get("/").header(SESSION_COOKIES_HEADER, cookies.to_header());
                let mut parts = request.body(()).unwrap().into_parts().0;
                let read = SessionCookies::from_request_parts(&mut parts, &()).await.unwrap();
                assert_eq!(read, cookies);
            }
        }
        let mut parts = http::Request::get("/").body(()).unwrap().into_parts().0;
        let read = SessionCookies::from_request_parts(&mut parts, &()).await.unwrap();
        assert_eq!(read, SessionCookies::default());
    }

    #[test]
    fn a_cookie_of_the_other_name_is_not_the_sessions() {
        let mut headers = HeaderMap::new();
        headers.append("cookie", "access_token=a; __Host-other=b".parse().unwrap());
        assert!(!SessionCookies::of(CookieNames::HostPrefixed, &headers).sent);
        assert!(SessionCookies::of(CookieNames::Plain, &headers).sent);
        headers.append("cookie", "__Host-refresh_token=r".parse().unwrap());
        assert!(SessionCookies::of(CookieNames::HostPrefixed, &headers).sent);
    }
}
