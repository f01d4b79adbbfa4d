//! `[route.balance]` and `[service.NAME.balance]` of the route table.

use http::header::COOKIE;
use http::{HeaderMap, HeaderName};
use serde::Deserialize;
use toml::Spanned;
use tourin_chassis::identity::Subject;

use crate::policy_fields::FieldError;

/// How a route's requests are spread over the instances.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Policy {
    /// Round robin by weight.
    #[default]
    RoundRobin,
    /// Of two random instances the one with fewer requests in flight for its weight (Mitzenmacher, "The
    /// Power of Two Choices in Randomized Load Balancing", 2001).
    LeastRequests,
    /// The same instance for the same key, as long as it is up: a ring of hashes as nginx's and
    /// memcached's (ketama). Requests without the key are spread round robin.
    Hash(HashKey),
}

/// What is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// A request header.
    Header(HeaderName),
    /// A cookie.
    Cookie(String),
    /// The member's id.
    Member,
}

/// The table as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPolicy {
    policy: Spanned<String>,
    hash_by: Option<Spanned<String>>,
}

impl RawPolicy {
    /// Checks what is written.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self) -> Result<Policy, FieldError> {
        let invalid = |field: &str, value: &Spanned<String>, expected: &str| {
            FieldError::new(value.span().start, field, format!("{:?}", value.get_ref()), expected)
        };
        let policy = match (self.policy.get_ref().as_str(), &self.hash_by) {
            ("round-robin", None) => Policy::RoundRobin,
            ("least-requests", None) => Policy::LeastRequests,
            ("hash", Some(key)) => {
                Policy::Hash(HashKey::parse(key.get_ref()).ok_or_else(|| {
                    let expected = "expected \"member\", \"header:NAME\" or \"cookie:NAME\"";
                    invalid("balance.hash_by", key, expected)
                })?)
            }
            ("hash", None) => {
                let expected = "it needs hash_by = \"member\", \"header:NAME\" or \"cookie:NAME\"";
                return Err(invalid("balance.policy", &self.policy, expected));
            }
            ("round-robin" | "least-requests", Some(key)) => {
                let expected = "only with policy = \"hash\"";
                return Err(invalid("balance.hash_by", key, expected));
            }
            _ => {
                let expected = "expected \"round-robin\", \"least-requests\" or \"hash\"";
                return Err(invalid("balance.policy", &self.policy, expected));
            }
        };
        Ok(policy)
    }
}

impl HashKey {
    fn parse(text: &str) -> Option<Self> {
        if text == "member" {
            return Some(Self::Member);
        }
        match text.split_once(':')? {
            ("header", name) => name.parse().ok().map(Self::Header),
            // A cookie's name is a token, as a header's is (RFC 6265, 4.1.1).
            ("cookie", name) if name.parse::<HeaderName>().is_ok() => {
                Some(Self::Cookie(name.to_owned()))
            }
            _ => None,
        }
    }
}

impl Policy {
    /// What a request is hashed by; `None` if the policy does not hash, or the request has no such value.
    pub fn key<'a>(&self, headers: &'a HeaderMap, subject: &'a Subject) -> Option<&'a [u8]> {
        let Self::Hash(key) = self else { return None };
        match (key, subject) {
            (HashKey::Header(name), _) => Some(headers.get(name)?.as_bytes()),
            (HashKey::Cookie(name), _) => cookie(headers, name.as_bytes()),
            (HashKey::Member, Subject::Member { id, .. }) => Some(id.as_bytes()),
            (HashKey::Member, Subject::Visitor { .. }) => None,
        }
    }
}

fn cookie<'a>(headers: &'a HeaderMap, name: &[u8]) -> Option<&'a [u8]> {
    let lines = headers.get_all(COOKIE).into_iter();
    let mut pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.find_map(|pair| pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Policy, FieldError> {
        toml::from_str::<RawPolicy>(text).unwrap().check()
    }

    #[test]
    fn policies_are_read_and_faults_are_named() {
        assert_eq!(parse("policy = 'round-robin'").unwrap(), Policy::RoundRobin);
        assert_eq!(parse("policy = 'least-requests'").unwrap(), Policy::LeastRequests);
        let by = |key: &str| parse(&format!("policy = 'hash'\nhash_by = '{key}'"));
        assert_eq!(by("member").unwrap(), Policy::Hash(HashKey::Member));
        let header = HashKey::Header(HeaderName::from_static("x-tenant"));
        assert_eq!(by("header:X-Tenant").unwrap(), Policy::Hash(header));
        assert_eq!(by("cookie:sid").unwrap(), Policy::Hash(HashKey::Cookie("sid".to_owned())));
        for (text, field, value) in [
            ("policy = 'random'", "balance.policy", "random"),
            ("policy = 'hash'", "balance.policy", "hash"),
            ("policy = 'hash'\nhash_by = 'cookie:a b'", "balance.hash_by", "cookie:a b"),
            ("policy = 'hash'\nhash_by = 'address'", "balance.hash_by", "address"),
            ("policy = 'round-robin'\nhash_by = 'member'", "balance.hash_by", "member"),
        ] {
            let fault = parse(text).unwrap_err();
            assert!(fault.reason.starts_with(&format!("{field} = {value:?}: ")), "{fault:?}");
        }
        assert!(toml::from_str::<RawPolicy>("policy = 'hash'\nhashed_by = 'member'").is_err());
    }

    #[test]
    fn keys_are_taken_from_the_request() {
        let visitor = Subject::Visitor { pseudonym: "p".to_owned() };
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "asid=1; sid=two".parse().unwrap());
        headers.insert("x-tenant", "t".parse().unwrap());
        let key = |key, subject| Policy::Hash(key).key(&headers, subject).map(<[u8]>::to_vec);
        let cookie = HashKey::Cookie("sid".to_owned());
        assert_eq!(key(cookie, &visitor), Some(b"two".to_vec()));
        assert_eq!(key(HashKey::Cookie("si".to_owned()), &visitor), None);
        let header = HashKey::Header(HeaderName::from_static("x-tenant"));
        assert_eq!(key(header, &visitor), Some(b"t".to_vec()));
        assert_eq!(key(HashKey::Member, &visitor), None);
        let session = "s".to_owned();
        let member = Subject::Member { id: "m".to_owned(), session, roles: Vec::new() };
        assert_eq!(key(HashKey::Member, &member), Some(b"m".to_vec()));
        assert_eq!(Policy::RoundRobin.key(&headers, &member), None);
    }
}
