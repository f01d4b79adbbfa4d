//! Tourin's recommendation service: trend, similar spots, personal recommendations.
//!
//! It answers from its own stores: decayed scores of spots, members' histories, a replica of core's spots.
//! They are filled by events, and by a full reading of core's catalogue. Core is not on the path of a
//! request.
//!
//! `domain` has the rules, `app` the use cases and ports, `store` the ports on SQLite and MongoDB,
//! `cache` the trend on Redis, `consumers` the queues, `upstream` the calls to core, `http` the
//! contract.

pub mod app;
mod background;
mod batcher;
mod broker;
pub mod cache;
pub mod config;
pub mod consumers;
pub mod domain;
pub mod http;
mod metrics;
pub mod operation;
mod readiness;
#[cfg(test)]
mod scenario;
pub mod servers;
pub mod store;
#[cfg(test)]
mod test_servers;
pub mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::health::{Health, watch_certificate};
use tourin_chassis::http::{Admission, HttpLimits, Listener, bind, observed_router, serve};
use tourin_chassis::metrics::Metrics;
use tourin_chassis::pruning::PruneGuard;
use tourin_chassis::shutdown::{Shutdown, Tasks};
use tourin_chassis::telemetry::Service;
use tourin_registry_api::{Directory, Instance, Joined, Joining, Registration, Workload};
use tourin_shared_events::bus::Subscriber;
use tourin_shared_events::bus::rabbitmq::{NoBroker, RabbitBus, RabbitDeadLetters, RabbitSettings};
use tourin_shared_events::consumer::{ConsumerMetrics, QueueMetrics};
use tourin_shared_events::sqlite::{create_private_folder, hold_folder};

pub use crate::config::Settings;
pub use crate::consumers::subscriptions;
pub use crate::store::Stores;

use crate::app::audit::Audit;
use crate::app::ingest::{Guards, Ingest};
use crate::app::last_trend::LastTrend;
use crate::app::model::CoOccurrence;
use crate::app::recommend::Recommender;
use crate::app::resync::Resync;
use crate::background::ReplicaKeeper;
use crate::batcher::Failure;
use crate::consumers::QueueConsumer;
use crate::domain::content::ContentRules;
use crate::servers::{Pace, Prepared, Server};
use crate::upstream::core::{CORE, CoreClient};

/// The service's name in the registry, and the audience of identities made for it.
pub const SERVICE: &str = "recommendation";

/// How long tasks get to end after the last request, in milliseconds.
const TASKS_TIMEOUT_MS: u64 = 900;

/// How long closing the connection to the broker may take, in milliseconds.
const GOODBYE_MS: u64 = 500;

/// The source of events.
enum Events {
    InProcess(Arc<dyn Subscriber>),
    Broker(Box<RabbitSettings>),
}

/// What the service gets from its process.
pub struct Dependencies {
    /// The bus to consume from. A bus that drops events without a queue must know the queues of
    /// [`subscriptions`] before the first event is published. `None`: the broker of the settings.
    pub events: Option<Arc<dyn Subscriber>>,
    /// The identity of this instance. `None`: it joins by the token of the settings.
    pub workload: Option<Workload>,
    /// Stores shared with other replicas in this process. `None`: open the file in the data folder.
    pub stores: Option<Stores>,
    /// The time.
    pub clock: SharedClock,
}

impl Dependencies {
    /// The broker of the settings, and separate stores.
    pub fn new(clock: SharedClock) -> Self {
        Self { events: None, workload: None, stores: None, clock }
    }
}

/// The service, built and bound but not yet running.
pub struct Recommendation {
    settings: Settings,
    listener: TcpListener,
    addr: SocketAddr,
    joined: Joined,
    events: Events,
    consumers: Vec<QueueConsumer>,
    ingest: Ingest,
    guards: Guards,
    stores: Stores,
    clock: SharedClock,
    metrics: Metrics,
}

impl Recommendation {
    /// Opens the stores and binds the listener.
    ///
    /// # Errors
    /// When the registry's URL is invalid, there is no source of events, or the data folder or the
    /// address cannot be used.
    // Boxed, as is what runs it: a crate that awaits an `async fn` of another compiles it again.
    pub fn build(
        settings: Settings,
        dependencies: Dependencies,
    ) -> BoxFuture<'static, anyhow::Result<Self>> {
        Box::pin(async move {
            let events = match (dependencies.events, settings.broker()) {
                (Some(subscriber), _) => Events::InProcess(subscriber),
                (None, Some(broker)) => Events::Broker(Box::new(broker)),
                (None, None) => return Err(NoBroker.into()),
            };
            let clock = dependencies.clock;
            let stores = match dependencies.stores {
                Some(stores) => stores,
                None => open_stores(&settings, Arc::clone(&clock)).await?,
            };
            let ages = settings.rules.ages();
            let ingest = Ingest::new(
                Arc::clone(&stores.trend),
                Arc::clone(&stores.histories),
                Arc::clone(&stores.spots),
                Arc::clone(&clock),
                ages,
            );
            let passes = (Arc::clone(&stores.trend_passes), Arc::clone(&stores.history_passes));
            let guards = Guards::new(passes.0, passes.1, &clock);
            let max_ahead = Duration::from_secs(settings.rules.event_max_ahead_s);
            let metrics = Metrics::new(SERVICE);
            let of_consumers = ConsumerMetrics::default();
            metrics.with_registry(|registry| {
                of_consumers.register(registry);
                stores.metrics.register(registry);
            });
            let listener = bind(settings.listen).await?;
            let addr = listener.local_addr()?;
            let access = &settings.mesh.access;
            let id = settings.mesh.instance_id_or_new(SERVICE);
            let joining = Joining::new(access.registry(), (SERVICE, &id));
            let joined = joining
                .join(dependencies.workload)
                .await
                .context("cannot join the mesh of --registry-url")?;
            Ok(Self {
                settings,
                listener,
                addr,
                joined,
                events,
                consumers: consumers::all(&ingest, ages, max_ahead, &guards, &of_consumers),
                ingest,
                guards,
                stores,
                clock,
                metrics,
            })
        })
    }

    /// The metrics of each queue's consumer, by the queue's name.
    pub fn consumer_metrics(&self) -> Vec<(&'static str, QueueMetrics)> {
        self.consumers.iter().map(|each| (each.queue, each.metrics.clone())).collect()
    }

    /// The bound address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Consumes, registers once it is ready, serves until `stop`; then leaves the registry, lets
    /// requests in flight finish and ends its tasks, within four seconds.
    ///
    /// # Errors
    /// When the listener fails for good or an HTTP client cannot be set up.
    pub fn run_until_stopped(self, stop: Shutdown) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(async move {
            let service = Service::new(SERVICE).listening(self.addr);
            // Logs and spans outside of requests have the service's name, too.
            service.run(self.run(&service, stop)).await
        })
    }

    async fn run(mut self, service: &Service, stop: Shutdown) -> anyhow::Result<()> {
        // Background tasks end only after the gateways have stopped sending requests.
        let end = Shutdown::new();
        let tasks = Tasks::new(end.clone()).of_service(service).or_stop(stop.clone());
        let metrics = self.metrics.clone();
        let health = Health::new();
        let own = self.joined.workload.clone();
        watch_certificate(move || own.left(), (&health, &metrics));

        let (directory, following) = Directory::follow(self.joined.registry.clone(), end.token());
        tasks.spawn("registry follower", following);
        let (registry, token) = (health.register_optional("registry"), tasks.shutdown().token());
        let watching = background::watch_registry(directory.connected(), registry, token);
        tasks.spawn("registry watch", watching);
        let tls = self.joined.workload.client_config(CORE)?;
        let core = Arc::new(CoreClient::new(directory.clone(), tls)?);
        let (subscriber, bus) = self.start_bus(&tasks, &health);
        tasks.spawn(
            "store watcher",
            background::watch_store(
                self.stores.failure.clone(),
                health.register("store"),
                tasks.shutdown().token(),
            ),
        );
        let documents = self.watch_servers(&tasks, &health);
        let recommender = self.recommender();
        self.measure(&tasks, bus.as_ref());
        let audit = self.audit(&subscriber);
        let (first_reading, is_read) = Prepared::later();
        self.consume(subscriber, (&documents, &is_read), &tasks, &health);
        let keeper = self.replica_keeper(core, directory, first_reading, service, &health);
        let token = tasks.shutdown().token();
        tasks.spawn("replica keeper", documents.then(keeper.run(token.clone()), token));

        let limits = HttpLimits::default();
        let router = observed_router(
            (service.clone(), metrics.clone()),
            http::router(recommender, audit),
            Admission::new(SERVICE, http::CALLERS),
            health.clone(),
            &limits,
        );
        let mut instance = Instance::new(
            SERVICE,
            &*self.joined.workload.name().instance,
            self.settings.mesh.advertised(self.addr),
        );
        instance.metadata.extend(self.settings.mesh.metadata());
        let heartbeat = Duration::from_millis(self.settings.mesh.heartbeat_ms);
        let lease = Duration::from_millis(self.settings.mesh.lease_ms);
        let registry = self.joined.registry.clone();
        let drain_timeout = Duration::from_millis(self.settings.drain_timeout_ms);
        tracing::info!(addr = %self.addr, id = instance.id, "recommendation listening");
        let workload = &self.joined.workload;
        let mesh = &workload.name().mesh;
        let listener = Listener::with_tls(self.listener, workload.server_config(), mesh);
        // Requests are served until every gateway knows that the instance leaves.
        let drain = Shutdown::new();
        let serving = serve(listener, router, &limits, drain.clone(), drain_timeout);
        let membership = async {
            let departing = tokio::select! {
                () = readiness::reached(&health) => {
                    let registration =
                        Registration::start(registry, instance, heartbeat, lease, end.token());
                    stop.begun().await;
                    Some(registration.depart().await)
                }
                () = stop.begun() => None,
            };
            drain.begin();
            departing
        };
        let (served, departing) = tokio::join!(
            async {
                let served = serving.await;
                // A listener that fails ends the rest as well.
                stop.begin();
                served
            },
            membership
        );
        if let Some(departing) = departing {
            departing.finish(metrics.http().totals()).await;
        }
        end.begin();
        let finished = tasks.finish(Duration::from_millis(TASKS_TIMEOUT_MS)).await;
        if let Some(bus) = bus {
            let limit = Duration::from_millis(GOODBYE_MS);
            if timeout(limit, bus.close(limit)).await.is_err() {
                tracing::debug!("the broker did not say good-bye");
            }
        }
        served.context("the listener failed").and(finished)
    }

    /// The consuming side of the bus. A bus on a broker is started and watched here.
    fn start_bus(
        &self,
        tasks: &Tasks,
        health: &Health,
    ) -> (Arc<dyn Subscriber>, Option<RabbitBus>) {
        match &self.events {
            Events::InProcess(subscriber) => (Arc::clone(subscriber), None),
            Events::Broker(settings) => {
                let address = settings.url.address();
                let bus = RabbitBus::start((**settings).clone());
                let (ready, token) = (health.register("event bus"), tasks.shutdown().token());
                tasks.spawn("event bus", broker::watch(bus.clone(), address, ready, token));
                (Arc::new(bus.clone()), Some(bus))
            }
        }
    }

    /// Registers the metrics that are read when Prometheus scrapes.
    fn measure(&self, tasks: &Tasks, bus: Option<&RabbitBus>) {
        let metrics = &self.metrics;
        let letters = match bus {
            Some(bus) => {
                let queues = subscriptions().into_iter().map(|each| each.queue).collect();
                let letters = RabbitDeadLetters::new(bus.clone(), queues);
                metrics::of_bus(metrics, bus);
                metrics::Letters::AtBroker(letters)
            }
            None => metrics::Letters::Kept(Arc::clone(&self.stores.dead_letters)),
        };
        metrics::of_consumers(metrics, self.consumer_metrics(), &self.clock);
        let Guards { trend, histories } = self.guards.clone();
        PruneGuard::measure(vec![trend, histories], metrics);
        metrics::of_trend(metrics, &self.ingest, &self.clock);
        let gauge = metrics::of_dead_letters(metrics, letters);
        tasks.spawn("dead letter gauge", gauge.run(tasks.shutdown().token()));
    }

    /// Waits for the servers of stores and watches them. Returns the state of MongoDB's preparation.
    fn watch_servers(&self, tasks: &Tasks, health: &Health) -> Prepared {
        let watch = |server: &Option<Arc<dyn Server>>| {
            let Some(server) = server else { return Prepared::already() };
            let (ready, token) =
                (health.register(server.engine().name()), tasks.shutdown().token());
            let (sender, prepared) = Prepared::later();
            let check_interval = self.settings.readiness.interval();
            let pace = Pace { check_interval, ..Pace::default() };
            let watching = servers::supervise(Arc::clone(server), ready, sender, pace, token);
            tasks.spawn(server.engine().name(), watching);
            prepared
        };
        watch(&self.stores.embedded);
        watch(&self.stores.trend_server);
        watch(&self.stores.document_server)
    }

    /// Consumes each queue. Events of spots wait for the first reading of the catalogue.
    fn consume(
        &mut self,
        subscriber: Arc<dyn Subscriber>,
        (documents, first_reading): (&Prepared, &Prepared),
        tasks: &Tasks,
        health: &Health,
    ) {
        for consumer in std::mem::take(&mut self.consumers) {
            let queue = consumer.queue;
            let begin = match queue {
                consumers::TREND => Prepared::already(),
                consumers::HISTORY => documents.clone(),
                _ => first_reading.clone(),
            };
            let token = tasks.shutdown().token();
            let running = consumer.run(
                Arc::clone(&subscriber),
                Arc::clone(&self.clock),
                health.register(queue),
                begin,
                token,
            );
            tasks.spawn(queue, running);
        }
        let token = tasks.shutdown().token();
        let pruning = background::prune(self.ingest.clone(), self.guards.clone(), token);
        tasks.spawn("pruning", pruning);
    }

    fn replica_keeper(
        &self,
        core: Arc<CoreClient>,
        directory: Directory,
        first_reading: watch::Sender<bool>,
        service: &Service,
        health: &Health,
    ) -> ReplicaKeeper {
        let spots = Arc::clone(&self.stores.spots);
        ReplicaKeeper {
            resync: Resync::new(core, Arc::clone(&spots)),
            spots,
            directory,
            ready: health.register(readiness::REPLICA),
            interval: Duration::from_secs(self.settings.resync_interval_s),
            service: service.clone(),
            first_reading,
        }
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
            history_limit: rules.history_limit,
            clock: Arc::clone(&self.clock),
            last_trend: LastTrend::new(&self.metrics),
            was_complete: Arc::default(),
        }
    }

    fn audit(&self, events: &Arc<dyn Subscriber>) -> Audit {
        Audit {
            trend: Arc::clone(&self.stores.trend),
            histories: Arc::clone(&self.stores.histories),
            half_life: self.settings.rules.trend().half_life,
            clock: Arc::clone(&self.clock),
            events: Arc::clone(events),
            consumers: self.consumer_metrics(),
        }
    }
}

/// Opens the stores: each on its server if the settings name one, else in the data folder, which is created
/// with access for its owner only. Does not wait for servers; the service does. Replicas in one process share
/// the result.
///
/// # Errors
/// When the folder, the file in it or a server's URL cannot be used.
pub async fn open_stores(settings: &Settings, clock: SharedClock) -> anyhow::Result<Stores> {
    let folder = &settings.data_dir;
    create_private_folder(folder)
        .with_context(|| format!("--data-dir {}: cannot make the folder", folder.display()))?;
    let using = || format!("--data-dir {}", folder.display());
    let held = hold_folder(folder, SERVICE).with_context(using)?;
    let rules = &settings.rules;
    let mut stores =
        Stores::open(&settings.file(), rules.trend(), rules.histories(), Arc::clone(&clock))
            .await
            .with_context(using)?;
    stores.held = Some(Arc::new(held));
    let servers = &settings.servers;
    if let Some(url) = servers.redis() {
        let prefix = &servers.recommendation_redis_prefix;
        let redis =
            cache::redis::open(url, prefix, rules.trend(), Arc::clone(&clock), &stores.metrics)
                .context("--redis-url")?;
        stores.trend = redis.trend;
        stores.trend_passes = redis.passes;
        stores.trend_server = Some(redis.server);
    }
    if let Some(url) = servers.mongodb() {
        let documents = store::mongodb::open(url, rules.histories(), clock, &stores.metrics)
            .await
            .context("--mongodb-url")?;
        stores.histories = documents.histories;
        stores.spots = documents.spots;
        stores.history_passes = documents.passes;
        stores.document_server = Some(documents.server);
    }
    if stores.trend_server.is_some() && stores.document_server.is_some() {
        // The file then has dead letters alone, which do not use its writer.
        stores.failure = Failure::never();
        stores.embedded = None;
    }
    Ok(stores)
}
