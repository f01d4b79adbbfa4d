//! Headers that every response gets, besides `X-Content-Type-Options: nosniff`.

use std::str::FromStr;

use clap::Args;
use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, SET_COOKIE,
    STRICT_TRANSPORT_SECURITY, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VARY,
};
use http::{HeaderName, HeaderValue};
use pingora::http::ResponseHeader;

/// Headers by which a response is read, or that depend on the request.
const REFUSED: [HeaderName; 13] = [
    CACHE_CONTROL,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    DATE,
    SET_COOKIE,
    STRICT_TRANSPORT_SECURITY,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    VARY,
];

/// `Strict-Transport-Security` (RFC 6797), or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hsts(Option<HeaderValue>);

impl FromStr for Hsts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self(None));
        }
        let expected = || {
            "expected directives such as \"max-age=31536000; includeSubDomains\", or \"off\""
                .to_owned()
        };
        let mut has_age = false;
        for directive in text.split(';').map(str::trim) {
            match directive.split_once('=') {
                Some(("max-age", seconds)) if !has_age && seconds.parse::<u32>().is_ok() => {
                    has_age = true;
                }
                None if ["includeSubDomains", "preload"].contains(&directive) => {}
                _ => return Err(expected()),
            }
        }
        let value = HeaderValue::from_str(text).ok().filter(|_| has_age);
        value.map(|value| Self(Some(value))).ok_or_else(expected)
    }
}

/// A header and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseField(HeaderName, HeaderValue);

impl FromStr for ResponseField {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || "expected NAME: VALUE, such as \"X-Frame-Options: DENY\"".to_owned();
        let (name, value) = text.split_once(':').ok_or_else(expected)?;
        let name = HeaderName::from_str(name.trim()).map_err(|_| expected())?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| expected())?;
        if REFUSED.contains(&name) {
            return Err(if name == STRICT_TRANSPORT_SECURITY {
                "this header is set by --hsts".to_owned()
            } else {
                "this header depends on the response, and cannot be the same for all".to_owned()
            });
        }
        Ok(Self(name, value))
    }
}

/// Which headers every response gets.
#[derive(Debug, Clone, Args)]
pub struct ResponseHeaderSettings {
    /// Strict-Transport-Security of responses over the gateway's own TLS, by which browsers come by
    /// https alone from then on: `max-age=SECONDS`, with `; includeSubDomains` and `; preload` where
    /// all names below are ready for it. off: without the header
    #[arg(
        long,
        env = "TOURIN_GATEWAY_HSTS",
        value_name = "DIRECTIVES",
        default_value = "max-age=31536000"
    )]
    pub hsts: Hsts,
    /// Header that every response gets unless it has one of this name (`X-Frame-Options: DENY`);
    /// repeatable, in the variable one a line
    #[arg(
        id = "response_headers",
        long = "response-header",
        env = "TOURIN_GATEWAY_RESPONSE_HEADERS",
        value_name = "NAME: VALUE",
        value_delimiter = '\n'
    )]
    pub fields: Vec<ResponseField>,
}

/// Adds the headers that every response gets.
#[derive(Debug, Clone, Default)]
pub struct ResponseHeaders {
    hsts: Hsts,
    fields: Vec<ResponseField>,
}

impl ResponseHeaders {
    /// By the settings.
    pub fn new(settings: &ResponseHeaderSettings) -> Self {
        Self { hsts: settings.hsts.clone(), fields: settings.fields.clone() }
    }

    /// Adds them to a response that goes over TLS, or not.
    ///
    /// # Errors
    /// Pingora's, which checked headers do not cause.
    pub fn add(&self, response: &mut ResponseHeader, is_tls: bool) -> pingora::Result<()> {
        if let Some(hsts) = self.hsts.0.as_ref().filter(|_| is_tls) {
            response.insert_header(STRICT_TRANSPORT_SECURITY, hsts.clone())?;
        }
        for ResponseField(name, value) in &self.fields {
            if !response.headers.contains_key(name) {
                response.insert_header(name.clone(), value.clone())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_told_to_come_by_https_over_tls_alone() {
        let headers = ResponseHeaders {
            hsts: "max-age=60; includeSubDomains".parse().unwrap(),
            fields: vec!["X-Frame-Options:DENY".parse().unwrap()],
        };
        let of = |is_tls, own: Option<&'static str>| {
            let mut response = ResponseHeader::build(200, None).unwrap();
            if let Some(own) = own {
                response.insert_header("x-frame-options", own).unwrap();
            }
            headers.add(&mut response, is_tls).unwrap();
            let text = |name: &str| Some(response.headers.get(name)?.to_str().unwrap().to_owned());
            (text("strict-transport-security"), text("x-frame-options"))
        };
        let (hsts, deny) = ("max-age=60; includeSubDomains".to_owned(), Some("DENY".to_owned()));
        assert_eq!(of(true, None), (Some(hsts), deny.clone()));
        assert_eq!(of(false, None), (None, deny));
        assert_eq!(of(false, Some("SAMEORIGIN")), (None, Some("SAMEORIGIN".to_owned())));
    }

    #[test]
    fn values_that_browsers_would_ignore_are_refused() {
        assert_eq!("off".parse(), Ok(Hsts(None)));
        for good in ["max-age=0", "max-age=63072000; includeSubDomains; preload"] {
            assert!(good.parse::<Hsts>().is_ok(), "{good}");
        }
        for bad in ["", "on", "31536000", "includeSubDomains", "max-age=", "max-age=1;max-age=2"] {
            assert!(bad.parse::<Hsts>().is_err(), "{bad}");
        }
        for bad in ["", "X-Frame-Options", "a b: c", "Content-Length: 1", "set-cookie: a=b"] {
            assert!(bad.parse::<ResponseField>().is_err(), "{bad}");
        }
        let own = "Strict-Transport-Security: max-age=1".parse::<ResponseField>().unwrap_err();
        assert!(own.contains("--hsts"), "{own}");
    }
}
