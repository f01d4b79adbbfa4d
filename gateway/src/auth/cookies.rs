//! Which names the session cookies of a call have, and whether they are `Secure`.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::ValueEnum;
use http::HeaderMap;
use http::header::SET_COOKIE;
use tourin_chassis::session_cookies::{CookieNames, SessionCookies};

use crate::client_address::Client;
use crate::log_throttle::LogThrottle;

/// When cookies are `Secure`, with names that begin with `__Host-`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum SecureCookies {
    /// Except for calls over plain HTTP to a name or an address of the local machine.
    #[default]
    Auto,
    /// For every call.
    #[value(aliases = ["true", "1", "yes", "on"])]
    Always,
    /// For no call.
    #[value(aliases = ["false", "0", "no", "off"])]
    Never,
}

/// Names the session cookies of calls.
#[derive(Debug)]
pub struct CookiePolicy {
    secure: SecureCookies,
    warned: Mutex<LogThrottle>,
}

impl CookiePolicy {
    /// By the settings.
    pub fn new(secure: SecureCookies) -> Self {
        Self { secure, warned: Mutex::default() }
    }

    /// The session cookies of a client's call.
    pub fn cookies(&self, client: &Client, headers: &HeaderMap) -> SessionCookies {
        SessionCookies::of(self.names(client), headers)
    }

    fn names(&self, client: &Client) -> CookieNames {
        let is_local = || client.host.as_ref().is_some_and(|host| host.is_loopback());
        match self.secure {
            SecureCookies::Always => CookieNames::HostPrefixed,
            SecureCookies::Never => CookieNames::Plain,
            SecureCookies::Auto if client.scheme == "http" && is_local() => CookieNames::Plain,
            SecureCookies::Auto => CookieNames::HostPrefixed,
        }
    }

    /// Warns, at most once a while, if a response sets `Secure` cookies though its call came over plain
    /// HTTP, as far as the gateway can tell: browsers drop them then.
    pub fn check(&self, client: &Client, cookies: SessionCookies, response: &HeaderMap) {
        if cookies.names == CookieNames::Plain || client.scheme == "https" {
            return;
        }
        let name = cookies.names.access().as_bytes();
        let sets = |value: &http::HeaderValue| {
            let rest = value.as_bytes().strip_prefix(name).and_then(|rest| rest.strip_prefix(b"="));
            rest.is_some_and(|rest| !rest.starts_with(b";"))
        };
        if !response.get_all(SET_COOKIE).iter().any(sets) {
            return;
        }
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unlogged) = warned.record(Instant::now()) {
            tracing::warn!(
                unlogged,
                "set Secure cookies on a call over plain http, and browsers drop those: serve clients \
                 by https, and name the proxy that does it with --trusted-proxies; for plain http \
                 only, set --cookie-secure never"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;
    use crate::client_address::{ForwardingHeader, TrustedProxies};

    fn names(secure: SecureCookies, scheme: &str, host: &str) -> CookieNames {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-proto", scheme.parse().unwrap());
        let proxies = TrustedProxies {
            networks: vec!["127.0.0.1/32".parse().unwrap()],
            header: ForwardingHeader::XForwardedFor,
        };
        let host = Authority::parse(host.as_bytes()).ok();
        let peer = ("http", "127.0.0.1:1".parse().unwrap());
        let client = Client::of(peer, host, &headers, &proxies);
        CookiePolicy::new(secure).cookies(&client, &HeaderMap::new()).names
    }

    #[test]
    fn only_the_local_machine_gets_plain_cookies_unasked() {
        use CookieNames::{HostPrefixed, Plain};
        for (scheme, host, expected) in [
            ("http", "localhost:8080", Plain),
            ("http", "LOCALHOST", Plain),
            ("http", "tourin.localhost", Plain),
            ("http", "127.0.0.1:8080", Plain),
            ("http", "127.9.9.9", Plain),
            ("http", "[::1]:8080", Plain),
            ("https", "localhost", HostPrefixed),
            ("https", "tourin.example", HostPrefixed),
            ("http", "tourin.example", HostPrefixed),
            ("http", "192.168.1.5:8080", HostPrefixed),
            ("http", "localhost.evil.example", HostPrefixed),
            ("http", "127.0.0.1.evil.example", HostPrefixed),
            ("http", "evillocalhost", HostPrefixed),
            ("http", "no host at all", HostPrefixed),
        ] {
            assert_eq!(names(SecureCookies::Auto, scheme, host), expected, "{scheme} {host}");
            assert_eq!(names(SecureCookies::Always, scheme, host), HostPrefixed);
            assert_eq!(names(SecureCookies::Never, scheme, host), Plain);
        }
    }
}
