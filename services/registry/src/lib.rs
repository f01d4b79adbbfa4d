//! Tourin's registry: discovery of service instances.
//!
//! Instances hold leases. Watchers get every change in order, and acknowledge it when it is in effect.
//! Everything is in memory: after a restart instances register again within a heartbeat, and watchers
//! keep the last known instances until then (see [`tourin_registry_api::Directory`]).

pub mod app;
pub mod config;
pub mod domain;
mod http;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tourin_chassis::clock::SystemClock;
use tourin_chassis::health::Health;
use tourin_chassis::http::{HttpLimits, bind, observed_router, serve};
use tourin_chassis::identity::IdentityVerifier;
use tourin_chassis::metrics::Metrics;
use tourin_chassis::shutdown::{Shutdown, Tasks};
use tourin_chassis::telemetry::Service;

use crate::app::Discovery;
pub use crate::config::Settings;

const SERVICE: &str = "registry";
/// Largest request body (bytes): a registration with all the metadata that is allowed, escaped.
const MAX_BODY_BYTES: usize = 16 * 1024;
const DRAIN_TIMEOUT_MS: u64 = 2_500;

/// The registry, bound but not yet serving.
#[derive(Debug)]
pub struct Registry {
    listener: TcpListener,
    addr: SocketAddr,
    discovery: Arc<Discovery>,
    settings: Settings,
}

impl Registry {
    /// Binds the listener.
    ///
    /// # Errors
    /// When the address cannot be bound.
    // Boxed, as is what runs it: a crate that awaits an `async fn` of another compiles it again.
    pub fn build(settings: Settings) -> BoxFuture<'static, anyhow::Result<Self>> {
        Box::pin(async move {
            let listener = bind(settings.listen).await?;
            let addr = listener.local_addr()?;
            let discovery = Discovery::new(settings.limits(), Arc::new(SystemClock));
            Ok(Self { listener, addr, discovery, settings })
        })
    }

    /// The bound address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop`, then ends the watches and drains open requests, within three seconds.
    ///
    /// # Errors
    /// When the listener fails.
    pub fn run_until_stopped(self, stop: Shutdown) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(async move {
            let Self { listener, addr, discovery, settings } = self;
            let service = Service::new(SERVICE).listening(addr);
            let metrics = measured(&discovery);
            let tasks = Tasks::new(stop.clone()).of_service(&service).or_stop(stop.clone());
            tasks.spawn("lease sweeper", Arc::clone(&discovery).sweep(stop.clone()));

            let secret = settings.registration_secret;
            let verifier = IdentityVerifier::new(&secret, SERVICE);
            let limits = HttpLimits { body_bytes: MAX_BODY_BYTES, ..HttpLimits::default() };
            let routes = http::routes(http::Shared { discovery, secret, stop: stop.clone() });
            let router =
                observed_router((service, metrics), routes, verifier, Health::new(), &limits);
            tracing::info!(%addr, "registry listening");
            serve(listener, router, &limits, stop, Duration::from_millis(DRAIN_TIMEOUT_MS)).await?;
            tasks.finish(Duration::from_millis(500)).await
        })
    }
}

fn measured(discovery: &Arc<Discovery>) -> Metrics {
    let metrics = Metrics::new(SERVICE);
    let asked = Arc::clone(discovery);
    metrics.gauges_read(
        "tourin_registry_instances",
        "Instances with a lease, by service and status",
        move || {
            let labels =
                |service, status: &str| vec![("service", service), ("status", status.to_owned())];
            let counts = asked.instance_counts().into_iter();
            counts.map(|((name, status), count)| (labels(name, status), count as f64)).collect()
        },
    );
    let asked = Arc::clone(discovery);
    metrics.gauge_read("tourin_registry_watchers", "Open watches", move || {
        Some(asked.watcher_count() as f64)
    });
    metrics
}
