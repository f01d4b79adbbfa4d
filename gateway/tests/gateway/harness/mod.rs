//! A small mesh: registry, gateways, and services that say what they were asked.

mod child;
mod live;
pub mod raw;
mod service;
mod site;
pub mod websocket;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::EncodePrivateKey;
use ed25519_dalek::{Signer, SigningKey};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tourin_chassis::config::MeshSettings;
use tourin_chassis::http_client;
use tourin_chassis::shutdown::Shutdown;
use tourin_gateway::{Gateway, Settings};
use tourin_registry::Registry;
use tourin_registry::authority::Authority;
use tourin_registry_api::{Instance, RegistryClient, Workload};
use tourin_testbed::eventually;

pub use child::{ChildInstance, serve_as_child};
pub use live::Live;
pub use raw::raw;
pub use service::Service;
pub use site::{Http2, Site, ask};
pub use websocket::WebSocket;

/// No call in these tests may take longer.
const DEADLINE: Duration = Duration::from_secs(10);
/// The lease of an instance, which nobody renews: longer than a test.
pub const LEASE: Duration = Duration::from_secs(290);

pub struct Mesh {
    pub authority: Arc<Authority>,
    pub registry_url: String,
    /// An operator's.
    pub registry: RegistryClient,
    _folder: TempDir,
    /// Ends the registry, and nothing else.
    pub registry_stop: Shutdown,
    pub stop: Shutdown,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.stop.begin();
        self.registry_stop.begin();
    }
}

impl Mesh {
    pub async fn start() -> Self {
        let stop = Shutdown::new();
        let folder = TempDir::new().unwrap();
        let settings =
            tourin_registry::Settings::new("127.0.0.1:0".parse().unwrap(), folder.path());
        let registry = Registry::build(settings).await.unwrap();
        let registry_url = format!("https://{}", registry.addr());
        let registry_stop = Shutdown::new();
        let authority = Arc::clone(registry.authority());
        tokio::spawn(registry.run_until_stopped(registry_stop.clone()));
        let operator = authority.workload("operator", "test").unwrap();
        Self {
            registry: registry_client(&registry_url, &operator),
            authority,
            registry_url,
            registry_stop,
            stop,
            _folder: folder,
        }
    }

    /// A client of the registry that speaks for this instance.
    pub fn registry_as(&self, service: &str, id: &str) -> RegistryClient {
        let workload = self.authority.workload(service, id).unwrap();
        registry_client(&self.registry_url, &workload)
    }

    /// TLS of an instance whose HTTP a test writes itself.
    pub fn tls(&self, service: &str) -> TlsAcceptor {
        self.authority.workload(service, "raw").unwrap().server_config().into()
    }

    /// A mesh with one instance each of core and recommendation, and a gateway that is ready.
    pub async fn complete() -> (Self, Service, TestGateway) {
        let mesh = Self::start().await;
        let core = mesh.service("core", "core-1").await;
        mesh.service("recommendation", "recommendation-1").await;
        let gateway = mesh.gateway(|_| {}).await;
        (mesh, core, gateway)
    }

    pub async fn service(&self, name: &'static str, id: &str) -> Service {
        let service = Service::start(name, id, &self.authority, self.stop.clone()).await;
        self.register(name, id, service.address).await;
        service
    }

    pub async fn register(&self, service: &str, id: &str, address: std::net::SocketAddr) {
        self.registry_as(service, id)
            .register(&Instance::new(service, id, address), LEASE)
            .await
            .unwrap();
    }

    pub fn gateway_identity(&self) -> Workload {
        let id = format!("gateway-{}", uuid::Uuid::new_v4().simple());
        self.authority.workload("gateway", &id).unwrap()
    }

    pub fn settings(&self) -> Settings {
        let mut settings = Settings::new(MeshSettings::new(self.registry_url.clone()));
        settings.listen = "127.0.0.1:0".parse().unwrap();
        settings.gateway_threads = Some(2);
        // A handshake of a debug build takes its time on a busy machine, and one that fails is an attempt more.
        settings.connect_timeout_ms = 10_000;
        settings
    }

    /// A gateway with this route table, once it is ready.
    pub async fn gateway_with(
        &self,
        routes: &str,
        adjust: impl FnOnce(&mut Settings),
    ) -> TestGateway {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("routes.toml");
        std::fs::write(&file, routes).unwrap();
        self.gateway(|settings| {
            settings.routes = Some(file);
            adjust(settings);
        })
        .await
    }

    /// A gateway that has been ready once.
    pub async fn gateway(&self, adjust: impl FnOnce(&mut Settings)) -> TestGateway {
        let gateway = self.starting_gateway(adjust).await;
        eventually("the gateway is ready", || async { gateway.get("/readyz").await.status == 200 })
            .await;
        gateway
    }

    pub async fn starting_gateway(&self, adjust: impl FnOnce(&mut Settings)) -> TestGateway {
        let mut settings = self.settings();
        adjust(&mut settings);
        let gateway = Gateway::build(settings, Some(self.gateway_identity())).await.unwrap();
        let stop = Shutdown::new();
        TestGateway {
            url: format!("http://{}", gateway.addr()),
            addr: gateway.addr(),
            admin: gateway.admin_addr(),
            stop: stop.clone(),
            http: http_client::client(DEADLINE).unwrap(),
            running: tokio::spawn(gateway.run_until_stopped(stop)),
        }
    }
}

fn registry_client(url: &str, workload: &Workload) -> RegistryClient {
    let tls = workload.client_config("registry").unwrap();
    RegistryClient::new(http_client::mesh_client(tls, None).unwrap(), url).unwrap()
}

pub struct TestGateway {
    pub url: String,
    pub addr: std::net::SocketAddr,
    /// The operators' listener.
    pub admin: std::net::SocketAddr,
    pub stop: Shutdown,
    pub http: reqwest::Client,
    pub running: JoinHandle<anyhow::Result<()>>,
}

impl Drop for TestGateway {
    fn drop(&mut self) {
        self.stop.begin();
    }
}

/// An answer, whole.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Whether `Vary` names the header, once over all its lines.
    pub fn varies_by(&self, name: &str) -> bool {
        let lines = self.headers.get_all("vary").iter();
        let names = lines.flat_map(|line| line.to_str().unwrap().split(',')).map(str::trim);
        names.filter(|named| named.eq_ignore_ascii_case(name)).count() == 1
    }

    /// The access tokens that it sets in the browser; an empty one is removed.
    pub fn set_tokens(&self) -> Vec<String> {
        let cookies = self.headers.get_all("set-cookie").iter().map(|set| set.to_str().unwrap());
        let tokens = cookies.filter_map(|set| set.strip_prefix("access_token="));
        tokens.map(|set| set.split(';').next().unwrap().to_owned()).collect()
    }

    /// A refusal in the contract's form.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, error: &str) {
        self.assert_refused_without_id(status, error);
        assert!(self.header("x-request-id").is_some());
        assert!(self.header("traceresponse").is_some());
    }

    /// The same from the operators' listener, whose calls are in no trace.
    #[track_caller]
    pub fn assert_refused_without_id(&self, status: u16, error: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.body["error"], error, "{self:?}");
        assert!(!self.body["message"].as_str().unwrap().is_empty());
        assert_eq!(self.header("content-type"), Some("application/json"));
    }

    /// The service's answer, which says what it was asked.
    #[track_caller]
    pub fn asked(&self) -> &Value {
        assert_eq!(self.status, 200, "{self:?}");
        &self.body
    }
}

impl TestGateway {
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Response {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.unwrap();
        let body =
            if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        Response { status, headers, body }
    }

    pub async fn get(&self, path: &str) -> Response {
        self.call("GET", path, &[]).await
    }

    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let method = method.parse().unwrap();
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request).await
    }

    /// Waits until no request is in progress: one may be so for a moment after its response has come.
    pub async fn is_idle(&self) {
        eventually("no request is in progress", || async {
            self.metric("tourin_gateway_requests_in_flight").await == 0.0
        })
        .await;
    }

    /// Its metrics, from the operators' listener.
    pub async fn metrics(&self) -> String {
        let answer = self.http.get(format!("http://{}/metrics", self.admin)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.text().await.unwrap()
    }

    pub async fn call_by_cookie(&self, token: &str, method: &str, path: &str) -> Response {
        self.call(method, path, &[("cookie", &format!("theme=dark; access_token={token}"))]).await
    }

    pub async fn call_as(&self, token: &str, method: &str, path: &str) -> Response {
        self.call(method, path, &[("authorization", &format!("Bearer {token}"))]).await
    }
}

/// Core's signing key.
pub struct Issuer {
    key: SigningKey,
    kid: String,
}

impl Issuer {
    pub fn new(seed: u8, kid: &str) -> Self {
        Self { key: SigningKey::from_bytes(&[seed; 32]), kid: kid.to_owned() }
    }

    pub fn jwk(&self) -> Value {
        let public = URL_SAFE_NO_PAD.encode(self.key.verifying_key().as_bytes());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "alg": "EdDSA", "use": "sig", "x": public})
    }

    pub fn signature(&self, message: &[u8]) -> Vec<u8> {
        self.key.sign(message).to_vec()
    }

    pub fn claims(member: &str, session: &str) -> Value {
        let now = chrono::Utc::now().timestamp();
        json!({
            "iss": "tourin-core", "aud": "tourin", "sub": member, "sid": session,
            "iat": now, "nbf": now, "exp": now + 600, "jti": session, "roles": [],
        })
    }

    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some("at+jwt".to_owned());
        header.kid = Some(self.kid.clone());
        let der = self.key.to_pkcs8_der().unwrap();
        encode(&header, claims, &EncodingKey::from_ed_der(der.as_bytes())).unwrap()
    }

    /// A token of `member01` that was issued so many seconds ago for so many.
    pub fn aged(&self, session: &str, ago_s: i64, life_s: i64) -> String {
        let mut claims = Self::claims("member01", session);
        let issued = chrono::Utc::now().timestamp() - ago_s;
        (claims["iat"], claims["nbf"]) = (json!(issued), json!(issued));
        claims["exp"] = json!(issued + life_s);
        self.sign(&claims)
    }

    pub fn token(&self, member: &str, session: &str) -> String {
        self.sign(&Self::claims(member, session))
    }
}
