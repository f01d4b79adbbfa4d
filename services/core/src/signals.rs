//! Shared signals over HTTP: pushes events to the receiver (RFC 8935), and fetches the transmitter's keys.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::{Client, Url};
use serde::Deserialize;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::http_client;
use tourin_chassis::metrics::Metrics;
use tourin_chassis::shutdown::Tasks;

use crate::app::revocations::Revocations;
use crate::app::sessions::Sessions;
use crate::app::signals::receive::{Receiver, TransmitterKey, TransmitterKeys};
use crate::app::signals::transmit::{Delivery, SignalSender, TransmitMetrics, Transmitter};
use crate::app::signing::SigningKeys;
use crate::config::signals::SignalSettings;
use crate::domain::security_event::EVENT_MEDIA_TYPE;
use crate::store::Store;

/// Time for an attempt.
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 16 << 10;
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_JWKS_BYTES: usize = 256 << 10;
const MAX_KEYS: usize = 64;
/// Keys are fetched again after this time, by which withdrawn ones are dropped.
const KEYS_LIFE: Duration = Duration::from_secs(3_600);
/// An unknown key has them fetched again, not more often than this.
const COOL_DOWN: Duration = Duration::from_secs(5);

/// Starts the transmitter, if a receiver is set.
///
/// # Errors
/// As [`transmitter`].
pub(crate) fn start(
    tasks: &Tasks,
    settings: &SignalSettings,
    store: &Store,
    ended: (&Arc<Revocations>, &Arc<SigningKeys>),
    (clock, metrics): (&SharedClock, &Metrics),
) -> anyhow::Result<()> {
    if let Some(transmitter) = transmitter(settings, store, ended, Arc::clone(clock), metrics)? {
        tasks.spawn("signals", transmitter.run(tasks.shutdown().clone()));
    }
    Ok(())
}

/// The transmitter by the settings; `None` if no receiver is set.
///
/// # Errors
/// When a setting contradicts another, or the file of the receiver's token cannot be read.
pub(crate) fn transmitter(
    settings: &SignalSettings,
    store: &Store,
    (revocations, keys): (&Arc<Revocations>, &Arc<SigningKeys>),
    clock: SharedClock,
    metrics: &Metrics,
) -> anyhow::Result<Option<Transmitter>> {
    let Some((url, policy)) = settings.transmit()? else { return Ok(None) };
    let authorization = settings.receiver_authorization()?;
    let sender = PushReceiver { client: http_client::client(PUSH_TIMEOUT)?, url, authorization };
    Ok(Some(Transmitter {
        store: store.signals(),
        revocations: Arc::clone(revocations),
        sender: Arc::new(sender),
        keys: Arc::clone(keys),
        policy,
        clock,
        metrics: TransmitMetrics::register(metrics),
    }))
}

/// The receiver by the settings; `None` if no transmitter is set.
///
/// # Errors
/// When a setting contradicts another.
pub(crate) fn receiver(
    settings: &SignalSettings,
    store: &Store,
    sessions: Arc<Sessions>,
    clock: SharedClock,
    metrics: &Metrics,
) -> anyhow::Result<Option<Arc<Receiver>>> {
    let Some((jwks_url, policy)) = settings.receive()? else { return Ok(None) };
    let keys = FetchedKeys::new(http_client::client(FETCH_TIMEOUT)?, jwks_url);
    Ok(Some(Arc::new(Receiver {
        policy,
        keys: Arc::new(keys),
        store: store.signals(),
        sessions,
        clock,
        outcomes: Receiver::outcomes(metrics),
    })))
}

/// Pushes to a receiver's endpoint.
struct PushReceiver {
    client: Client,
    url: Url,
    authorization: Option<HeaderValue>,
}

#[async_trait]
impl SignalSender for PushReceiver {
    async fn send(&self, token: String) -> Delivery {
        let mut request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, EVENT_MEDIA_TYPE)
            .header(ACCEPT, "application/json")
            .body(token);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        match http_client::send(request, MAX_ANSWER_BYTES).await {
            Ok(answer) if answer.status().is_success() => Delivery::Accepted,
            Ok(answer) => {
                let code = error_code(answer.body());
                let reason = format!("{} {code}", answer.status().as_u16());
                // Only what is malformed never becomes right. The other codes are about keys and names,
                // which an operator of either side may be setting up.
                if answer.status() == StatusCode::BAD_REQUEST && code == "invalid_request" {
                    Delivery::Refused(reason)
                } else {
                    Delivery::Failed(reason)
                }
            }
            Err(error) => Delivery::Failed(error.to_string()),
        }
    }
}

/// The error code in a response (RFC 8935, 2.3), which is safe to log; empty if there is none.
fn error_code(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        err: String,
    }
    let code = serde_json::from_slice::<Body>(body).map(|body| body.err).unwrap_or_default();
    code.chars().filter(|c| c.is_ascii_lowercase() || *c == '_').take(40).collect()
}

type Keys = HashMap<String, TransmitterKey>;

/// The keys at a URL.
struct FetchedKeys {
    client: Client,
    url: Url,
    known: RwLock<Arc<Keys>>,
    /// When the last fetch began or, when it is over, ended. Held during a fetch, for which all wait together.
    fetched: tokio::sync::Mutex<Option<Instant>>,
}

impl FetchedKeys {
    fn new(client: Client, url: Url) -> Self {
        Self { client, url, known: RwLock::default(), fetched: tokio::sync::Mutex::default() }
    }

    fn known(&self) -> Arc<Keys> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn fetch(&self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<serde_json::Value>,
        }
        let answer = http_client::send(self.client.get(self.url.clone()), MAX_JWKS_BYTES).await?;
        let document: Document = http_client::json_of(&answer)?;
        let keys: Keys = document
            .keys
            .into_iter()
            .take(MAX_KEYS)
            .filter_map(|jwk| serde_json::from_value::<Jwk>(jwk).ok())
            .filter_map(|jwk| usable(&jwk))
            .collect();
        anyhow::ensure!(!keys.is_empty(), "no usable key among them");
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }
}

#[async_trait]
impl TransmitterKeys for FetchedKeys {
    async fn find(&self, kid: &str) -> anyhow::Result<Option<TransmitterKey>> {
        let mut fetched = self.fetched.lock().await;
        let known = self.known().get(kid).cloned();
        let age = fetched.map(|at| at.elapsed());
        let life = if known.is_some() { KEYS_LIFE } else { COOL_DOWN };
        if age.is_some_and(|age| age < life) {
            anyhow::ensure!(
                !self.known().is_empty(),
                "the transmitter's keys could not be fetched"
            );
            return Ok(known);
        }
        *fetched = Some(Instant::now());
        let outcome = self.fetch().await;
        // A fetch may time out after as long as the cool-down. From its end on, or each that waits here would begin
        // another one, and events with a known key wait behind them.
        *fetched = Some(Instant::now());
        match outcome {
            Ok(()) => Ok(self.known().get(kid).cloned()),
            // Keys outlast an outage of their server.
            Err(error) if known.is_some() => {
                tracing::warn!(error = format!("{error:#}"), "the transmitter's keys are old");
                Ok(known)
            }
            Err(error) => Err(error).context("the transmitter's keys cannot be fetched"),
        }
    }
}

/// A key for signatures. Its kind decides the algorithm, not a token.
fn usable(jwk: &Jwk) -> Option<(String, TransmitterKey)> {
    let kid = jwk.common.key_id.clone()?;
    let (algorithm, bytes) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, Some(32))
        }
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, Some(65))
        }
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, None),
        _ => return None,
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    // jsonwebtoken panics on an Ed25519 key that is too short.
    let is_whole = bytes
        .is_none_or(|expected| key.try_get_as_bytes().is_ok_and(|bytes| bytes.len() == expected));
    is_whole.then_some((kid, TransmitterKey { algorithm, key }))
}
