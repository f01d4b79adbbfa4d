//! A workload's identity in the mesh: its key, and the certificate of it that the registry's authority
//! issues.
//!
//! An instance makes its key itself and proves once, with a join token, which service it is. The
//! certificate names it by a SPIFFE ID, `spiffe://MESH/SERVICE/INSTANCE`, and by the DNS name
//! `SERVICE.MESH`, which its callers expect. It is renewed at half of its life over a connection that the
//! old one authenticates. Connections and configurations that exist follow: both ends of TLS ask the
//! [`Workload`] at each handshake.
//!
//! Without the registry a certificate lasts until its end. After that, others refuse this instance and it
//! refuses nobody else: it joins again by its token when the registry is back.

mod join;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, ServerConfig};

pub use self::join::{
    HttpSetup, JoinError, Joined, Joining, RegistryAccess, TokenSource, root_hash,
};
use self::tls::{Current, Follower};
use crate::wire::{CertificateRequest, IssuedCertificate};

/// The service that is the mesh's authority.
pub const REGISTRY: &str = "registry";

/// The beginning of an Ed25519 key in PKCS #8, before its 32 bytes (RFC 8410, 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A key or certificate is not usable. Says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not usable as a workload's identity: {0}")]
pub struct InvalidIdentity(String);

impl InvalidIdentity {
    fn because(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Who a workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadName {
    /// The mesh's name, which is the trust domain of SPIFFE.
    pub mesh: String,
    /// The service's name.
    pub service: String,
    /// The instance's name.
    pub instance: String,
}

/// An Ed25519 key. Has no `Debug` output and is never sent.
#[derive(Clone)]
pub struct WorkloadKey {
    pkcs8: Arc<[u8]>,
}

impl WorkloadKey {
    /// A new key.
    #[must_use]
    pub fn random() -> Self {
        let seed: [u8; 32] = rand::random();
        Self { pkcs8: [&PKCS8_PREFIX[..], &seed].concat().into() }
    }

    fn pair(&self) -> Result<KeyPair, InvalidIdentity> {
        KeyPair::try_from(&*self.pkcs8).map_err(InvalidIdentity::because)
    }

    /// The request for a certificate (PEM). It names nothing: the authority decides on names.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn signing_request(&self) -> Result<String, InvalidIdentity> {
        let request = CertificateParams::default().serialize_request(&self.pair()?);
        request.and_then(|request| request.pem()).map_err(InvalidIdentity::because)
    }

    fn der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()).into()
    }
}

/// An instance with a certificate. Clones share it.
#[derive(Clone)]
pub struct Workload {
    name: Arc<WorkloadName>,
    key: WorkloadKey,
    current: Arc<ArcSwap<Current>>,
    tokens: Option<TokenSource>,
}

impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Workload").field(&self.name).finish()
    }
}

impl Workload {
    /// A workload with its first certificate.
    ///
    /// # Errors
    /// When the certificate is not one of `key`, or cannot be read.
    pub fn new(
        name: WorkloadName,
        key: WorkloadKey,
        issued: &IssuedCertificate,
    ) -> Result<Self, InvalidIdentity> {
        let current = Current::new(&key, issued)?;
        let current = Arc::new(ArcSwap::from_pointee(current));
        Ok(Self { name: name.into(), key, current, tokens: None })
    }

    /// Who it is.
    pub fn name(&self) -> &WorkloadName {
        &self.name
    }

    /// The private key (PKCS #8, DER), for what else this workload signs.
    pub fn key(&self) -> &[u8] {
        &self.key.pkcs8
    }

    /// Its certificate and what belongs to it, first the certificate itself.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().certified.cert.clone()
    }

    /// The mesh's roots.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().roots.clone()
    }

    /// The end of its certificate's life.
    pub fn expires(&self) -> SystemTime {
        self.current.load().expires
    }

    /// What is left of its certificate's life.
    pub fn left(&self) -> Duration {
        self.expires().duration_since(SystemTime::now()).unwrap_or_default()
    }

    /// Whether half of that life is over.
    pub fn is_due(&self) -> bool {
        self.left() <= self.current.load().lifetime / 2
    }

    /// The same, which joins again by these tokens when its certificate has expired.
    #[must_use]
    pub fn with_tokens(self, tokens: TokenSource) -> Self {
        Self { tokens: Some(tokens), ..self }
    }

    /// The DNS name in the certificates of `service`.
    pub fn dns_name(&self, service: &str) -> String {
        format!("{service}.{}", self.name.mesh)
    }

    /// TLS for a listener whose peers must have a certificate of the mesh.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.follower().server_config(true)
    }

    /// TLS for a listener whose peers may have a certificate. The registry's: an instance that joins has
    /// none yet.
    pub fn server_config_for_joining(&self) -> Arc<ServerConfig> {
        self.follower().server_config(false)
    }

    /// TLS for calls to `service`. The peer's certificate is checked for its name, whatever the URL says.
    ///
    /// # Errors
    /// When `service` is not a name that certificates have.
    pub fn client_config(&self, service: &str) -> Result<ClientConfig, InvalidIdentity> {
        self.follower().client_config(&self.dns_name(service))
    }

    /// Takes a new certificate into use. Connections that exist go on.
    ///
    /// # Errors
    /// As [`Workload::new`]; the old certificate stays.
    pub fn renewed(&self, issued: &IssuedCertificate) -> Result<(), InvalidIdentity> {
        self.current.store(Arc::new(Current::new(&self.key, issued)?));
        Ok(())
    }

    fn follower(&self) -> Follower {
        Follower(Arc::clone(&self.current))
    }

    /// The request for a new certificate of its key (PEM).
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn signing_request(&self) -> Result<String, InvalidIdentity> {
        self.key.signing_request()
    }

    fn request(&self) -> Result<CertificateRequest, InvalidIdentity> {
        Ok(CertificateRequest {
            csr: self.signing_request()?,
            instance: self.name.instance.clone(),
        })
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, InvalidIdentity> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(InvalidIdentity::because)
}
