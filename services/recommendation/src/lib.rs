//! Tourin's recommendation service: trend, similar spots, personal recommendations.
//!
//! It answers from what it keeps itself: decayed scores of spots, members' histories, a replica of
//! core's spots. Events bring all of it, and a full reading of core's catalogue whatever events
//! cannot; core is not on the path of a request.
//!
//! `domain` has the rules, `app` the use cases and ports, `store` the ports on SQLite, `consumers`
//! the queues, `upstream` the calls to core, `http` the contract.

pub mod app;
mod background;
pub mod config;
pub mod consumers;
pub mod domain;
pub mod http;
#[cfg(test)]
mod scenario;
pub mod store;
pub mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::health::Health;
use tourin_chassis::http::{HttpLimits, bind, serve, service_router};
use tourin_chassis::identity::{IdentitySigner, IdentityVerifier};
use tourin_chassis::shutdown::{Shutdown, Tasks};
use tourin_registry_api::{Directory, Instance, Registration, RegistryClient};
use tourin_shared_events::bus::Subscriber;
use tourin_shared_events::bus::feed::{FeedSettings, FeedStats, FeedSubscriber};
use tourin_shared_events::sqlite::{create_private_folder, hold_folder};

pub use crate::config::Settings;
pub use crate::consumers::subscriptions;
pub use crate::store::Stores;

use crate::app::ingest::Ingest;
use crate::app::model::CoOccurrence;
use crate::app::recommend::Recommender;
use crate::app::resync::Resync;
use crate::background::ReplicaKeeper;
use crate::domain::content::ContentRules;
use crate::upstream::core::CoreClient;

/// The service's name in the registry, and the audience of identities made for it.
pub const SERVICE: &str = "recommendation";

/// How long an instance that is not ready yet waits before it registers all the same: with core
/// away for longer, an answer from an empty replica is better than none at all.
const REGISTER_AFTER: Duration = Duration::from_secs(5);
/// How often readiness is looked at while it is waited for.
const READY_POLL: Duration = Duration::from_millis(10);
/// How long tasks get to end after the last request, in milliseconds.
const TASKS_TIMEOUT_MS: u64 = 900;

/// The bus's consuming side.
type Events = Arc<dyn Subscriber>;

/// What the service is given by whoever runs it.
pub struct Dependencies {
    /// The bus to consume from. A bus that forgets what no queue has taken must know the queues of [`subscriptions`]
    /// before anybody publishes. `None`: follow core's feed over HTTP, which services in separate
    /// processes on embedded stores do.
    pub events: Option<Arc<dyn Subscriber>>,
    /// Stores shared with other replicas in this process. `None`: open the file in the data folder.
    pub stores: Option<Stores>,
    /// The time.
    pub clock: SharedClock,
}

impl Dependencies {
    /// No bus, stores of its own.
    pub fn new(clock: SharedClock) -> Self {
        Self { events: None, stores: None, clock }
    }
}

/// The service, built and bound but not yet running.
pub struct Recommendation {
    settings: Settings,
    listener: TcpListener,
    addr: SocketAddr,
    registry: RegistryClient,
    events: Option<Arc<dyn Subscriber>>,
    stores: Stores,
    clock: SharedClock,
}

impl Recommendation {
    /// Opens the stores and binds the listener.
    ///
    /// # Errors
    /// When the registry's URL is not one, the data folder cannot be used, or the address cannot be
    /// listened on.
    pub async fn build(settings: Settings, dependencies: Dependencies) -> anyhow::Result<Self> {
        let secret = settings.mesh.registration_secret.expose();
        let registry =
            RegistryClient::new(&settings.mesh.registry_url, secret).context("--registry-url")?;
        let stores = match dependencies.stores {
            Some(stores) => stores,
            None => open_stores(&settings, Arc::clone(&dependencies.clock)).await?,
        };
        let listener = bind(settings.listen).await?;
        let addr = listener.local_addr()?;
        Ok(Self {
            settings,
            listener,
            addr,
            registry,
            events: dependencies.events,
            stores,
            clock: dependencies.clock,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Consumes, registers once it is ready, serves until `stop`; then leaves the registry, lets
    /// requests in flight finish and ends its tasks, within four seconds.
    ///
    /// # Errors
    /// When the listener fails for good or an HTTP client cannot be set up.
    pub async fn run_until_stopped(self, stop: Shutdown) -> anyhow::Result<()> {
        // The mesh must have stopped sending before anything here ends.
        let end = Shutdown::new();
        let tasks = Tasks::new(end.clone()).or_stop(stop.clone());
        let health = Health::new();

        let (directory, following) = Directory::follow(self.registry.clone(), end.token());
        tasks.spawn("registry follower", following);
        let secret = &self.settings.mesh.registration_secret;
        let core = Arc::new(CoreClient::new(directory.clone(), IdentitySigner::new(secret))?);
        let (subscriber, feed) = self.subscriber(&core)?;
        tasks.spawn(
            "store watcher",
            background::watch_store(
                self.stores.failure.clone(),
                health.register("store"),
                tasks.shutdown().token(),
            ),
        );
        self.consume(subscriber, &tasks, &health);
        self.keep_replica(core, directory, feed, &tasks, &health);

        let limits = HttpLimits::default();
        let router = service_router(
            SERVICE,
            http::router(self.recommender()),
            IdentityVerifier::new(secret, SERVICE),
            health.clone(),
            &limits,
        );
        let instance = Instance::new(
            SERVICE,
            self.settings.mesh.instance_id_or_new(SERVICE),
            self.settings.mesh.advertised(self.addr),
        );
        let heartbeat = Duration::from_millis(self.settings.mesh.heartbeat_ms);
        let lease = Duration::from_millis(self.settings.mesh.lease_ms);
        let registry = self.registry.clone();
        let drain_timeout = Duration::from_millis(self.settings.drain_timeout_ms);
        tracing::info!(addr = %self.addr, id = instance.id, "recommendation listening");
        let serving = serve(self.listener, router, &limits, end.clone(), drain_timeout);
        let membership = async {
            tokio::select! {
                () = ready(&health) => {
                    let registration =
                        Registration::start(registry, instance, heartbeat, lease, end.token());
                    stop.begun().await;
                    registration.leave().await;
                }
                () = stop.begun() => {}
            }
            end.begin();
        };
        let (served, ()) = tokio::join!(
            async {
                let served = serving.await;
                // A listener that fails ends the rest as well.
                stop.begin();
                served
            },
            membership
        );
        let finished = tasks.finish(Duration::from_millis(TASKS_TIMEOUT_MS)).await;
        served.context("the listener failed").and(finished)
    }

    /// The bus that was given, or the follower of core's feed with its counters.
    fn subscriber(
        &self,
        core: &Arc<CoreClient>,
    ) -> anyhow::Result<(Events, Option<Arc<FeedStats>>)> {
        if let Some(events) = &self.events {
            return Ok((Arc::clone(events), None));
        }
        let clock = Arc::clone(&self.clock);
        let feed = FeedSubscriber::new(
            Arc::clone(core) as _,
            Arc::clone(&self.stores.cursor),
            Arc::clone(&self.stores.dead_letters),
            Arc::new(move || clock.now()),
            FeedSettings::default(),
        )?;
        let stats = feed.stats();
        Ok((Arc::new(feed), Some(stats)))
    }

    fn ingest(&self) -> Ingest {
        Ingest::new(
            Arc::clone(&self.stores.trend),
            Arc::clone(&self.stores.histories),
            Arc::clone(&self.stores.spots),
            Arc::clone(&self.clock),
            self.settings.rules.ages(),
        )
    }

    fn consume(&self, subscriber: Arc<dyn Subscriber>, tasks: &Tasks, health: &Health) {
        let ingest = self.ingest();
        for consumer in consumers::all(&ingest, self.settings.rules.ages()) {
            let queue = consumer.queue;
            let running = consumer.run(
                Arc::clone(&subscriber),
                Arc::clone(&self.clock),
                health.register(queue),
                tasks.shutdown().token(),
            );
            tasks.spawn(queue, running);
        }
        tasks.spawn("pruning", background::prune(ingest, tasks.shutdown().token()));
    }

    fn keep_replica(
        &self,
        core: Arc<CoreClient>,
        directory: Directory,
        feed: Option<Arc<FeedStats>>,
        tasks: &Tasks,
        health: &Health,
    ) {
        let spots = Arc::clone(&self.stores.spots);
        let keeper = ReplicaKeeper {
            resync: Resync::new(core, Arc::clone(&spots)),
            spots,
            directory,
            ready: health.register("replica of spots"),
            interval: Duration::from_secs(self.settings.resync_interval_s),
            feed,
        };
        tasks.spawn("replica keeper", keeper.run(tasks.shutdown().token()));
    }

    fn recommender(&self) -> Recommender {
        let rules = &self.settings.rules;
        Recommender {
            trend: Arc::clone(&self.stores.trend),
            histories: Arc::clone(&self.stores.histories),
            spots: Arc::clone(&self.stores.spots),
            model: Arc::new(CoOccurrence::new(
                Arc::clone(&self.stores.histories),
                rules.co_occurrence(),
            )),
            content: ContentRules::default(),
            history_limit: usize::from(rules.history_limit),
            clock: Arc::clone(&self.clock),
        }
    }
}

/// Opens the stores in the settings' data folder, making the folder, for its owner only, if need be. Replicas in one
/// process share what this returns.
///
/// # Errors
/// When the folder or the file in it cannot be used.
pub async fn open_stores(settings: &Settings, clock: SharedClock) -> anyhow::Result<Stores> {
    let folder = &settings.data_dir;
    create_private_folder(folder)
        .with_context(|| format!("--data-dir {}: cannot make the folder", folder.display()))?;
    let using = || format!("--data-dir {}", folder.display());
    let held = hold_folder(folder, SERVICE).with_context(using)?;
    let rules = &settings.rules;
    let stores = Stores::open(&settings.file(), rules.trend(), rules.histories(), clock)
        .await
        .with_context(using)?;
    Ok(Stores { held: Some(Arc::new(held)), ..stores })
}

/// Waits until the service can answer, or long enough.
async fn ready(health: &Health) {
    let all_ready = async {
        while !health.unready().is_empty() {
            tokio::time::sleep(READY_POLL).await;
        }
    };
    if tokio::time::timeout(REGISTER_AFTER, all_ready).await.is_err() {
        tracing::warn!(unready = ?health.unready(), "not ready, but registering all the same");
    }
}
