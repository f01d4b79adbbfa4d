//! A mesh around the measured programs: the registry, two services that answer at once, a consumer of
//! all events, a collector that takes spans and one that never answers.

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
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitSettings};
use tourin_shared_events::bus::{Binding, Settlement, Subscriber as _, Subscription};
use tourin_shared_events::events::{TOUR_SPOT_EXCHANGE, USER_EXCHANGE};
use uuid::Uuid;

/// Ed25519's base point: a valid public key that signs nothing here.
const PUBLIC_KEY: &str = "WGZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmY";
/// As many bytes as a page of a few spots has.
const BODY_BYTES: usize = 1_024;

/// The mesh. It ends with the process.
pub struct Mesh {
    pub registry_url: String,
    pub secret: Secret,
    /// Where core's events go.
    pub amqp_url: String,
    /// What the names of this mesh's exchanges and queues begin with.
    pub amqp_prefix: String,
    /// Takes spans.
    pub collector: SocketAddr,
    /// Accepts nothing: its backlog is full.
    pub dead: SocketAddr,
    _kept: (Vec<Registration>, std::net::TcpListener, Vec<std::net::TcpStream>),
}

impl Mesh {
    /// Starts it, with the broker at `amqp_url`.
    ///
    /// # Errors
    /// When a listener cannot be bound, or the broker cannot be reached.
    pub async fn start(amqp_url: &str) -> anyhow::Result<Self> {
        let amqp_prefix = format!("bench-{}.", Uuid::now_v7().simple());
        consume_all(amqp_url, &amqp_prefix).await?;
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
            amqp_url: amqp_url.to_owned(),
            amqp_prefix,
            collector: serve(collector).await?,
            dead: listener.local_addr()?,
            _kept: (registrations, listener, stuffing),
        })
    }
}

/// Takes every event from the broker. Without a queue for them core would publish its events again
/// and again, and export the span of each attempt because it was slow.
async fn consume_all(amqp_url: &str, prefix: &str) -> anyhow::Result<()> {
    let settings = RabbitSettings::new(amqp_url.parse()?);
    let bus = RabbitBus::start(RabbitSettings { prefix: prefix.to_owned(), ..settings });
    let exchanges = [TOUR_SPOT_EXCHANGE, USER_EXCHANGE];
    let bindings = exchanges.map(|exchange| Binding::new(exchange, "#")).into();
    let mut deliveries = bus.subscribe(Subscription::new("all", bindings)).await?;
    tokio::spawn(async move {
        let _bus = bus;
        while let Some(delivery) = deliveries.next().await {
            // An event that could not be settled comes again.
            let _settled = delivery.settle(Settlement::Ack).await;
        }
    });
    Ok(())
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

/// A listener with a full backlog: clients wait for a connection.
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
    let visitor_key = json!({"key": "A".repeat(43), "msLeft": 24 * 3_600 * 1_000});
    let description =
        json!({"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": {}});
    Router::new()
        .route("/.well-known/jwks.json", get(|| async { axum::Json(keys) }))
        .route("/internal/openapi.json", get(|| async { axum::Json(description) }))
        .route("/internal/revocations", get(revocations))
        .route("/internal/visitor-key", get(|| async { axum::Json(visitor_key) }))
        .fallback(|| async move { ([(http::header::CONTENT_TYPE, "application/json")], body) })
}

/// An empty log of ended sessions.
async fn revocations() -> axum::Json<serde_json::Value> {
    tokio::time::sleep(Duration::from_millis(200)).await;
    axum::Json(json!({"logId": "l", "next": 0, "entries": []}))
}
