//! The first certificate, by a join token, and its renewals.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Client;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::tls::{client_builder, provider, store};
use super::{InvalidIdentity, REGISTRY, Workload, WorkloadKey, WorkloadName};
use crate::backoff::Backoff;
use crate::client::{ClientError, InvalidRegistryUrl, RegistryClient};
use crate::wire::{CertificateRequest, IssuedCertificate, JoinClaims};

/// Longest pause between two attempts to get a certificate.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether a renewal is due. A timer alone would sleep on after a suspension.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A join token: a JWT of the registry that names a service. Its `Debug` output does not show it.
#[derive(Clone)]
pub(super) struct JoinToken {
    token: String,
    claims: JoinClaims,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("service", &self.claims.sub).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = String;

    /// Reads what the token says, which the registry alone can verify.
    fn from_str(token: &str) -> Result<Self, Self::Err> {
        let token = token.trim();
        let mut parts = token.split('.');
        let claims = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(_), Some(claims), Some(_), None) => URL_SAFE_NO_PAD.decode(claims).ok(),
            _ => None,
        };
        let claims = claims.and_then(|claims| serde_json::from_slice(&claims).ok());
        let claims = claims.ok_or("expected a join token, which `tourin join-token` makes")?;
        Ok(Self { token: token.to_owned(), claims })
    }
}

/// Why an instance cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The registry's URL is not usable.
    #[error(transparent)]
    Url(#[from] InvalidRegistryUrl),
    /// The token is for another service.
    #[error(
        "the join token is for {token}, and this is {service}; `tourin join-token {service}` makes one"
    )]
    OtherService {
        /// The service that the token names.
        token: String,
        /// This service.
        service: String,
    },
    /// The registry refuses: the token is expired, used up, or of another mesh, or the instance's name is
    /// not one.
    #[error("the registry does not let it join: {0}")]
    Refused(String),
    /// The token cannot be read, or what was issued cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// The registry does not answer.
    #[error("no certificate from the registry: {0}")]
    Unreachable(ClientError),
}

impl From<InvalidIdentity> for JoinError {
    fn from(error: InvalidIdentity) -> Self {
        Self::Unusable(error.to_string())
    }
}

/// How an instance reaches the registry and proves which service it is.
#[derive(Clone)]
pub struct Joining {
    registry_url: String,
    service: String,
    instance: String,
    token: TokenSource,
    http: HttpSetup,
}

/// The registry's URL, the source of join tokens, which is asked at each attempt, and how an HTTP client is
/// set up.
pub type RegistryAccess = (String, TokenSource, HttpSetup);
/// Gives the current join token.
pub type TokenSource = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;
/// Sets up an HTTP client with these settings of TLS.
pub type HttpSetup = fn(ClientConfig) -> Result<Client, String>;

/// An instance that has joined.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Its identity.
    pub workload: Workload,
    /// The registry, called with that identity.
    pub registry: RegistryClient,
    /// Ends the renewals with the last clone.
    _renewal: Arc<DropGuard>,
}

impl Joining {
    /// An instance of a service in a registry's mesh.
    pub fn new(
        (registry_url, token, http): RegistryAccess,
        (service, instance): (&str, &str),
    ) -> Self {
        Self {
            registry_url,
            service: service.to_owned(),
            instance: instance.to_owned(),
            token,
            http,
        }
    }

    /// Joins with a new key, unless a workload is `given`, and renews the certificate at half of its life
    /// for as long as a clone of the result exists. When it has expired, the instance joins again by a
    /// token. Waits without limit for a registry that does not answer. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the registry refuses the token, or it is for another service.
    pub async fn join(mut self, given: Option<Workload>) -> Result<Joined, JoinError> {
        let workload = match given {
            Some(workload) => workload,
            None => self.first_certificate().await?,
        };
        if let Some(tokens) = &workload.tokens {
            self.token = Arc::clone(tokens);
        }
        let http = (self.http)(workload.client_config(REGISTRY)?).map_err(JoinError::Unusable)?;
        let registry = RegistryClient::new(http, &self.registry_url)?;
        let stop = CancellationToken::new();
        let renewal = Renewal {
            workload: workload.clone(),
            registry: registry.clone(),
            joining: self,
            stop: stop.clone(),
        };
        tokio::spawn(renewal.run());
        Ok(Joined { workload, registry, _renewal: Arc::new(stop.drop_guard()) })
    }

    async fn first_certificate(&self) -> Result<Workload, JoinError> {
        let key = WorkloadKey::random();
        let request =
            CertificateRequest { csr: key.signing_request()?, instance: self.instance.clone() };
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        let mut last = String::new();
        loop {
            match self.issue(&request).await {
                Ok((mesh, issued)) => {
                    let name = WorkloadName {
                        mesh,
                        service: self.service.clone(),
                        instance: self.instance.clone(),
                    };
                    return Ok(Workload::new(name, key, &issued)?);
                }
                Err(JoinError::Unreachable(error)) => {
                    let error = error.to_string();
                    if error != last {
                        let registry = &self.registry_url;
                        tracing::warn!(registry, error, "waiting for a certificate");
                        last = error;
                    }
                    sleep(backoff.pause()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks for a certificate by the token. Gives the mesh's name with it.
    async fn issue(
        &self,
        request: &CertificateRequest,
    ) -> Result<(String, IssuedCertificate), JoinError> {
        let token: JoinToken =
            (self.token)().and_then(|token| token.parse()).map_err(JoinError::Unusable)?;
        if token.claims.sub != self.service {
            let service = self.service.clone();
            return Err(JoinError::OtherService { token: token.claims.sub, service });
        }
        let http = (self.http)(token.client_config()?).map_err(JoinError::Unusable)?;
        let client = RegistryClient::new(http, &self.registry_url)?;
        let issued = client.first_certificate(request, &token.token).await;
        let issued = issued.map_err(|error| match error {
            ClientError::Unauthorized(message)
            | ClientError::Refused { status: 400..=499, message, .. } => {
                JoinError::Refused(message)
            }
            error => JoinError::Unreachable(error),
        })?;
        Ok((token.claims.iss, issued))
    }
}

/// The pause after an attempt to renew a certificate: often enough that a short outage near its end does
/// not outlast it. Nothing is to be saved after that.
pub(super) fn pause_before_renewal(backoff: Duration, left: Duration) -> Duration {
    if left.is_zero() { backoff } else { backoff.min(left / 4).max(SHORTEST_PAUSE) }
}

/// Keeps a certificate from expiring.
struct Renewal {
    workload: Workload,
    registry: RegistryClient,
    joining: Joining,
    stop: CancellationToken,
}

impl Renewal {
    async fn run(self) {
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.renew_in_time()).await;
    }

    async fn renew_in_time(&self) {
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        loop {
            while !self.workload.is_due() {
                sleep((self.workload.left() / 8).clamp(SHORTEST_PAUSE, LOOK_EVERY)).await;
            }
            match self.renew().await {
                Ok(()) => {
                    backoff.reset();
                    tracing::debug!("the certificate is renewed");
                }
                Err(error) => {
                    let left = self.workload.left();
                    let left_s = left.as_secs();
                    tracing::warn!(%error, left_s, "the certificate is not renewed");
                    sleep(pause_before_renewal(backoff.pause(), left)).await;
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), JoinError> {
        let request = self.workload.request()?;
        let issued = match self.registry.certificate(&request).await {
            Ok(issued) => issued,
            Err(_) if self.workload.left().is_zero() => self.joining.issue(&request).await?.1,
            Err(error) => return Err(JoinError::Unreachable(error)),
        };
        Ok(self.workload.renewed(&issued)?)
    }
}

impl JoinToken {
    pub(super) fn client_config(&self) -> Result<ClientConfig, InvalidIdentity> {
        let registry = format!("{REGISTRY}.{}", self.claims.iss);
        let registry = ServerName::try_from(registry).map_err(InvalidIdentity::because)?;
        let verifier = PinnedRoot { root: self.claims.root.clone(), registry };
        Ok(client_builder(Arc::new(verifier)).with_no_client_auth())
    }
}

/// The hash of a root by which a join token pins it: SHA-256 of its DER, in base64url.
pub fn root_hash(root: &CertificateDer<'_>) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(root))
}

/// Verifies the registry for an instance that does not have the mesh's roots yet: the registry sends its
/// roots, and the token says which one to believe.
#[derive(Debug)]
pub(super) struct PinnedRoot {
    pub root: String,
    pub registry: ServerName<'static>,
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates.iter().find(|root| root_hash(root) == self.root);
        let root = root.ok_or_else(|| {
            Error::General("its authority is not the one of the join token".to_owned())
        })?;
        let unusable = |error: &dyn fmt::Display| Error::General(error.to_string());
        let roots = store(&[root.clone().into_owned()]).map_err(|error| unusable(&error))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| unusable(&error))?;
        verifier.verify_server_cert(end_entity, intermediates, &self.registry, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
