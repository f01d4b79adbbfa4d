//! Verification of access tokens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use moka::Expiry;
use moka::sync::Cache;
use serde::Deserialize;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::identity::{KnownSubject, Subject};

use super::keys::{KeyStore, Lookup};

/// Longest token (bytes). Core's have a few hundred.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// The member of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The member's id.
    pub id: String,
    /// The session that the token belongs to.
    pub session: String,
    /// The member's roles.
    pub roles: Vec<String>,
    /// When the token is due for renewal, if it came in a cookie: after half its life.
    pub renew_from: DateTime<Utc>,
    /// When the token expires.
    pub expires_at: DateTime<Utc>,
    /// The member as services get it.
    pub subject: Arc<KnownSubject>,
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenError {
    /// Invalid.
    Invalid,
    /// Valid until it expired.
    Expired(Arc<Member>),
    /// The keys cannot be fetched.
    KeysUnavailable,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    sid: String,
    iat: Option<i64>,
    exp: i64,
    nbf: Option<i64>,
    #[serde(default)]
    roles: Vec<String>,
}

/// Rules for tokens.
#[derive(Debug, Clone)]
pub struct TokenRules {
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
    /// Allowed difference of clocks.
    pub leeway: Duration,
    /// Verified tokens that are cached.
    pub cache_entries: u64,
}

struct UntilExpiry {
    clock: SharedClock,
}

impl Expiry<Box<str>, CachedToken> for UntilExpiry {
    fn expire_after_create(
        &self,
        _: &Box<str>,
        value: &CachedToken,
        _: Instant,
    ) -> Option<Duration> {
        let left = value.member.expires_at - self.clock.now();
        Some(left.to_std().unwrap_or(Duration::ZERO))
    }
}

#[derive(Clone)]
struct CachedToken {
    member: Arc<Member>,
    withdrawals: u64,
}

/// Verifies tokens. Valid ones are cached until they expire, so a signature is checked once per token.
pub struct TokenVerifier {
    keys: Arc<KeyStore>,
    /// By the whole token, which is compared: a digest that is safe to compare in its place costs each request
    /// more than all the rest of the look-up. The hash is keyed at random in each process.
    cache: Cache<Box<str>, CachedToken, RandomState>,
    eddsa: Validation,
    es256: Validation,
    leeway: TimeDelta,
    clock: SharedClock,
}

impl TokenVerifier {
    /// A verifier by these rules.
    pub fn new(keys: Arc<KeyStore>, rules: &TokenRules, clock: SharedClock) -> Self {
        let validation = |algorithm| {
            let mut validation = Validation::new(algorithm);
            validation.set_issuer(&[&rules.issuer]);
            validation.set_audience(&[&rules.audience]);
            validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
            // Times are checked below, by the clock that is passed in.
            validation.validate_exp = false;
            validation
        };
        Self {
            keys,
            cache: Cache::builder()
                .max_capacity(rules.cache_entries)
                .expire_after(UntilExpiry { clock: Arc::clone(&clock) })
                .build_with_hasher(RandomState::default()),
            eddsa: validation(Algorithm::EdDSA),
            es256: validation(Algorithm::ES256),
            leeway: TimeDelta::from_std(rules.leeway).unwrap_or_default(),
            clock,
        }
    }

    /// The member of a token.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn verify(&self, token: &str) -> Result<Arc<Member>, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid);
        }
        let withdrawals = self.keys.withdrawals();
        if let Some(known) = self.cache.get(token)
            && known.withdrawals == withdrawals
        {
            return self.in_time(known.member);
        }
        let member = self.in_time(Arc::new(self.check(token).await?))?;
        self.cache.insert(token.into(), CachedToken { member: Arc::clone(&member), withdrawals });
        Ok(member)
    }

    async fn check(&self, token: &str) -> Result<Member, TokenError> {
        // Unknown algorithms, such as "none", do not parse.
        let header = decode_header(token).map_err(|_| TokenError::Invalid)?;
        let validation = match header.alg {
            Algorithm::EdDSA => &self.eddsa,
            Algorithm::ES256 => &self.es256,
            _ => return Err(TokenError::Invalid),
        };
        // No critical extension is supported (RFC 7515, 4.1.11).
        if header.crit.is_some() {
            return Err(TokenError::Invalid);
        }
        if !header.typ.as_deref().is_some_and(is_access_token) {
            return Err(TokenError::Invalid);
        }
        let kid = header.kid.ok_or(TokenError::Invalid)?;
        let key = match self.keys.lookup(&kid).await {
            Lookup::Found(key) => key,
            Lookup::Unknown => return Err(TokenError::Invalid),
            Lookup::Unavailable => return Err(TokenError::KeysUnavailable),
        };
        // The key has one algorithm; a token with another one is forged.
        if key.algorithm != header.alg {
            return Err(TokenError::Invalid);
        }
        let claims = decode::<Claims>(token, &key.decoding, validation)
            .map_err(|_| TokenError::Invalid)?
            .claims;
        let expires_at = DateTime::from_timestamp(claims.exp, 0).ok_or(TokenError::Invalid)?;
        if let Some(not_before) = claims.nbf {
            let from = DateTime::from_timestamp(not_before, 0).ok_or(TokenError::Invalid)?;
            if self.clock.now() + self.leeway < from {
                return Err(TokenError::Invalid);
            }
        }
        if claims.sub.is_empty() || claims.sid.is_empty() {
            return Err(TokenError::Invalid);
        }
        let issued_at = claims.iat.and_then(|iat| DateTime::from_timestamp(iat, 0));
        let life = issued_at.map_or(TimeDelta::zero(), |issued_at| expires_at - issued_at);
        let (id, session, roles) = (claims.sub, claims.sid, claims.roles);
        let subject =
            Subject::Member { id: id.clone(), session: session.clone(), roles: roles.clone() };
        let subject = Arc::new(subject.into());
        Ok(Member { id, session, roles, renew_from: expires_at - life / 2, expires_at, subject })
    }

    fn in_time(&self, member: Arc<Member>) -> Result<Arc<Member>, TokenError> {
        if self.clock.now() - self.leeway < member.expires_at {
            Ok(member)
        } else {
            Err(TokenError::Expired(member))
        }
    }
}

/// Whether a `typ` is that of access tokens (RFC 9068, 4). Media types have no case, and `application/`
/// may be left out (RFC 7515, 4.1.9).
fn is_access_token(typ: &str) -> bool {
    ["at+jwt", "application/at+jwt"].iter().any(|name| typ.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests;
