//! Tourin's registry: discovery of service instances, and the authority of their certificates.
//!
//! Instances hold leases. Watchers get every change in order, and acknowledge it when it is in effect.
//! A registry that is alone has all of that in memory: after a restart instances register again within a
//! heartbeat, and watchers keep the last known instances until then (see [`tourin_registry_api::Directory`]).
//! Several registries share it in Redis, and any of them serves.

pub mod app;
pub mod authority;
pub mod config;
pub mod domain;
mod http;
mod store;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;
mod verify;

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tourin_chassis::clock::{SharedClock, SystemClock};
use tourin_chassis::health::{Health, watch_certificate};
use tourin_chassis::http::{Admission, HttpLimits, Listener, bind, observed_router, serve};
use tourin_chassis::metrics::Metrics;
use tourin_chassis::shutdown::{Shutdown, Tasks};
use tourin_chassis::telemetry::Service;

use crate::app::Discovery;
use crate::app::ports::{Store, TokenUses, Verifier};
use crate::authority::{Authority, hold_folder};
pub use crate::config::Settings;
use crate::store::memory::MemoryStore;
use crate::store::redis::{Redis, RedisStore, RedisUses};
use crate::verify::TlsVerifier;

const SERVICE: &str = "registry";
/// Largest request body (bytes): a registration with all the metadata that is allowed, escaped.
const MAX_BODY_BYTES: usize = 16 * 1024;
const DRAIN_TIMEOUT_MS: u64 = 2_500;

/// The registry, bound but not yet serving.
pub struct Registry {
    listener: TcpListener,
    addr: SocketAddr,
    discovery: Arc<Discovery>,
    store: Arc<dyn Store>,
    uses: Arc<dyn TokenUses>,
    authority: Arc<Authority>,
    health: Health,
    /// The lock that keeps a second registry out of the data folder.
    held: File,
}

impl Registry {
    /// Locks the data folder, opens the authority's files and binds the listener.
    ///
    /// # Errors
    /// When another registry runs on the folder, a file cannot be used, or the address cannot be bound.
    // Boxed, as is what runs it: a crate that awaits an `async fn` of another compiles it again.
    pub fn build(settings: Settings) -> BoxFuture<'static, anyhow::Result<Self>> {
        Box::pin(async move {
            ensure!(
                settings.authority_certificates.is_some() == settings.authority_key.is_some(),
                "--authority-certificates and --authority-key belong together: one is missing"
            );
            ensure!(
                settings.redis().is_none() || settings.authority_key.is_some(),
                "--registry-redis-url: registries that share a Redis need one authority; give each the same \
                 --authority-certificates and --authority-key"
            );
            let listener = bind(settings.listen).await?;
            let addr = listener.local_addr()?;
            let held = hold_folder(&settings.data_dir)?;
            let clock: SharedClock = Arc::new(SystemClock);
            let authority = Authority::open(settings.authority(), Arc::clone(&clock))?;
            // Instances may wait for the files of their tokens.
            authority.maintain()?;
            let (health, limits) = (Health::new(), settings.catalogue_limits());
            let redis = settings
                .redis()
                .map(|url| Redis::new(url, &settings.registry_redis_prefix, limits.history));
            let redis = redis.transpose()?;
            let uses: Arc<dyn TokenUses> = match redis.clone() {
                Some(redis) => Arc::new(RedisUses::new(redis)),
                None => Arc::new(authority.uses().clone()),
            };
            let store: Arc<dyn Store> = match redis {
                Some(redis) => Arc::new(RedisStore::new(redis, limits, health.register("redis"))),
                None => {
                    let file = settings.data_dir.join("overrides.json");
                    Arc::new(MemoryStore::open(limits, clock, file)?)
                }
            };
            let verifier =
                settings.verify_registrations.then(|| authority.registry()).transpose()?;
            let verifier = verifier.map(|own| Arc::new(TlsVerifier::new(own)) as Arc<dyn Verifier>);
            let watchers = settings.watcher_limits();
            let discovery = Discovery::new(Arc::clone(&store), verifier, watchers);
            let authority = authority.into();
            Ok(Self { listener, addr, discovery, store, uses, authority, health, held })
        })
    }

    /// The bound address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The authority, for instances in this process.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Serves until `stop`, then ends the watches and drains open requests, within three seconds.
    ///
    /// # Errors
    /// When the listener fails.
    pub fn run_until_stopped(self, stop: Shutdown) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(async move {
            let Self { listener, addr, discovery, store, uses, authority, health, held } = self;
            let service = Service::new(SERVICE).listening(addr);
            let metrics = measured(&discovery);
            let tasks = Tasks::new(stop.clone()).of_service(&service).or_stop(stop.clone());
            tasks.spawn("lease sweeper", Arc::clone(&discovery).sweep(stop.clone()));

            let (kept, until) = (Arc::clone(&store), stop.clone());
            tasks.spawn("instances", async move { kept.keep(until).await });
            tasks.spawn("authority", Arc::clone(&authority).keep(stop.clone()));

            let identity = authority.registry()?;
            let own = identity.clone();
            watch_certificate(move || own.left(), (&health, &metrics));
            let limits = HttpLimits { body_bytes: MAX_BODY_BYTES, ..HttpLimits::default() };
            let shared = http::Shared { discovery, authority, uses, stop: stop.clone() };
            let admission = Admission::new(SERVICE, http::CALLERS);
            let observer = (service, metrics);
            let router =
                observed_router(observer, http::routes(shared), admission, health, &limits);
            let tls = identity.server_config_for_joining();
            let listener = Listener::with_tls(listener, tls, &identity.name().mesh);
            tracing::info!(%addr, "registry listening");
            serve(listener, router, &limits, stop, Duration::from_millis(DRAIN_TIMEOUT_MS)).await?;
            let finished = tasks.finish(Duration::from_millis(500)).await;
            drop(held);
            finished
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
            let labels = |(service, status)| vec![("service", service), ("status", status)];
            let counts = asked.instance_counts().into_iter();
            counts.map(|(of, count)| (labels(of), count as f64)).collect()
        },
    );
    let asked = Arc::clone(discovery);
    metrics.gauges_read(
        "tourin_registry_protected",
        "Instances that stay without a lease because too many leases ended at once, by service",
        move || {
            let counts = asked.kept_counts().into_iter();
            counts.map(|(service, count)| (vec![("service", service)], count as f64)).collect()
        },
    );
    let asked = Arc::clone(discovery);
    metrics.gauge_read("tourin_registry_watchers", "Open watches", move || {
        Some(asked.watcher_count() as f64)
    });
    metrics
}
