//! The signed, short-lived identity of a request.
//!
//! The gateway removes any identity that a client sends and adds its own, valid for one service
//! only. A service that calls `/internal` routes of another signs its own identity in the same way.
//! The key is derived from the secret that the mesh shares.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// Carries the signed identity from the gateway to a service.
pub const IDENTITY_HEADER: HeaderName = HeaderName::from_static("x-tourin-identity");
/// Carries the request's id. The gateway sets it.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// In core's responses: the sessions that it ended, as `ID;until=SECONDS` separated by commas. Until
/// that time, in seconds since the epoch, access tokens of the session may be valid. The gateway
/// revokes the sessions at once and removes the header.
pub const SESSION_ENDED_HEADER: HeaderName = HeaderName::from_static("x-tourin-session-ended");

/// How long a signed identity is valid, in seconds: longer than any hop inside the mesh, and short
/// enough to make a captured one useless soon.
pub const IDENTITY_TTL_S: i64 = 30;
/// How far the clocks of the mesh's machines may differ, in seconds.
const CLOCK_LEEWAY_S: u64 = 5;
const PURPOSE: &str = "tourin/identity/v1";

/// On whose behalf a request is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// A service of the mesh.
    Service {
        /// The service's name.
        name: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    exp: i64,
    #[serde(flatten)]
    subject: Subject,
}

/// Signs identities.
#[derive(Clone)]
pub struct IdentitySigner {
    key: EncodingKey,
}

impl std::fmt::Debug for IdentitySigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdentitySigner")
    }
}

impl IdentitySigner {
    /// A signer with the key derived from the mesh's secret.
    pub fn new(secret: &Secret) -> Self {
        Self { key: EncodingKey::from_secret(&secret.derive_key(PURPOSE)) }
    }

    /// The header's value for a request to the service named `audience`.
    pub fn sign(&self, subject: &Subject, audience: &str) -> HeaderValue {
        let claims = Claims {
            aud: audience.to_owned(),
            exp: chrono::Utc::now().timestamp() + IDENTITY_TTL_S,
            subject: subject.clone(),
        };
        let token = encode(&Header::new(Algorithm::HS256), &claims, &self.key)
            .expect("HMAC over serialisable claims cannot fail");
        HeaderValue::from_str(&token).expect("a JWT is made of header-safe characters")
    }
}

/// Verifies identities for one service.
#[derive(Clone)]
pub struct IdentityVerifier {
    inner: Arc<(DecodingKey, Validation)>,
}

impl std::fmt::Debug for IdentityVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdentityVerifier")
    }
}

impl IdentityVerifier {
    /// A verifier for `service` with the key derived from the mesh's secret. It refuses identities
    /// for other services.
    pub fn new(secret: &Secret, service: &'static str) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[service]);
        validation.set_required_spec_claims(&["exp", "aud"]);
        validation.leeway = CLOCK_LEEWAY_S;
        let key = DecodingKey::from_secret(&secret.derive_key(PURPOSE));
        Self { inner: Arc::new((key, validation)) }
    }

    /// The subject in the header's value, or `None` when its signature, audience or time is
    /// invalid.
    pub fn verify(&self, value: &HeaderValue) -> Option<Subject> {
        let (key, validation) = &*self.inner;
        let token = value.to_str().ok()?;
        decode::<Claims>(token, key, validation).ok().map(|token| token.claims.subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visitor() -> Subject {
        Subject::Visitor { pseudonym: "anon:abc".to_owned() }
    }

    #[test]
    fn an_identity_holds_for_its_audience_and_secret_only() {
        let secret = Secret::random();
        let value = IdentitySigner::new(&secret).sign(&visitor(), "core");
        assert_eq!(IdentityVerifier::new(&secret, "core").verify(&value), Some(visitor()));
        assert_eq!(IdentityVerifier::new(&secret, "recommendation").verify(&value), None);
        assert_eq!(IdentityVerifier::new(&Secret::random(), "core").verify(&value), None);
    }

    #[test]
    fn an_old_or_altered_identity_is_refused() {
        let secret = Secret::random();
        let verifier = IdentityVerifier::new(&secret, "core");
        let signer = IdentitySigner::new(&secret);
        let past = chrono::Utc::now().timestamp() - i64::try_from(CLOCK_LEEWAY_S).unwrap() - 1;
        let claims = Claims { aud: "core".into(), exp: past, subject: visitor() };
        let old = encode(&Header::new(Algorithm::HS256), &claims, &signer.key).unwrap();
        assert_eq!(verifier.verify(&HeaderValue::from_str(&old).unwrap()), None);

        let good = signer.sign(&visitor(), "core");
        let altered = format!("{}x", good.to_str().unwrap());
        assert_eq!(verifier.verify(&HeaderValue::from_str(&altered).unwrap()), None);
        assert_eq!(verifier.verify(&HeaderValue::from_static("rubbish")), None);
    }
}
