//! The keys that tokens are verified with: core's public ones, by `kid`.
//!
//! They are fetched from any instance of core at start, every few minutes, and at once when a token
//! has an unknown `kid`, so that a new key works immediately. There is one fetcher with a cool-down,
//! and all requests wait for the same fetch, so made-up kids cost at most one fetch per cool-down. A
//! `kid` counts as unknown only after a fetch that began after the request. The number of waiting
//! requests is bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::mesh_client::{CORE, MeshClient};

const JWKS_PATH: &str = "/.well-known/jwks.json";
/// Maximum number of keys; an issuer usually has two or three.
const MAX_KEYS: usize = 64;
const COOL_DOWN: Duration = Duration::from_millis(1_000);
/// Pause between regular fetches, by which withdrawn keys are dropped.
const REFRESH_EVERY: Duration = Duration::from_secs(300);
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Longest wait of a request for a fetch: the cool-down, the fetch, and a margin.
const LOOKUP_WAIT: Duration = Duration::from_millis(3_000);
const MAX_WAITING: usize = 256;
const FETCH_TIMEOUT: Duration = Duration::from_millis(1_500);
const MAX_JWKS_BYTES: usize = 256 << 10;

/// A public key and its algorithm.
#[derive(Debug)]
pub struct Key {
    /// The key's own, never a token's.
    pub algorithm: Algorithm,
    /// The key.
    pub decoding: DecodingKey,
}

/// The result of a look-up.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// A key.
    Found(Arc<Key>),
    /// Core has no such key.
    Unknown,
    /// Core could not be asked.
    Unavailable,
}

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// When the last fetch that has ended began ...
    began: Option<Instant>,
    /// ... and when it ended.
    ended: Option<Instant>,
    succeeded: bool,
    loaded: Option<Instant>,
}

/// The keys known now.
#[derive(Debug)]
pub struct KeyStore {
    keys: ArcSwap<HashMap<String, Arc<Key>>>,
    wanted: Notify,
    waiting: Semaphore,
    progress: watch::Sender<Progress>,
    withdrawn: AtomicU64,
}

impl Default for KeyStore {
    fn default() -> Self {
        Self {
            keys: ArcSwap::default(),
            wanted: Notify::new(),
            waiting: Semaphore::new(MAX_WAITING),
            progress: watch::Sender::new(Progress::default()),
            withdrawn: AtomicU64::new(0),
        }
    }
}

impl KeyStore {
    /// Whether there has been a successful fetch.
    pub fn is_loaded(&self) -> bool {
        self.progress.borrow().loaded.is_some()
    }

    /// Time since the last successful fetch; `None` before the first.
    pub fn age(&self) -> Option<Duration> {
        self.progress.borrow().loaded.map(|at| at.elapsed())
    }

    /// Grows whenever a key is withdrawn, which invalidates tokens verified with it.
    pub fn withdrawals(&self) -> u64 {
        self.withdrawn.load(Ordering::Acquire)
    }

    /// The key of `kid`, asking core when it is not known. Waits at most three seconds.
    pub async fn lookup(&self, kid: &str) -> Lookup {
        if let Some(key) = self.find(kid) {
            return Lookup::Found(key);
        }
        let came = Instant::now();
        let mut progress = self.progress.subscribe();
        let before = *progress.borrow();
        if !before.succeeded && before.is_recent() {
            return Lookup::Unavailable;
        }
        let Ok(_permit) = self.waiting.try_acquire() else {
            return Lookup::Unavailable;
        };
        self.wanted.notify_one();
        // An earlier fetch does not prove that the key is unknown now.
        let asked = progress.wait_for(|progress| {
            progress.began.is_some_and(|began| began >= came) || self.find(kid).is_some()
        });
        let asked = match tokio::time::timeout(LOOKUP_WAIT, asked).await {
            Ok(Ok(progress)) => progress.succeeded,
            Ok(Err(_)) | Err(_) => false,
        };
        match self.find(kid) {
            Some(key) => Lookup::Found(key),
            None if asked => Lookup::Unknown,
            None => Lookup::Unavailable,
        }
    }

    fn find(&self, kid: &str) -> Option<Arc<Key>> {
        self.keys.load().get(kid).cloned()
    }

    /// Replaces the keys by those of a JWKS document. Keys of other kinds are ignored.
    ///
    /// # Errors
    /// When the document is invalid or has no usable key; the previous keys stay.
    pub fn install(&self, document: &[u8]) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<serde_json::Value>,
        }
        let document: Document = serde_json::from_slice(document)?;
        let keys: HashMap<String, Arc<Key>> = document
            .keys
            .into_iter()
            .take(MAX_KEYS)
            .filter_map(|jwk| serde_json::from_value::<Jwk>(jwk).ok())
            .filter_map(|jwk| usable(&jwk))
            .collect();
        anyhow::ensure!(!keys.is_empty(), "no usable key among them");
        let before = self.keys.swap(Arc::new(keys));
        let now = self.keys.load();
        let withdrawn = before.iter().any(|(kid, old)| {
            now.get(kid).is_none_or(|new| !same_key(&old.decoding, &new.decoding))
        });
        if withdrawn {
            self.withdrawn.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    pub(super) fn fetched(&self, began: Instant, succeeded: bool) {
        self.progress.send_modify(|progress| {
            progress.began = Some(began);
            progress.ended = Some(Instant::now());
            progress.succeeded = succeeded;
            if succeeded {
                progress.loaded = progress.ended;
            }
        });
    }

    /// Keeps the keys current until `stop`.
    pub async fn follow(&self, mesh: MeshClient, stop: CancellationToken) {
        let mut membership = mesh.directory().changed();
        loop {
            let began = Instant::now();
            let fetched = tokio::select! {
                () = stop.cancelled() => return,
                fetched = self.fetch(&mesh) => fetched,
            };
            let succeeded = fetched.is_ok();
            if let Err(error) = fetched {
                tracing::debug!(error = format!("{error:#}"), "cannot fetch the token keys");
            }
            self.fetched(began, succeeded);
            let pause = if succeeded { REFRESH_EVERY } else { RETRY_AFTER };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.wait_for_demand() => {}
                // The first instance of core has just come up: no need to wait for the pause.
                Ok(()) = membership.changed(), if !succeeded => {}
            }
        }
    }

    /// Waits until a request wants a key and the cool-down is over.
    async fn wait_for_demand(&self) {
        self.wanted.notified().await;
        let ended = self.progress.borrow().ended;
        let rest = ended.map(|at| COOL_DOWN.saturating_sub(at.elapsed()));
        tokio::time::sleep(rest.unwrap_or_default()).await;
    }

    async fn fetch(&self, mesh: &MeshClient) -> anyhow::Result<()> {
        let document = mesh.get(CORE, JWKS_PATH, FETCH_TIMEOUT, MAX_JWKS_BYTES).await?;
        self.install(&document)
    }
}

impl Progress {
    fn is_recent(&self) -> bool {
        self.ended.is_some_and(|at| at.elapsed() < COOL_DOWN)
    }
}

fn same_key(one: &DecodingKey, other: &DecodingKey) -> bool {
    matches!((one.try_get_as_bytes(), other.try_get_as_bytes()), (Ok(one), Ok(other)) if one == other)
}

fn usable(jwk: &Jwk) -> Option<(String, Arc<Key>)> {
    let kid = jwk.common.key_id.clone()?;
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        _ => return None,
    };
    let declared = match jwk.common.key_algorithm {
        None => algorithm,
        Some(KeyAlgorithm::EdDSA) => Algorithm::EdDSA,
        Some(KeyAlgorithm::ES256) => Algorithm::ES256,
        Some(_) => return None,
    };
    let decoding = DecodingKey::from_jwk(jwk).ok()?;
    // jsonwebtoken panics on an Ed25519 key that is too short.
    let expected_bytes = if algorithm == Algorithm::EdDSA { 32 } else { 65 };
    let whole = decoding.try_get_as_bytes().is_ok_and(|bytes| bytes.len() == expected_bytes);
    (declared == algorithm && whole).then(|| (kid, Arc::new(Key { algorithm, decoding })))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"ed","alg":"EdDSA","use":"sig","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    const EC: &str = r#"{"kty":"EC","crv":"P-256","kid":"ec","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;

    fn install(store: &KeyStore, keys: &[&str]) -> anyhow::Result<()> {
        store.install(format!("{{\"keys\":[{}]}}", keys.join(",")).as_bytes())
    }

    #[test]
    fn only_signature_keys_of_two_kinds_are_taken() {
        let store = KeyStore::default();
        install(&store, &[
            ED,
            EC,
            r#"{"kty":"oct","kid":"mac","k":"c2VjcmV0"}"#,
            r#"{"kty":"RSA","kid":"rsa","n":"AQAB","e":"AQAB"}"#,
            r#"{"kty":"EC","crv":"P-384","kid":"p384","x":"AA","y":"AA"}"#,
            r#"{"kty":"OKP","crv":"Ed25519","kid":"odd","alg":"ES256","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            r#"{"kty":"OKP","crv":"Ed25519","kid":"short","x":"AAAA"}"#,
            r#"{"kty":"future"}"#,
        ])
        .unwrap();
        assert_eq!(store.find("ed").unwrap().algorithm, Algorithm::EdDSA);
        assert_eq!(store.find("ec").unwrap().algorithm, Algorithm::ES256);
        assert_eq!(store.keys.load().len(), 2);
    }

    #[test]
    fn a_bad_document_leaves_the_keys_alone() {
        let store = KeyStore::default();
        install(&store, &[ED]).unwrap();
        assert!(store.install(b"not json").is_err());
        assert!(install(&store, &[]).is_err());
        assert!(store.find("ed").is_some());
        assert_eq!(store.withdrawals(), 0);
        install(&store, &[ED, EC]).unwrap();
        assert_eq!(store.withdrawals(), 0, "a key more withdraws nothing");
        install(&store, &[EC]).unwrap();
        assert_eq!(store.withdrawals(), 1);
    }

    #[tokio::test]
    async fn an_unknown_key_is_reported_only_after_asking_core() {
        let store = Arc::new(KeyStore::default());
        let before = Instant::now();
        store.fetched(before, true);
        let asking = Arc::clone(&store);
        let lookup = tokio::spawn(async move { asking.lookup("gone").await });
        while store.waiting.available_permits() == MAX_WAITING {
            tokio::task::yield_now().await;
        }
        store.wanted.notified().await;
        // One that began earlier ends now; it may have missed a key.
        store.fetched(before, true);
        tokio::task::yield_now().await;
        assert!(!lookup.is_finished());
        store.fetched(Instant::now(), true);
        assert!(matches!(lookup.await.unwrap(), Lookup::Unknown));
        assert_eq!(store.waiting.available_permits(), MAX_WAITING);
    }

    #[tokio::test]
    async fn waiters_are_bounded_and_none_waits_while_core_is_down() {
        let store = KeyStore::default();
        install(&store, &[ED]).unwrap();
        store.fetched(Instant::now(), true);
        let everybody = store.waiting.acquire_many(u32::try_from(MAX_WAITING).unwrap()).await;
        assert!(matches!(store.lookup("gone").await, Lookup::Unavailable));
        assert!(matches!(store.lookup("ed").await, Lookup::Found(_)), "needs no waiting");
        drop(everybody);
        store.fetched(Instant::now(), false);
        let asked = Instant::now();
        assert!(matches!(store.lookup("gone").await, Lookup::Unavailable));
        assert!(asked.elapsed() < COOL_DOWN);
    }
}
