//! What a route says of its mirror.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use toml::Spanned;
use tourin_registry_api::{Instance, VERSION};

use crate::policy_fields::{FieldError, number};
use crate::portion::Portion;

const DEFAULT_TIMEOUT_MS: u64 = 5_000;
const MAX_TIMEOUT_MS: u64 = 60_000;
const DEFAULT_BODY_BYTES: u64 = 1 << 20;
const MAX_BODY_BYTES: u64 = 16 << 20;

/// `[route.mirror]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMirror {
    service: Option<Spanned<String>>,
    version: Option<String>,
    percent: Spanned<f64>,
    #[serde(default)]
    writes: bool,
    #[serde(default)]
    identity: MirrorIdentity,
    timeout_ms: Option<Spanned<u64>>,
    max_body_bytes: Option<Spanned<u64>>,
}

/// Whose identity a copy has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MirrorIdentity {
    /// One visitor's for all.
    #[default]
    Visitor,
    /// The caller's.
    Caller,
}

/// The mirror of a route.
#[derive(Debug, Clone)]
pub struct MirrorPolicy {
    pub(super) service: Arc<str>,
    version: Option<String>,
    portion: Portion,
    writes: bool,
    /// Whose identity copies have.
    pub identity: MirrorIdentity,
    pub(super) timeout: Duration,
    pub(super) max_body_bytes: u64,
}

impl RawMirror {
    /// Checks the values. `service` is the route's own.
    ///
    /// # Errors
    /// When one is not allowed.
    pub fn check(self, service: &str) -> Result<MirrorPolicy, FieldError> {
        let portion = Portion::of_percent("mirror.percent", &self.percent)?;
        if self.service.is_none() && self.version.is_none() {
            let at = self.percent.span().start;
            let expected = "mirror.service or mirror.version, which say where the copies go";
            return Err(FieldError::new(at, "mirror.percent", self.percent.get_ref(), expected));
        }
        if let Some(name) = &self.service
            && let Err(error) = tourin_registry_api::limits::service_name(name.get_ref())
        {
            let value = format!("{:?}", name.get_ref());
            return Err(FieldError::new(name.span().start, "mirror.service", value, error));
        }
        let timeout = number("mirror.timeout_ms", self.timeout_ms.as_ref(), 1..=MAX_TIMEOUT_MS)?;
        let body =
            number("mirror.max_body_bytes", self.max_body_bytes.as_ref(), 1..=MAX_BODY_BYTES)?;
        Ok(MirrorPolicy {
            service: self.service.as_ref().map_or(service, |name| name.get_ref()).into(),
            version: self.version,
            portion,
            writes: self.writes,
            identity: self.identity,
            timeout: Duration::from_millis(timeout.unwrap_or(DEFAULT_TIMEOUT_MS)),
            max_body_bytes: body.unwrap_or(DEFAULT_BODY_BYTES),
        })
    }
}

impl MirrorPolicy {
    /// Whether a request with this method is copied, which is drawn for each anew.
    pub fn takes(&self, method: &Method) -> bool {
        let is_read = [Method::GET, Method::HEAD].contains(method);
        let is_write = [Method::PUT, Method::DELETE].contains(method);
        (is_read || (is_write && self.writes)) && self.portion.draw()
    }

    pub(super) fn accepts(&self, instance: &Instance) -> bool {
        let version = instance.metadata.get(VERSION);
        self.version.as_ref().is_none_or(|wanted| version == Some(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<MirrorPolicy, String> {
        let raw: RawMirror = toml::from_str(text).unwrap();
        raw.check("core").map_err(|error| error.reason)
    }

    #[test]
    fn a_bad_value_is_named() {
        for (text, named) in [
            ("percent = 101", "mirror.percent"),
            ("percent = -1.0", "mirror.percent"),
            ("percent = 5", "mirror.service or mirror.version"),
            ("percent = 5\nservice = \"a/b\"", "\"a/b\""),
            ("percent = 5\nversion = \"2\"\ntimeout_ms = 0", "mirror.timeout_ms"),
            ("percent = 5\nversion = \"2\"\nmax_body_bytes = 99999999", "mirror.max_body_bytes"),
        ] {
            let reason = check(text).unwrap_err();
            assert!(reason.contains(named), "{reason}");
        }
        assert!(toml::from_str::<RawMirror>("percent = 5\nidentity = \"member\"").is_err());
    }

    #[test]
    fn only_what_may_be_repeated_is_copied() {
        let reads = check("percent = 100\nversion = \"2\"").unwrap();
        let writes = check("percent = 100\nversion = \"2\"\nwrites = true").unwrap();
        for (method, read, written) in [
            (Method::GET, true, true),
            (Method::HEAD, true, true),
            (Method::PUT, false, true),
            (Method::DELETE, false, true),
            (Method::POST, false, false),
            (Method::PATCH, false, false),
        ] {
            assert_eq!((reads.takes(&method), writes.takes(&method)), (read, written), "{method}");
        }
        let none = check("percent = 0\nversion = \"2\"").unwrap();
        assert!((0..1_000).all(|_| !none.takes(&Method::GET)));
    }
}
