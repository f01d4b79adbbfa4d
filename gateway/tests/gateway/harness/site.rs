//! A site's own certificates, and clients that trust them.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tourin_chassis::http_client;
use tourin_gateway::Settings;
use tourin_gateway::tls::TlsSettings;
use tourin_testbed::eventually;

use super::{DEADLINE, Mesh, Response, TestGateway};

/// A site with an authority of its own, and its certificates in a folder.
pub struct Site {
    folder: TempDir,
    authority: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    names: Vec<String>,
}

impl Site {
    /// With a certificate for each of these names; the first one is for 127.0.0.1 too.
    pub fn new(names: &[&str]) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        let site = Self {
            folder: TempDir::new().unwrap(),
            authority: Issuer::new(params, key),
            root,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        for name in names {
            let (certificate, key) = site.issue(name);
            site.write_key(name, &key);
            site.write_certificate(name, &certificate);
        }
        site
    }

    fn file(&self, name: &str, extension: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.{extension}"))
    }

    /// A new certificate and its key, as PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        let mut names = vec![name.to_owned()];
        if self.names.first().is_some_and(|first| first == name) {
            names.push("127.0.0.1".to_owned());
        }
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub fn write_certificate(&self, name: &str, pem: &str) {
        fs::write(self.file(name, "pem"), pem).unwrap();
    }

    pub fn write_key(&self, name: &str, pem: &str) {
        let file = self.file(name, "key");
        fs::write(&file, pem).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn settings(&self) -> TlsSettings {
        let files = |extension| self.names.iter().map(|name| self.file(name, extension)).collect();
        TlsSettings { certificates: files("pem"), keys: files("key") }
    }

    pub fn client_config(&self, alpn: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    pub async fn connect(
        &self,
        addr: SocketAddr,
        name: &str,
        alpn: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_over(TcpStream::connect(addr).await?, name, alpn).await
    }

    pub async fn connect_over(
        &self,
        tcp: TcpStream,
        name: &str,
        alpn: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        // As every client does: small frames must not wait for acknowledgements.
        tcp.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::new(self.client_config(alpn)));
        connector.connect(ServerName::try_from(name.to_owned()).unwrap(), tcp).await
    }

    /// The certificate that a client of this name gets.
    pub async fn certificate(&self, addr: SocketAddr, name: &str) -> CertificateDer<'static> {
        let tls = self.connect(addr, name, &[]).await.unwrap();
        tls.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }
}

impl Mesh {
    /// A gateway with TLS towards clients, which is ready.
    pub async fn tls_gateway(
        &self,
        site: &Site,
        adjust: impl FnOnce(&mut Settings),
    ) -> TestGateway {
        let set = |settings: &mut Settings| {
            settings.tls = site.settings();
            adjust(settings);
        };
        let mut gateway = self.starting_gateway(set).await;
        gateway.url = format!("https://{}", gateway.addr);
        gateway.http = http_client::mesh_client(site.client_config(&[]), DEADLINE).unwrap();
        eventually("the gateway is ready", || async { gateway.get("/readyz").await.status == 200 })
            .await;
        gateway
    }
}

impl TestGateway {
    /// The value of a metric, by its name and labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let url = format!("http://{}/metrics", self.admin);
        let http = http_client::client(DEADLINE).unwrap();
        let text = http.get(url).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        // A count by label is there from its first increase on.
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

/// A client's HTTP/2 connection.
pub struct Http2 {
    pub requests: SendRequest<Bytes>,
    pub connection: JoinHandle<Result<(), h2::Error>>,
}

/// A request for the site.
pub fn ask(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let uri = format!("https://tourin.example{path}");
    let request = Request::builder().method(method).uri(uri);
    let add = |request: http::request::Builder, (name, value): &(&str, &str)| {
        request.header(*name, *value)
    };
    headers.iter().fold(request, add).body(()).unwrap()
}

impl Http2 {
    pub async fn open(site: &Site, addr: SocketAddr) -> Self {
        let tls = site.connect(addr, "tourin.example", &["h2", "http/1.1"]).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let (requests, connection) = h2::client::handshake(tls).await.unwrap();
        Self { requests, connection: tokio::spawn(connection) }
    }

    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Response, h2::Error> {
        self.call(ask("GET", path, headers), None).await
    }

    /// Sends a request, with a body in one frame.
    pub async fn call(
        &self,
        request: Request<()>,
        body: Option<Bytes>,
    ) -> Result<Response, h2::Error> {
        let calling = async {
            let mut ready = self.requests.clone().ready().await?;
            let (response, mut sending) = ready.send_request(request, body.is_none())?;
            if let Some(body) = body {
                sending.send_data(body, true)?;
            }
            let (head, mut body) = response.await?.into_parts();
            let mut whole = Vec::new();
            while let Some(part) = body.data().await {
                let part = part?;
                body.flow_control().release_capacity(part.len())?;
                whole.extend_from_slice(&part);
            }
            let body = serde_json::from_slice(&whole).unwrap_or(Value::Null);
            Ok(Response { status: head.status.as_u16(), headers: head.headers, body })
        };
        tokio::time::timeout(DEADLINE, calling).await.expect("an answer in time")
    }
}
