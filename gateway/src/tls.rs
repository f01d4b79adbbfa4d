//! TLS on the clients' listener: its certificates, and their reload while the gateway runs.
//!
//! A new handshake takes the certificates of the moment, and connections keep theirs. [`crate::reload`]
//! reads the files again when they change and on SIGHUP. The set is replaced as a whole, or not at all:
//! certificate and key are two files, and for a moment one of them is new and the other one is not.

mod certificates;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use arc_swap::ArcSwap;
use clap::Args;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use tokio_rustls::TlsAcceptor;

use crate::reload::{self, Contents, Reloadable};
use certificates::Certificates;

/// The protocol's name in ALPN (RFC 9113, 3.1).
pub const ALPN_HTTP2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// TLS towards clients.
#[derive(Debug, Clone, Default, Args)]
pub struct TlsSettings {
    /// Certificate of the clients' listener (PEM, followed by those that signed it); repeatable, each
    /// with its --tls-key. Clients get the one for the name that they ask for, else the first. Without
    /// any, the listener is plain HTTP
    #[arg(
        id = "tls_certificates",
        long = "tls-certificate",
        env = "TOURIN_GATEWAY_TLS_CERTIFICATES",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub certificates: Vec<PathBuf>,
    /// Private key of the certificate at the same place in the list (PEM), which only the gateway's
    /// user and group may read
    #[arg(
        id = "tls_keys",
        long = "tls-key",
        env = "TOURIN_GATEWAY_TLS_KEYS",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub keys: Vec<PathBuf>,
}

impl TlsSettings {
    /// Reads the certificates; `None` without any. Gives the files' contents too.
    ///
    /// # Errors
    /// The flag and the file, and what is wrong with it.
    pub fn load(&self) -> anyhow::Result<Option<(Arc<CertificateStore>, Contents)>> {
        let (certificates, keys) = (self.certificates.len(), self.keys.len());
        ensure!(
            certificates == keys,
            "--tls-certificate is given {certificates} times and --tls-key {keys} times: each \
             certificate needs its key, in the same order"
        );
        if certificates == 0 {
            return Ok(None);
        }
        let pairs = self.certificates.iter().zip(&self.keys);
        let files: Vec<PathBuf> = pairs.flat_map(|(one, other)| [one, other]).cloned().collect();
        let contents = reload::read(&files).context("--tls-certificate and --tls-key")?;
        let current = Certificates::parse(&files, &contents, SystemTime::now())?;
        let store = CertificateStore { files, current: ArcSwap::from_pointee(current) };
        Ok(Some((Arc::new(store), contents)))
    }
}

/// The certificates in use.
#[derive(Debug)]
pub struct CertificateStore {
    /// Each certificate's file, and its key's after it.
    files: Vec<PathBuf>,
    current: ArcSwap<Certificates>,
}

impl CertificateStore {
    /// Accepts TLS 1.2 and 1.3 with these certificates, and with the others that follow. `http2` says
    /// whether HTTP/2 is offered.
    ///
    /// # Errors
    /// When the cryptography cannot be set up.
    pub fn acceptor(self: &Arc<Self>, http2: bool) -> anyhow::Result<TlsAcceptor> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .context("cannot set up TLS")?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        // Sessions resume by tickets, which take no memory here.
        config.ticketer = ring::Ticketer::new().context("cannot set up TLS session tickets")?;
        if http2 {
            config.alpn_protocols.push(ALPN_HTTP2.to_vec());
        }
        config.alpn_protocols.push(ALPN_HTTP1.to_vec());
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// When each certificate ends, in seconds since 1970, by the name of its file.
    pub fn ends(&self) -> Vec<(String, f64)> {
        let current = self.current.load();
        let files = self.files.iter().step_by(2).map(|file| file.display().to_string());
        files.zip(current.ends().iter().map(|end| *end as f64)).collect()
    }
}

impl Reloadable for CertificateStore {
    fn name(&self) -> &'static str {
        "tls"
    }

    fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn apply(&self, contents: &Contents) -> anyhow::Result<String> {
        let new = Certificates::parse(&self.files, contents, SystemTime::now())?;
        let version = new.version();
        self.current.store(Arc::new(new));
        Ok(version)
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load().of(hello.server_name(), hello.signature_schemes())
    }
}

#[cfg(test)]
mod tests;
