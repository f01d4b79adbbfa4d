//! The signed, short-lived identity of a request's caller.
//!
//! The gateway removes any identity that a client sends and adds its own, valid for one service only. It
//! signs with the key of its certificate, so a service verifies with the key of the connection's peer and
//! holds no secret. An identity is a JWT (EdDSA):
//!
//! | claim | value |
//! |---|---|
//! | `typ` (header) | `identity+jwt` |
//! | `iss` | the gateway's SPIFFE ID |
//! | `aud` | the service |
//! | `jti` | a random id |
//! | `exp` | [`IDENTITY_TTL_S`] after its making |
//! | `kind` and what belongs to it | the [`Subject`] |
//!
//! Both ends remember: the gateway an identity for half of its life, the service its verification.

use std::collections::HashSet;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use ed25519_dalek::{Signer as _, SigningKey};
use equivalent::Equivalent;
use http::{HeaderName, HeaderValue};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::peer::Peer;

/// Carries the signed identity from the gateway to a service.
pub const IDENTITY_HEADER: HeaderName = HeaderName::from_static("x-tourin-identity");
/// Carries the request's id. The gateway sets it.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// In core's responses: the sessions that it ended, as `ID;until=SECONDS` separated by commas. Until
/// that time, in seconds since the epoch, access tokens of the session may be valid. The gateway
/// revokes the sessions at once and removes the header.
pub const SESSION_ENDED_HEADER: HeaderName = HeaderName::from_static("x-tourin-session-ended");

/// How long an identity is valid, in seconds. A captured one is of use on a connection with the gateway's
/// certificate alone.
pub const IDENTITY_TTL_S: u32 = 120;
/// How long the gateway gives the same identity.
const HALF_LIFE: Duration = Duration::from_secs((IDENTITY_TTL_S / 2) as u64);
/// How far the clocks of the mesh's machines may differ, in seconds.
const CLOCK_LEEWAY_S: u32 = 5;
/// Identities that are remembered, at each end. One takes about 1 KiB.
const MAX_REMEMBERED: u64 = 20_000;
const TYPE: &str = "identity+jwt";

/// On whose behalf a request is made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Subject {
    /// A member with a live session.
    Member {
        /// The member's id.
        id: String,
        /// The session's id.
        session: String,
        /// The member's roles.
        roles: Vec<String>,
    },
    /// An anonymous visitor.
    Visitor {
        /// A salted pseudonym, neither an address nor a member's id.
        pseudonym: String,
    },
}

/// A subject with the identities that were signed for it: for who keeps subjects for a while, such as
/// those of verified tokens.
#[derive(Debug)]
pub struct KnownSubject {
    subject: Subject,
    /// One for each service that was called.
    signed: Mutex<Vec<SignedIdentity>>,
}

#[derive(Debug)]
struct SignedIdentity {
    audience: String,
    value: HeaderValue,
    renew_at: Instant,
}

impl PartialEq for KnownSubject {
    fn eq(&self, other: &Self) -> bool {
        self.subject == other.subject
    }
}

impl Eq for KnownSubject {}

impl From<Subject> for KnownSubject {
    fn from(subject: Subject) -> Self {
        Self { subject, signed: Mutex::default() }
    }
}

impl Deref for KnownSubject {
    type Target = Subject;

    fn deref(&self) -> &Subject {
        &self.subject
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    jti: Uuid,
    exp: i64,
    #[serde(flatten)]
    subject: Subject,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    subject: Subject,
    audience: String,
}

/// A [`Key`] by reference. Its fields have the same order, and so it has the same hash.
#[derive(Hash)]
struct KeyRef<'a> {
    subject: &'a Subject,
    audience: &'a str,
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.subject == key.subject && self.audience == key.audience
    }
}

/// Signs identities.
#[derive(Clone)]
pub struct IdentitySigner {
    key: SigningKey,
    /// The encoded header, the same for all.
    header: String,
    issuer: String,
    signed: Cache<Key, HeaderValue>,
}

impl std::fmt::Debug for IdentitySigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdentitySigner")
    }
}

impl IdentitySigner {
    /// A signer with the Ed25519 key (PKCS #8, DER) of the workload whose SPIFFE ID is `issuer`.
    pub fn new(key: &[u8], issuer: &str) -> Self {
        let key = SigningKey::from_pkcs8_der(key)
            .expect("the key was checked when its certificate was made");
        let header = Header { typ: Some(TYPE.to_owned()), ..Header::new(Algorithm::EdDSA) };
        let signed = Cache::builder().max_capacity(MAX_REMEMBERED).time_to_live(HALF_LIFE).build();
        Self { key, header: encoded(&header), issuer: issuer.to_owned(), signed }
    }

    /// The header's value for a request to the service named `audience`.
    pub fn sign(&self, subject: &Subject, audience: &str) -> HeaderValue {
        if let Some(signed) = self.signed.get(&KeyRef { subject, audience }) {
            return signed;
        }
        let value = self.sign_anew(subject, audience);
        let key = Key { subject: subject.clone(), audience: audience.to_owned() };
        self.signed.insert(key, value.clone());
        value
    }

    /// The same for a known subject, which keeps it.
    pub fn sign_known(&self, known: &KnownSubject, audience: &str) -> HeaderValue {
        let mut signed = known.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let found = signed.iter_mut().find(|identity| identity.audience == audience);
        match found {
            Some(identity) if now < identity.renew_at => identity.value.clone(),
            old => {
                let value = self.sign_anew(&known.subject, audience);
                let renew_at = now + HALF_LIFE;
                let audience = audience.to_owned();
                let new = SignedIdentity { audience, value: value.clone(), renew_at };
                match old {
                    Some(old) => *old = new,
                    None => signed.push(new),
                }
                value
            }
        }
    }

    fn sign_anew(&self, subject: &Subject, audience: &str) -> HeaderValue {
        let expires = chrono::Utc::now().timestamp() + i64::from(IDENTITY_TTL_S);
        self.sign_until(subject, audience, expires)
    }

    fn sign_until(&self, subject: &Subject, audience: &str, exp: i64) -> HeaderValue {
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: audience.to_owned(),
            jti: Uuid::new_v4(),
            exp,
            subject: subject.clone(),
        };
        // Not by `jsonwebtoken::encode`, which reads the key anew each time. That costs more than to sign.
        let mut token = format!("{}.{}", self.header, encoded(&claims));
        let signature = self.key.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.to_bytes(), &mut token);
        let mut value =
            HeaderValue::from_str(&token).expect("a JWT is made of header-safe characters");
        value.set_sensitive(true);
        value
    }
}

/// A part of a JWT.
fn encoded(part: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).expect("it is made of texts and numbers"))
}

/// An identity that has been verified.
#[derive(Clone)]
struct Verified {
    subject: Subject,
    issuer_key: [u8; 32],
    expires: i64,
}

/// Verifies identities for one service.
#[derive(Clone)]
pub struct IdentityVerifier {
    validation: Arc<Validation>,
    /// By token.
    verified: Cache<HeaderValue, Verified>,
}

impl std::fmt::Debug for IdentityVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdentityVerifier")
    }
}

impl IdentityVerifier {
    /// A verifier for `service`. It refuses identities for other services.
    pub fn new(service: &'static str) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[service]);
        validation.required_spec_claims =
            HashSet::from(["exp", "aud", "iss"].map(ToOwned::to_owned));
        validation.leeway = u64::from(CLOCK_LEEWAY_S);
        let life = Duration::from_secs(u64::from(IDENTITY_TTL_S + CLOCK_LEEWAY_S));
        let verified = Cache::builder().max_capacity(MAX_REMEMBERED).time_to_live(life).build();
        Self { validation: Arc::new(validation), verified }
    }

    /// The subject in the header's value, or `None` when it is not `peer` who signed it, or its audience
    /// or time is invalid.
    pub fn verify(&self, value: &HeaderValue, peer: &Peer) -> Option<Subject> {
        self.verify_at(chrono::Utc::now().timestamp(), value, peer)
    }

    fn verify_at(&self, now: i64, value: &HeaderValue, peer: &Peer) -> Option<Subject> {
        if let Some(known) = self.verified.get(value) {
            let valid = now <= known.expires + i64::from(CLOCK_LEEWAY_S)
                && known.issuer_key == peer.public_key;
            return valid.then_some(known.subject);
        }
        let token = value.to_str().ok()?;
        let key = DecodingKey::from_ed_der(&peer.public_key);
        let token = decode::<Claims>(token, &key, &self.validation).ok()?;
        if token.header.typ.as_deref() != Some(TYPE) || token.claims.iss != peer.id {
            return None;
        }
        let Claims { subject, exp: expires, .. } = token.claims;
        let verified = Verified { subject: subject.clone(), issuer_key: peer.public_key, expires };
        self.verified.insert(value.clone(), verified);
        Some(subject)
    }
}

/// For tests of services: workloads with a key and no certificate.
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing {
    use std::sync::LazyLock;
    use std::time::SystemTime;

    use super::*;
    use crate::peer::{GATEWAY, spiffe_id};

    /// An Ed25519 key of the test vectors of RFC 8032 (7.1), in PKCS #8 (RFC 8410).
    const KEY: &str = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g";
    const PUBLIC_KEY: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

    fn decoded(text: &str) -> Vec<u8> {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(text).expect("it is base64")
    }

    /// The peer of a connection from `service`, whose key is that of [`gateway_signer`].
    pub fn peer(service: &str) -> Arc<Peer> {
        Arc::new(Peer {
            id: spiffe_id("tourin", service, "test"),
            mesh: "tourin".to_owned(),
            service: service.to_owned(),
            instance: "test".to_owned(),
            public_key: decoded(PUBLIC_KEY).try_into().expect("it has 32 bytes"),
            expires: SystemTime::now() + Duration::from_secs(3_600),
        })
    }

    /// Signs as the gateway that is `peer("gateway")`.
    pub fn gateway_signer() -> &'static IdentitySigner {
        static SIGNER: LazyLock<IdentitySigner> =
            LazyLock::new(|| IdentitySigner::new(&decoded(KEY), &peer(GATEWAY).id));
        &SIGNER
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{gateway_signer, peer};
    use super::*;

    fn visitor() -> Subject {
        Subject::Visitor { pseudonym: "anon:abc".to_owned() }
    }

    #[test]
    fn an_identity_holds_for_its_audience_and_its_issuer_only() {
        let value = gateway_signer().sign(&visitor(), "core");
        let gateway = peer("gateway");
        for _first_and_remembered in 0..2 {
            let verifier = IdentityVerifier::new("core");
            assert_eq!(verifier.verify(&value, &gateway), Some(visitor()));
            let other_key = Peer { public_key: [7; 32], ..(*gateway).clone() };
            assert_eq!(verifier.verify(&value, &other_key), None);
        }
        let core = IdentityVerifier::new("core");
        assert_eq!(core.verify(&value, &peer("recommendation")), None, "another name");
        assert_eq!(IdentityVerifier::new("recommendation").verify(&value, &gateway), None);
    }

    #[test]
    fn an_identity_is_made_once_for_a_session_and_service() {
        let signer = gateway_signer();
        let (first, again) = (signer.sign(&visitor(), "core"), signer.sign(&visitor(), "core"));
        assert_eq!(first, again);
        assert_ne!(first, signer.sign(&visitor(), "recommendation"));
        let member = |session: &str| Subject::Member {
            id: "member01".into(),
            session: session.into(),
            roles: vec![],
        };
        assert_ne!(signer.sign(&member("a"), "core"), signer.sign(&member("b"), "core"));

        let known = KnownSubject::from(member("c"));
        let first = signer.sign_known(&known, "core");
        assert_ne!(first, signer.sign_known(&known, "recommendation"));
        assert_eq!(first, signer.sign_known(&known, "core"));
        let gateway = peer("gateway");
        assert_eq!(IdentityVerifier::new("core").verify(&first, &gateway), Some(member("c")));
        // At half of its life there is another one.
        known.signed.lock().unwrap()[0].renew_at = Instant::now();
        assert_ne!(first, signer.sign_known(&known, "core"));
        assert_eq!(known.signed.lock().unwrap().len(), 2);
    }

    #[test]
    fn an_old_or_altered_identity_is_refused() {
        let (verifier, signer, gateway) =
            (IdentityVerifier::new("core"), gateway_signer(), peer("gateway"));
        let now = chrono::Utc::now().timestamp();
        let old = signer.sign_until(&visitor(), "core", now - i64::from(CLOCK_LEEWAY_S) - 2);
        assert_eq!(verifier.verify(&old, &gateway), None);

        let good = signer.sign(&visitor(), "core");
        let altered = format!("{}x", good.to_str().unwrap());
        assert_eq!(verifier.verify(&HeaderValue::from_str(&altered).unwrap(), &gateway), None);
        assert_eq!(verifier.verify(&HeaderValue::from_static("rubbish"), &gateway), None);
    }

    #[test]
    fn a_remembered_identity_expires() {
        let (verifier, gateway) = (IdentityVerifier::new("core"), peer("gateway"));
        let now = chrono::Utc::now().timestamp();
        let value = gateway_signer().sign_until(&visitor(), "core", now + 5);
        assert_eq!(verifier.verify(&value, &gateway), Some(visitor()));
        let end = now + 5 + i64::from(CLOCK_LEEWAY_S);
        assert_eq!(verifier.verify_at(end, &value, &gateway), Some(visitor()));
        assert_eq!(verifier.verify_at(end + 1, &value, &gateway), None);
    }
}
