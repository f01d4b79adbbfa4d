//! Ends members' sessions when a transmitter elsewhere says so.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::TimeDelta;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use sha2::{Digest, Sha256};
use tourin_chassis::clock::SharedClock;
use tourin_chassis::metrics::{CounterBy, Metrics};

use super::SignalStore;
use crate::app::StoreError;
use crate::app::sessions::Sessions;
use crate::domain::security_event::{EVENT_TOKEN_TYPE, EventClaims, SESSION_REVOKED, VERIFICATION};
use crate::domain::token::SessionId;

/// Longest token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;
const MAX_JTI_BYTES: usize = 255;
/// How old an event may be. A transmitter that retries makes no new token, so it is the time for which it
/// may be unable to reach this service.
const MAX_AGE: TimeDelta = TimeDelta::hours(24);
/// How far the transmitter's clock may be ahead.
const MAX_AHEAD: TimeDelta = TimeDelta::seconds(60);

/// Why an event is refused: an error code of RFC 8935, 2.4, and what was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub code: &'static str,
    /// For the transmitter's operators.
    pub description: &'static str,
}

/// The outcome of an event that is not refused.
#[derive(Debug)]
pub enum ReceiveError {
    /// The event is at fault.
    Refused(Refusal),
    /// It could not be judged, or did not take effect; the transmitter may repeat it.
    Unavailable(StoreError),
}

impl From<StoreError> for ReceiveError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error)
    }
}

fn refused(code: &'static str, description: &'static str) -> ReceiveError {
    ReceiveError::Refused(Refusal { code, description })
}

/// A transmitter's key.
#[derive(Clone)]
pub struct TransmitterKey {
    /// The key's own algorithm.
    pub algorithm: Algorithm,
    /// The key.
    pub key: DecodingKey,
}

/// The keys of the transmitter.
#[async_trait]
pub trait TransmitterKeys: Send + Sync {
    /// The key with this id. `None` if the transmitter has none.
    ///
    /// # Errors
    /// When the transmitter cannot be asked.
    async fn find(&self, kid: &str) -> anyhow::Result<Option<TransmitterKey>>;
}

/// Whose events are accepted.
#[derive(Clone, Debug)]
pub struct ReceivePolicy {
    /// The transmitter's `iss`.
    pub issuer: String,
    /// This service's name in `aud`.
    pub audience: String,
}

/// Accepts events.
pub struct Receiver {
    /// Whose.
    pub policy: ReceivePolicy,
    /// By what they are verified.
    pub keys: Arc<dyn TransmitterKeys>,
    /// The events that have taken effect.
    pub store: Arc<dyn SignalStore>,
    /// Ends sessions.
    pub sessions: Arc<Sessions>,
    /// What time it is.
    pub clock: SharedClock,
    /// Counts.
    pub outcomes: CounterBy,
}

impl Receiver {
    /// The counter of events.
    pub fn outcomes(metrics: &Metrics) -> CounterBy {
        let help = "Security events from the transmitter, by what became of them";
        metrics.counter_by("tourin_signals_received", help, "outcome")
    }

    /// Verifies an event and lets it take effect; returns the sessions that it ended. An event that has
    /// taken effect before, is about nobody here, or is of a type without a meaning here, is accepted and
    /// does nothing.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub async fn receive(&self, token: &str) -> Result<Vec<SessionId>, ReceiveError> {
        let result = self.try_receive(token).await;
        self.outcomes.increase(match &result {
            Ok(ended) if ended.is_empty() => "no_effect",
            Ok(_) => "ended_sessions",
            Err(ReceiveError::Refused(refusal)) => refusal.code,
            Err(ReceiveError::Unavailable(_)) => "unavailable",
        });
        result
    }

    async fn try_receive(&self, token: &str) -> Result<Vec<SessionId>, ReceiveError> {
        let claims = self.verify(token).await?;
        let digest = digest(&claims);
        if claims.events.contains_key(VERIFICATION) || self.store.is_received(&digest).await? {
            return Ok(Vec::new());
        }
        if !claims.events.contains_key(SESSION_REVOKED) {
            tracing::info!("a security event of another type was ignored");
            return Ok(Vec::new());
        }
        let issuers = [self.policy.issuer.as_str(), self.policy.audience.as_str()];
        let member = claims.member(&issuers).ok_or_else(|| {
            refused(
                "invalid_request",
                "the subject must be a member's id as opaque, or as iss_sub of this receiver or its transmitter",
            )
        })?;
        let ended = self.sessions.end_all(&member).await?;
        tracing::info!(ended = ended.len(), "sessions ended by a security event");
        // After the effect: if this fails, the event is repeated and does no harm.
        self.store.note_received(&digest, self.clock.now() + MAX_AGE + MAX_AHEAD).await?;
        Ok(ended)
    }

    async fn verify(&self, token: &str) -> Result<EventClaims, ReceiveError> {
        let unreadable = || refused("invalid_request", "it is not a Security Event Token");
        if token.len() > MAX_TOKEN_BYTES {
            return Err(refused("invalid_request", "the token is too long"));
        }
        let header = decode_header(token).map_err(|_| unreadable())?;
        let typ = header.typ.as_deref().unwrap_or_default();
        let typ = typ.strip_prefix("application/").unwrap_or(typ);
        if !typ.eq_ignore_ascii_case(EVENT_TOKEN_TYPE) || header.crit.is_some() {
            return Err(refused("invalid_request", "typ must be secevent+jwt, without crit"));
        }
        let unknown_key = || refused("invalid_key", "the key is not one of the transmitter's");
        let kid = header.kid.ok_or_else(unknown_key)?;
        let key = self.keys.find(&kid).await.map_err(StoreError::Unavailable)?;
        let key = key.filter(|key| key.algorithm == header.alg).ok_or_else(unknown_key)?;
        let mut validation = Validation::new(key.algorithm);
        // All claims are checked below: a SET has no `exp`, and its times are judged by this clock.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let claims = decode::<EventClaims>(token, &key.key, &validation);
        let claims = claims
            .map_err(|error| match error.kind() {
                jsonwebtoken::errors::ErrorKind::InvalidSignature => {
                    refused("authentication_failed", "the signature is not the transmitter's")
                }
                _ => unreadable(),
            })?
            .claims;
        self.check(&claims)?;
        Ok(claims)
    }

    fn check(&self, claims: &EventClaims) -> Result<(), ReceiveError> {
        if claims.iss != self.policy.issuer {
            return Err(refused("invalid_issuer", "iss is not the transmitter of this receiver"));
        }
        if !claims.aud.has(&self.policy.audience) {
            return Err(refused("invalid_audience", "aud does not name this receiver"));
        }
        if claims.jti.is_empty() || claims.jti.len() > MAX_JTI_BYTES {
            return Err(refused("invalid_request", "jti must have 1 to 255 bytes"));
        }
        let age = TimeDelta::try_seconds(self.clock.now().timestamp().saturating_sub(claims.iat));
        match age {
            Some(age) if age <= MAX_AGE && age >= -MAX_AHEAD => Ok(()),
            _ => Err(refused("invalid_request", "iat is too old, or in the future")),
        }
    }
}

/// Of the issuer and its id for the event.
fn digest(claims: &EventClaims) -> [u8; 32] {
    Sha256::new()
        .chain_update(&claims.iss)
        .chain_update([0])
        .chain_update(&claims.jti)
        .finalize()
        .into()
}
