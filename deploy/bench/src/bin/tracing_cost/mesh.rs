//! A mesh around the gateways: the registry, two services that answer at once, and a collector that
//! takes spans and one that never answers.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use http::StatusCode;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tourin_chassis::http_client;
use tourin_chassis::secret::Secret;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry::Registry;
use tourin_registry_api::{Instance, Registration, RegistryClient};

/// Ed25519's base point: a valid public key that signs nothing here.
const PUBLIC_KEY: &str = "WGZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmY";
/// As many bytes as a page of a few spots has.
const BODY_BYTES: usize = 1_024;

/// The mesh. It ends with the process.
pub struct Mesh {
    pub registry_url: String,
    pub secret: Secret,
    /// Takes spans.
    pub collector: SocketAddr,
    /// Accepts nothing: its backlog is full.
    pub dead: SocketAddr,
    _kept: (Vec<Registration>, std::net::TcpListener, Vec<std::net::TcpStream>),
}

impl Mesh {
    /// Starts it.
    ///
    /// # Errors
    /// When a listener cannot be bound.
    pub async fn start() -> anyhow::Result<Self> {
        let secret = Secret::random();
        let settings = tourin_registry::Settings::new(local(), secret.clone());
        let registry = Registry::build(settings).await?;
        let registry_url = format!("http://{}", registry.addr());
        tokio::spawn(registry.run_until_stopped(Shutdown::new()));
        let client =
            RegistryClient::new(http_client::client(None)?, &registry_url, secret.expose())?;
        let mut registrations = Vec::new();
        for service in ["core", "recommendation"] {
            let instance = Instance::new(service, service, serve(answers()).await?);
            registrations.push(Registration::start(
                client.clone(),
                instance,
                Duration::from_secs(1),
                Duration::from_secs(10),
                CancellationToken::new(),
            ));
        }
        let takes = post(|_: axum::body::Bytes| async { StatusCode::ACCEPTED });
        let collector =
            Router::new().route("/api/v2/spans", takes).layer(DefaultBodyLimit::max(16 << 20));
        let (listener, stuffing) = black_hole()?;
        Ok(Self {
            registry_url,
            secret,
            collector: serve(collector).await?,
            dead: listener.local_addr()?,
            _kept: (registrations, listener, stuffing),
        })
    }
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn serve(router: Router) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(local()).await?;
    let addr = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(addr)
}

/// A listener whose backlog is taken: who connects waits.
fn black_hole() -> anyhow::Result<(std::net::TcpListener, Vec<std::net::TcpStream>)> {
    let listener = std::net::TcpListener::bind(local())?;
    let addr = listener.local_addr()?;
    let mut taken = Vec::new();
    // Linux rounds the backlog of 128 up.
    for _ in 0..256 {
        match std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(50)) {
            Ok(stream) => taken.push(stream),
            Err(_) => break,
        }
    }
    Ok((listener, taken))
}

fn answers() -> Router {
    let body = json!([{ "text": "x".repeat(BODY_BYTES) }]).to_string();
    let key = json!({"kty": "OKP", "crv": "Ed25519", "kid": "k", "alg": "EdDSA", "x": PUBLIC_KEY});
    let keys = json!({ "keys": [key] });
    let description =
        json!({"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": {}});
    Router::new()
        .route("/.well-known/jwks.json", get(|| async { axum::Json(keys) }))
        .route("/internal/openapi.json", get(|| async { axum::Json(description) }))
        .route("/internal/revocations", get(revocations))
        .fallback(|| async move { ([(http::header::CONTENT_TYPE, "application/json")], body) })
}

/// Nothing has ended, and nothing will.
async fn revocations() -> axum::Json<serde_json::Value> {
    tokio::time::sleep(Duration::from_millis(200)).await;
    axum::Json(json!({"logId": "l", "next": 0, "entries": []}))
}
