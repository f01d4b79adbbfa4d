//! TLS that follows a workload's current certificate and roots.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use super::{InvalidIdentity, WorkloadKey, certificates};
use crate::wire::IssuedCertificate;

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A certificate with its key, and the roots by which peers are verified.
pub(super) struct Current {
    pub certified: Arc<CertifiedKey>,
    pub roots: Vec<CertificateDer<'static>>,
    /// By the wall clock, which goes on while the machine is suspended.
    pub expires: SystemTime,
    pub lifetime: Duration,
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Current {
    pub fn new(key: &WorkloadKey, issued: &IssuedCertificate) -> Result<Self, InvalidIdentity> {
        let provider = provider();
        let lifetime = Duration::from_secs(issued.lifetime_s.into());
        let chain = certificates(&issued.chain)?;
        let certified = CertifiedKey::from_der(chain, key.der(), &provider)
            .map_err(InvalidIdentity::because)?;
        let roots = certificates(&issued.roots)?;
        let store = Arc::new(store(&roots)?);
        let servers =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&store), Arc::clone(&provider));
        let clients = WebPkiClientVerifier::builder_with_provider(store, provider);
        Ok(Self {
            certified: certified.into(),
            roots,
            expires: SystemTime::now() + lifetime,
            lifetime,
            servers: servers.build().map_err(InvalidIdentity::because)?,
            clients: clients.build().map_err(InvalidIdentity::because)?,
        })
    }
}

pub(super) fn store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, InvalidIdentity> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(InvalidIdentity::because)?;
    }
    Ok(store)
}

/// Asks the workload at each handshake.
#[derive(Clone)]
pub(super) struct Follower(pub Arc<ArcSwap<Current>>);

impl Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Follower")
    }
}

impl Follower {
    pub fn server_config(self, peers_must_have_one: bool) -> Arc<ServerConfig> {
        let verifier = Arc::new(Clients { of: self.clone(), mandatory: peers_must_have_one });
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("ring has TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(self));
        // A resumed session would outlive the peer's certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    pub fn client_config(self, expected: &str) -> Result<ClientConfig, InvalidIdentity> {
        let expected =
            ServerName::try_from(expected.to_owned()).map_err(InvalidIdentity::because)?;
        let verifier = Arc::new(Servers { of: self.clone(), expected });
        let mut config = client_builder(verifier).with_client_cert_resolver(Arc::new(self));
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// A client's configuration that verifies servers by `verifier` alone.
pub(super) fn client_builder(
    verifier: Arc<dyn ServerCertVerifier>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("ring has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

impl ResolvesServerCert for Follower {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().certified))
    }
}

impl ResolvesClientCert for Follower {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Clients {
    of: Follower,
    mandatory: bool,
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.of.0.load().clients.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.of.0.load().clients.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.of.0.load().clients.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.of.0.load().clients.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct Servers {
    of: Follower,
    /// Instances are reached by address, and verified by their service's name.
    expected: ServerName<'static>,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = &self.of.0.load().servers;
        verifier.verify_server_cert(end_entity, intermediates, &self.expected, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.of.0.load().servers.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.of.0.load().servers.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.of.0.load().servers.supported_verify_schemes()
    }
}
