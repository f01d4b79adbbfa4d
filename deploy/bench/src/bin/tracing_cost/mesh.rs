//! What is around the measured programs: a mesh, a consumer of all events, a collector that takes spans and
//! one that never answers.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::post;
use http::StatusCode;
use tourin_bench::mesh::{Mesh, local};
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitSettings};
use tourin_shared_events::bus::{Binding, Settlement, Subscriber as _, Subscription};
use tourin_shared_events::events::{TOUR_SPOT_EXCHANGE, USER_EXCHANGE};
use uuid::Uuid;

/// All of it. It ends with the process.
pub struct Surroundings {
    pub mesh: Mesh,
    /// Where core's events go.
    pub amqp_url: String,
    /// What the names of this mesh's exchanges and queues begin with.
    pub amqp_prefix: String,
    /// Takes spans.
    pub collector: SocketAddr,
    /// Accepts nothing: its backlog is full.
    pub dead: SocketAddr,
    _kept: (std::net::TcpListener, Vec<std::net::TcpStream>),
}

impl Surroundings {
    /// Starts it, with the broker at `amqp_url`.
    ///
    /// # Errors
    /// When a listener cannot be bound, or the broker cannot be reached.
    pub async fn start(amqp_url: &str) -> anyhow::Result<Self> {
        let amqp_prefix = format!("bench-{}.", Uuid::now_v7().simple());
        consume_all(amqp_url, &amqp_prefix).await?;
        let takes = post(|_: axum::body::Bytes| async { StatusCode::ACCEPTED });
        let collector =
            Router::new().route("/api/v2/spans", takes).layer(DefaultBodyLimit::max(16 << 20));
        let (listener, stuffing) = black_hole()?;
        Ok(Self {
            mesh: Mesh::start().await?,
            amqp_url: amqp_url.to_owned(),
            amqp_prefix,
            collector: serve(collector).await?,
            dead: listener.local_addr()?,
            _kept: (listener, stuffing),
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
