//! The tokens that a client gets.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::signing::SigningKeys;
use crate::domain::account::MemberId;
use crate::domain::token::{AUDIENCE, Claims, ISSUER, RefreshToken, SessionId};

/// An access token, a signed JWT. Its text is not in debug output.
#[derive(Clone)]
pub struct AccessToken {
    /// The token.
    pub token: String,
    /// When it was issued.
    pub issued_at: DateTime<Utc>,
    /// When it expires.
    pub expires_at: DateTime<Utc>,
}

impl AccessToken {
    /// Signs a token of a session.
    ///
    /// # Errors
    /// When signing fails, which does not happen with a key that was accepted at the start.
    pub(super) fn sign(
        keys: &SigningKeys,
        member: &MemberId,
        session: SessionId,
        issued_at: DateTime<Utc>,
        expires_at: DateTime<Utc>,
    ) -> anyhow::Result<Self> {
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: member.to_string(),
            sid: session.to_string(),
            iat: issued_at.timestamp(),
            nbf: issued_at.timestamp(),
            exp: expires_at.timestamp(),
            jti: Uuid::new_v4().to_string(),
            roles: vec!["member".to_owned()],
        };
        Ok(Self { token: keys.sign(&claims)?, issued_at, expires_at })
    }
}

impl std::fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessToken(..)")
    }
}

/// An access token and the refresh token that goes with it.
#[derive(Clone, Debug)]
pub struct TokenPair {
    /// The access token.
    pub access: AccessToken,
    /// The refresh token, issued with it.
    pub refresh_token: RefreshToken,
    /// When it expires if it is not used.
    pub refresh_expires_at: DateTime<Utc>,
}
