//! A mesh around measured programs: a registry in this process, and a core and a recommendation that answer
//! at once, as peers of the mesh.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::routing::get;
use axum::{Extension, Router};
use rustls::ClientConfig;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tourin_chassis::http::{HttpLimits, Listener, serve};
use tourin_chassis::http_client;
use tourin_chassis::identity::{IdentitySigner, Subject};
use tourin_chassis::peer::{GATEWAY, Peer, spiffe_id};
use tourin_chassis::shutdown::Shutdown;
use tourin_registry::authority::Authority;
use tourin_registry::{Registry, Settings};
use tourin_registry_api::{Instance, REGISTRY, Registration, RegistryClient, Workload};

/// Ed25519's base point: a valid public key that signs nothing here.
const PUBLIC_KEY: &str = "WGZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmY";
/// As many bytes as a page of a few spots has.
const BODY_BYTES: usize = 1_024;
/// Longer than a run: no renewal is among what is measured.
const CERTIFICATE_LIFETIME_S: u32 = 24 * 3_600;
const JOIN_TOKEN_LIFE: Duration = Duration::from_secs(24 * 3_600);
const HEARTBEAT: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(1);

/// How many pages the services gave.
#[derive(Debug, Default)]
pub struct Pages {
    /// To peers with a certificate.
    to_peers: AtomicU64,
    /// To others.
    to_others: AtomicU64,
}

impl Pages {
    /// To peers with a certificate, and to others.
    pub fn counted(&self) -> (u64, u64) {
        (self.to_peers.load(Ordering::Relaxed), self.to_others.load(Ordering::Relaxed))
    }
}

/// The mesh. It ends with the process.
pub struct Mesh {
    /// Where the registry answers.
    pub registry_url: String,
    /// What its services gave.
    pub pages: Arc<Pages>,
    authority: Arc<Authority>,
    /// The gateway that asks services directly.
    gateway: Workload,
    signer: IdentitySigner,
    registrations: Vec<Registration>,
    _folder: TempDir,
}

impl Mesh {
    /// Starts it.
    ///
    /// # Errors
    /// When a listener cannot be bound, or a file cannot be written.
    pub async fn start() -> anyhow::Result<Self> {
        Self::of(&["core", "recommendation"]).await
    }

    /// The same with these services alone; the others are the benchmark's to start.
    ///
    /// # Errors
    /// As [`Mesh::start`].
    pub async fn of(services: &[&'static str]) -> anyhow::Result<Self> {
        let key =
            json!({"kty": "OKP", "crv": "Ed25519", "kid": "k", "alg": "EdDSA", "x": PUBLIC_KEY});
        Self::with(services, key).await
    }

    /// Starts it. Its core says that access tokens are signed by this key (a JWK).
    ///
    /// # Errors
    /// As [`Mesh::start`].
    pub async fn with_token_key(key: serde_json::Value) -> anyhow::Result<Self> {
        Self::with(&["core", "recommendation"], key).await
    }

    async fn with(services: &[&'static str], key: serde_json::Value) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let settings = Settings {
            certificate_lifetime_s: CERTIFICATE_LIFETIME_S,
            ..Settings::new(local(), folder.path())
        };
        let registry = Registry::build(settings).await?;
        let registry_url = format!("https://{}", registry.addr());
        let authority = Arc::clone(registry.authority());
        tokio::spawn(registry.run_until_stopped(Shutdown::new()));
        let pages = Arc::new(Pages::default());
        let gateway = authority.workload(GATEWAY, "bench")?;
        let name = gateway.name();
        let id = spiffe_id(&name.mesh, &name.service, &name.instance);
        let signer = IdentitySigner::new(gateway.key(), &id);
        let registrations = Vec::new();
        let mut mesh = Self {
            registry_url,
            pages,
            authority,
            gateway,
            signer,
            registrations,
            _folder: folder,
        };
        for service in services.iter().copied() {
            let workload = mesh.workload(service, service)?;
            let answers = answers(Arc::clone(&mesh.pages), &key);
            mesh.register(&workload, serve_peers(&workload, answers).await?)?;
        }
        Ok(mesh)
    }

    /// Keeps an instance registered, which answers at `address`.
    ///
    /// # Errors
    /// When a client for the registry cannot be set up.
    pub fn register(&mut self, workload: &Workload, address: SocketAddr) -> anyhow::Result<()> {
        let http = http_client::mesh_client(workload.client_config(REGISTRY)?, None)?;
        let client = RegistryClient::new(http, &self.registry_url)?;
        let name = workload.name();
        self.registrations.push(Registration::start(
            client,
            Instance::new(&name.service, &name.instance, address),
            HEARTBEAT,
            LEASE,
            CancellationToken::new(),
        ));
        Ok(())
    }

    /// A token by which a program joins as an instance of `service`.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn join_token(&self, service: &str) -> anyhow::Result<String> {
        self.authority.join_token(service, None, JOIN_TOKEN_LIFE)
    }

    /// TLS by which instances of `service` are called as the gateway.
    ///
    /// # Errors
    /// When `service` is not a name that certificates have.
    pub fn as_gateway(&self, service: &str) -> anyhow::Result<Arc<ClientConfig>> {
        Ok(Arc::new(self.gateway.client_config(service)?))
    }

    /// An HTTP client that calls instances of `service` as the gateway.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn client(&self, service: &str) -> anyhow::Result<reqwest::Client> {
        http_client::mesh_client(self.gateway.client_config(service)?, Duration::from_secs(10))
    }

    /// The identity of a caller, as that gateway signs it for `service`.
    pub fn identity(&self, of: &Subject, service: &str) -> http::HeaderValue {
        self.signer.sign(of, service)
    }

    /// The gateway that asks services directly.
    pub fn gateway(&self) -> &Workload {
        &self.gateway
    }

    /// The identity of another instance.
    ///
    /// # Errors
    /// When its certificate cannot be issued.
    pub fn workload(&self, service: &str, instance: &str) -> anyhow::Result<Workload> {
        self.authority.workload(service, instance)
    }
}

/// A free port of this machine.
pub fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Serves peers of the mesh. Plain HTTP from this machine is answered alike, on the same connections but
/// for TLS.
async fn serve_peers(workload: &Workload, router: Router) -> anyhow::Result<SocketAddr> {
    let tcp = TcpListener::bind(local()).await?;
    let addr = tcp.local_addr()?;
    let listener = Listener::with_tls(tcp, workload.server_config(), &workload.name().mesh);
    tokio::spawn(async move {
        serve(listener, router, &HttpLimits::default(), Shutdown::new(), DRAIN).await
    });
    Ok(addr)
}

fn answers(pages: Arc<Pages>, key: &serde_json::Value) -> Router {
    let body = json!([{ "text": "x".repeat(BODY_BYTES) }]).to_string();
    let keys = json!({ "keys": [key] });
    let visitor_key = json!({"key": "A".repeat(43), "msLeft": 24 * 3_600 * 1_000});
    let description =
        json!({"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": {}});
    Router::new()
        .route("/.well-known/jwks.json", get(|| async { axum::Json(keys) }))
        .route("/internal/openapi.json", get(|| async { axum::Json(description) }))
        .route("/internal/revocations", get(revocations))
        .route("/internal/visitor-key", get(|| async { axum::Json(visitor_key) }))
        // What gateways ask by themselves, such as whether an instance is healthy, is no page.
        .route(
            "/api/{*page}",
            get(move |peer: Option<Extension<Arc<Peer>>>| async move {
                let count = if peer.is_some() { &pages.to_peers } else { &pages.to_others };
                count.fetch_add(1, Ordering::Relaxed);
                ([(http::header::CONTENT_TYPE, "application/json")], body)
            }),
        )
}

/// An empty log of ended sessions.
async fn revocations() -> axum::Json<serde_json::Value> {
    tokio::time::sleep(Duration::from_millis(200)).await;
    axum::Json(json!({"logId": "l", "next": 0, "entries": []}))
}
