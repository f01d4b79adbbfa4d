//! Canary releases: a share of a route's requests goes to the instances of a new version.
//!
//! An instance's version is the entry `version` of its metadata in the registry.
//!
//! A share is measured by hash, so that a caller stays on one side, on every gateway and over restarts.
//! The hash contains the version: the next canary meets other callers. A larger share only adds
//! callers, none changes back.

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use toml::Spanned;
use tourin_chassis::http::fields;
use tourin_chassis::identity::Subject;
use tourin_chassis::metrics::{Counters, Metrics};
use tourin_registry_api::{Instance, VERSION};

use crate::client_address::parse_network;
use crate::messages;
use crate::policy_fields::FieldError;
use crate::portion::Portion;
use crate::responses::Response;

/// The header by which a caller asks for a version, where the route allows it. The response has it too.
pub const VERSION_HEADER: HeaderName = HeaderName::from_static("x-tourin-version");
/// Longest version: as long as metadata can be would be too long for a header.
const MAX_VERSION_BYTES: usize = 64;

/// `[route.canary]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCanary {
    version: Option<Spanned<String>>,
    percent: Option<Spanned<f64>>,
    by: Option<Spanned<String>>,
    #[serde(default)]
    force: Vec<Spanned<String>>,
}

/// What a request is told apart by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ShareBy {
    /// By itself: each request is decided anew.
    Request,
    /// The member; of a visitor the pseudonym.
    Caller,
    /// The value of a header. Requests without it are not in the share.
    Header(HeaderName),
}

/// Who may ask for a version.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Forcing {
    Anybody,
    Session,
    Role(String),
    Network(IpNet),
}

/// The canary of a route.
#[derive(Debug, Clone)]
pub struct Canary {
    share: Option<Share>,
    force: Vec<Forcing>,
}

#[derive(Debug, Clone)]
struct Share {
    version: Arc<str>,
    portion: Portion,
    by: ShareBy,
}

impl RawCanary {
    /// Checks the values.
    ///
    /// # Errors
    /// When one is not allowed.
    pub fn check(self) -> Result<Canary, FieldError> {
        let share = match (self.version, self.percent) {
            (None, None) => None,
            (Some(version), Some(percent)) => Some(share(&version, &percent, self.by.as_ref())?),
            (Some(version), None) => {
                let expected = "canary.percent with it, such as 5 or 0.5";
                return Err(wrong("canary.version", &version, expected));
            }
            (None, Some(percent)) => {
                let expected = "canary.version with it, such as \"2.1\"";
                let at = percent.span().start;
                return Err(FieldError::new(at, "canary.percent", percent.get_ref(), expected));
            }
        };
        let force = self.force.iter().map(forcing).collect::<Result<_, _>>()?;
        Ok(Canary { share, force })
    }
}

fn share(
    version: &Spanned<String>,
    percent: &Spanned<f64>,
    by: Option<&Spanned<String>>,
) -> Result<Share, FieldError> {
    if !is_version(version.get_ref().as_bytes()) {
        let expected =
            format!("1 to {MAX_VERSION_BYTES} letters, digits, dots, hyphens and underscores");
        return Err(wrong("canary.version", version, expected));
    }
    let portion = Portion::of_percent("canary.percent", percent)?;
    let by = match by.map(|by| (by, by.get_ref().as_str())) {
        None | Some((_, "caller")) => ShareBy::Caller,
        Some((_, "request")) => ShareBy::Request,
        Some((by, text)) => {
            let name = text.strip_prefix("header:").and_then(|name| name.parse().ok());
            ShareBy::Header(name.ok_or_else(|| {
                wrong("canary.by", by, "expected \"caller\", \"request\" or \"header:NAME\"")
            })?)
        }
    };
    Ok(Share { version: version.get_ref().as_str().into(), portion, by })
}

fn wrong(field: &str, value: &Spanned<String>, expected: impl Display) -> FieldError {
    FieldError::new(value.span().start, field, format!("{:?}", value.get_ref()), expected)
}

fn forcing(who: &Spanned<String>) -> Result<Forcing, FieldError> {
    let text = who.get_ref().as_str();
    match text {
        "anybody" => return Ok(Forcing::Anybody),
        "session" => return Ok(Forcing::Session),
        _ => {}
    }
    if let Some(role) = text.strip_prefix("role:").filter(|role| !role.is_empty()) {
        return Ok(Forcing::Role(role.to_owned()));
    }
    parse_network(text).map(Forcing::Network).map_err(|_| {
        let expected =
            "expected \"anybody\", \"session\", \"role:NAME\" or a network such as \"10.0.0.0/8\"";
        wrong("canary.force", who, expected)
    })
}

fn is_version(text: &[u8]) -> bool {
    (1..=MAX_VERSION_BYTES).contains(&text.len())
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(byte))
}

/// The version that a request is to meet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum VersionChoice {
    /// The route has no canary.
    #[default]
    Any,
    /// Instances of this version, others if there is none.
    Canary(Arc<str>),
    /// Instances of other versions, this one's if there is no other.
    Stable(Arc<str>),
    /// Instances of this version and no other.
    Forced(Arc<str>),
}

impl VersionChoice {
    /// Whether the instance is of the chosen version.
    pub fn accepts(&self, instance: &Instance) -> bool {
        let version = instance.metadata.get(VERSION).map(String::as_str);
        match self {
            Self::Any => true,
            Self::Canary(wanted) | Self::Forced(wanted) => version == Some(wanted),
            Self::Stable(canary) => version != Some(canary),
        }
    }

    /// Whether another instance will do if none is accepted.
    pub fn falls_back(&self) -> bool {
        matches!(self, Self::Canary(_) | Self::Stable(_))
    }

    /// The version that was asked for by header.
    pub fn forced(&self) -> Option<&str> {
        match self {
            Self::Forced(version) => Some(version),
            _ => None,
        }
    }

    /// The label in metrics and spans; `None` without a canary.
    pub fn name(&self) -> Option<&'static str> {
        match self {
            Self::Any => None,
            Self::Canary(_) => Some("canary"),
            Self::Stable(_) => Some("stable"),
            Self::Forced(_) => Some("forced"),
        }
    }
}

/// Who a request is from.
#[derive(Debug, Clone, Copy)]
pub struct CallerFacts<'a> {
    /// The identity.
    pub subject: &'a Subject,
    /// The client's address.
    pub address: IpAddr,
    /// The request's headers.
    pub headers: &'a HeaderMap,
}

impl Canary {
    /// The version for a request.
    ///
    /// # Errors
    /// 400 for a malformed version from a caller who may ask for one.
    pub fn choose(&self, caller: &CallerFacts<'_>) -> Result<VersionChoice, Response> {
        let mut asked = caller.headers.get_all(VERSION_HEADER).iter();
        if let Some(version) = asked.next()
            && self.force.iter().any(|who| who.includes(caller))
        {
            let version = Some(version.as_bytes()).filter(|text| is_version(text));
            return match version.and_then(|text| std::str::from_utf8(text).ok()) {
                Some(version) if asked.next().is_none() => {
                    Ok(VersionChoice::Forced(version.into()))
                }
                _ => Err(Response::malformed(messages::invalid_version())),
            };
        }
        let Some(share) = &self.share else { return Ok(VersionChoice::Any) };
        let version = Arc::clone(&share.version);
        Ok(if share.includes(caller) {
            VersionChoice::Canary(version)
        } else {
            VersionChoice::Stable(version)
        })
    }
}

impl Forcing {
    fn includes(&self, caller: &CallerFacts<'_>) -> bool {
        match (self, caller.subject) {
            (Self::Anybody, _) | (Self::Session, Subject::Member { .. }) => true,
            (Self::Role(role), Subject::Member { roles, .. }) => roles.contains(role),
            (Self::Network(network), _) => network.contains(&caller.address.to_canonical()),
            (Self::Session | Self::Role(_), Subject::Visitor { .. }) => false,
        }
    }
}

impl Share {
    fn includes(&self, caller: &CallerFacts<'_>) -> bool {
        let key: &[u8] = match (&self.by, caller.subject) {
            (ShareBy::Request, _) => return self.portion.draw(),
            (ShareBy::Caller, Subject::Member { id, .. }) => id.as_bytes(),
            (ShareBy::Caller, Subject::Visitor { pseudonym }) => pseudonym.as_bytes(),
            (ShareBy::Header(name), _) => match fields::elements(caller.headers, name).next() {
                Some(value) => value,
                None => return false,
            },
        };
        self.portion.includes(self.point(key))
    }

    /// Where the key stands among 2^64 points.
    fn point(&self, key: &[u8]) -> u64 {
        let digest = Sha256::new().chain_update(self.version.as_bytes()).chain_update([0]);
        let digest = digest.chain_update(key).finalize();
        digest.iter().take(8).fold(0, |point, byte| point << 8 | u64::from(*byte))
    }
}

/// Requests by the version that was chosen for them.
#[derive(Debug, Clone)]
pub struct CanaryMetrics(Counters<2>);

impl CanaryMetrics {
    /// Registers the metric.
    pub fn new(metrics: &Metrics) -> Self {
        Self(metrics.counters(
            "tourin_gateway_canary_requests",
            "Requests of routes with a canary, by the choice of the version",
        ))
    }

    /// Counts a request.
    pub fn chosen(&self, template: &str, choice: &VersionChoice) {
        if let Some(name) = choice.name() {
            self.0.of([("route", template), ("choice", name)]).increase();
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn canary(text: &str) -> Canary {
        toml::from_str::<RawCanary>(text).unwrap().check().unwrap()
    }

    fn member(id: &str, roles: &[&str]) -> Subject {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        Subject::Member { id: id.to_owned(), session: "s".to_owned(), roles }
    }

    fn chosen(
        canary: &Canary,
        subject: &Subject,
        headers: &[(&'static str, &str)],
    ) -> VersionChoice {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect::<HeaderMap>();
        let address = "10.1.2.3".parse().unwrap();
        canary.choose(&CallerFacts { subject, address, headers: &headers }).unwrap()
    }

    fn in_share(canary: &Canary, count: usize) -> Vec<usize> {
        let is_in = |n: &usize| {
            let member = member(&format!("member{n}"), &[]);
            matches!(chosen(canary, &member, &[]), VersionChoice::Canary(_))
        };
        (0..count).filter(is_in).collect()
    }

    #[test]
    fn a_share_of_the_members_meets_the_canary_and_stays_there() {
        let at = |percent: &str, version: &str| {
            canary(&format!("version = \"{version}\"\npercent = {percent}"))
        };
        let few = in_share(&at("10.0", "2"), 10_000);
        // Five standard deviations of a binomial distribution with 10,000 and 10 %.
        assert!((850..=1_150).contains(&few.len()), "{}", few.len());
        assert_eq!(few, in_share(&at("10.0", "2"), 10_000));
        let more = in_share(&at("25.0", "2"), 10_000);
        assert!((2_283..=2_717).contains(&more.len()), "{}", more.len());
        assert!(few.iter().all(|n| more.contains(n)), "none changes back");
        let next = in_share(&at("10.0", "3"), 10_000);
        let both = few.iter().filter(|n| next.contains(n)).count();
        assert!((50..=150).contains(&both), "other members next time: {both}");
        assert_eq!(in_share(&at("0.0", "2"), 1_000).len(), 0);
        assert_eq!(in_share(&at("100.0", "2"), 1_000).len(), 1_000);
    }

    #[test]
    fn a_share_can_be_of_the_requests_or_by_a_header() {
        let by_request = canary("version = \"2\"\npercent = 50.0\nby = \"request\"");
        let one = member("one", &[]);
        let count = (0..10_000)
            .filter(|_| matches!(chosen(&by_request, &one, &[]), VersionChoice::Canary(_)))
            .count();
        // Eight standard deviations: these are drawn anew in each run.
        assert!((4_600..=5_400).contains(&count), "{count}");
        let by_header = canary("version = \"2\"\npercent = 50.0\nby = \"header:X-Shop\"");
        let of = |shop: &str| chosen(&by_header, &one, &[("x-shop", shop)]);
        let count =
            (0..1_000).filter(|n| matches!(of(&n.to_string()), VersionChoice::Canary(_))).count();
        assert!((420..=580).contains(&count), "{count}");
        assert_eq!(of("7"), of("7"));
        assert_eq!(chosen(&by_header, &one, &[]), VersionChoice::Stable("2".into()));
    }

    #[test]
    fn a_version_is_forced_by_those_who_may() {
        let ask = [("x-tourin-version", "3.0")];
        let forced = VersionChoice::Forced("3.0".into());
        let visitor = Subject::Visitor { pseudonym: "v".to_owned() };
        for (force, subject, may) in [
            ("[]", member("m", &["tester"]), false),
            ("[\"anybody\"]", visitor.clone(), true),
            ("[\"session\"]", visitor.clone(), false),
            ("[\"session\"]", member("m", &[]), true),
            ("[\"role:tester\"]", member("m", &[]), false),
            ("[\"role:tester\"]", member("m", &["tester"]), true),
            ("[\"10.0.0.0/8\"]", visitor.clone(), true),
            ("[\"10.1.2.3\"]", visitor.clone(), true),
            ("[\"192.0.2.0/24\"]", visitor.clone(), false),
            ("[\"192.0.2.0/24\", \"session\"]", member("m", &[]), true),
        ] {
            let canary = canary(&format!("force = {force}"));
            let expected = if may { forced.clone() } else { VersionChoice::Any };
            assert_eq!(chosen(&canary, &subject, &ask), expected, "{force} {subject:?}");
        }
        let open = canary("force = [\"anybody\"]");
        for bad in ["", "a b", "2,3", &"9".repeat(65)] {
            let headers = HeaderMap::from_iter([(VERSION_HEADER, bad.parse().unwrap())]);
            let address = "10.1.2.3".parse().unwrap();
            let facts = CallerFacts { subject: &visitor, address, headers: &headers };
            assert_eq!(open.choose(&facts).unwrap_err().status, 400, "{bad:?}");
        }
    }

    #[test]
    fn instances_are_told_apart_by_their_metadata() {
        let mut new = Instance::new("core", "a", "127.0.0.1:1".parse().unwrap());
        let old = new.clone();
        new.metadata.insert(VERSION.to_owned(), "2".to_owned());
        for (choice, takes_new, takes_old) in [
            (VersionChoice::Any, true, true),
            (VersionChoice::Canary("2".into()), true, false),
            (VersionChoice::Stable("2".into()), false, true),
            (VersionChoice::Forced("2".into()), true, false),
            (VersionChoice::Forced("3".into()), false, false),
        ] {
            assert_eq!((choice.accepts(&new), choice.accepts(&old)), (takes_new, takes_old));
        }
    }

    #[test]
    fn a_bad_value_is_named() {
        for (text, named) in [
            ("version = \"2\"", "canary.percent"),
            ("percent = 1.0", "canary.version"),
            ("version = \"a b\"\npercent = 1.0", "\"a b\""),
            ("version = \"2\"\npercent = 101.0", "from 0 to 100"),
            ("version = \"2\"\npercent = 1.0\nby = \"member\"", "\"caller\""),
            ("force = [\"tester\"]", "role:NAME"),
        ] {
            let error = toml::from_str::<RawCanary>(text).unwrap().check().unwrap_err();
            let reason = error.reason;
            assert!(reason.contains(named), "{reason}");
        }
    }
}
