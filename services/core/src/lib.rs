//! Tourin's core service: accounts and tokens, tour spots, reviews, bookmarks.
//!
//! [`Core::build`] binds the address, opens the store and migrates it. While it waits for a database
//! on a server, it is alive but not ready. Then [`Core::run_until_stopped`] registers and serves. On
//! the stop it leaves the registry, drains and ends its tasks, in that order and within 4 s.

pub mod app;
mod assemble;
mod background;
mod broker;
pub mod config;
pub mod domain;
pub mod http;
mod metrics;
mod signals;
mod startup;
pub mod store;
#[cfg(test)]
mod testing;

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::health::{Health, watch_certificate};
use tourin_chassis::http::{
    Admission, ApiError, HttpLimits, Listener, bind, observed_router, serve,
};
use tourin_chassis::metrics::Metrics;
use tourin_chassis::shutdown::{Shutdown, Tasks};
use tourin_chassis::telemetry::{Service, Span};
use tourin_registry_api::{Instance, Joined, Joining, Registration, Workload};
use tourin_shared_events::bus::Publisher;
use tourin_shared_events::bus::rabbitmq::{NoBroker, RabbitBus, RabbitSettings};
pub use tourin_shared_events::mysql::MysqlUrl;
use tourin_shared_events::outbox::OutboxStore;
use tourin_shared_events::sqlite::{create_private_folder, hold_folder};

pub use self::config::Settings;
use crate::app::import::load_catalogue;
use crate::app::signing::SigningKeys;
use crate::config::TokenSettings;
use crate::http::{AppState, messages};
use crate::store::Store;
use crate::store::key_files::{read_or_create_signing_key, read_previous_keys, read_signing_key};
use crate::store::mysql::MysqlStore;
use crate::store::redis::{MysqlRedisStore, RedisSessions};
use crate::store::sqlite::SqliteStore;

/// The service's name in the registry and in certificates.
pub const SERVICE: &str = "core";

/// How long background tasks may take to end after the drain.
const TASKS_LIMIT: Duration = Duration::from_millis(500);

/// How long the connections to the database may take to close.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// How long an operator's interactive command waits for the database's server.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// Provided by the process that runs the service.
pub struct Dependencies {
    /// The in-process bus for events. `None`: events go to the broker in the settings.
    pub publisher: Option<Arc<dyn Publisher>>,
    /// What time it is.
    pub clock: SharedClock,
    /// The identity of this instance. `None`: it joins by the token of the settings.
    pub workload: Option<Workload>,
}

enum Events {
    InProcess(Arc<dyn Publisher>),
    Broker(Box<RabbitSettings>),
}

/// The core service, bound to its address, before its store is open.
pub struct Bound {
    settings: Settings,
    listener: TcpListener,
    address: SocketAddr,
    joined: Joined,
    events: Events,
    clock: SharedClock,
    sessions: Option<RedisSessions>,
    keys: SigningKeys,
    held: File,
}

impl Bound {
    /// The address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Opens the store, migrates it, and loads the catalogue at the first start. Waits for a database
    /// server without limit; meanwhile `/healthz` responds 200, `/readyz` names the server, and
    /// everything else responds 503. Drop the future to stop waiting. Does not wait for the broker:
    /// events stay in the outbox until it is reachable.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub fn open(self) -> BoxFuture<'static, anyhow::Result<Core>> {
        Box::pin(async move {
            // Attributes the log lines of the wait to this service.
            let service = Service::new(SERVICE).listening(self.address);
            service.run(self.open_store()).await
        })
    }

    async fn open_store(self) -> anyhow::Result<Core> {
        let Self { settings, listener, address, joined, events, clock, sessions, keys, held } =
            self;
        let also = sessions.as_ref().map(|redis| format!(" and redis at {}", redis.address()));
        let opening = open_store(&settings, sessions, &clock);
        let (listener, store) = match settings.database.mysql() {
            Some(url) => {
                let (listener, meanwhile) = startup::share(listener)?;
                let meanwhile = Listener::with_tls(
                    meanwhile,
                    joined.workload.server_config(),
                    &joined.workload.name().mesh,
                );
                let waits_for = format!("mysql at {url}{}", also.unwrap_or_default());
                tracing::info!(addr = %address, waits_for, "core is opening its store; until then it answers 503");
                let store = startup::serve_while_opening(meanwhile, &waits_for, opening).await?;
                (listener, store)
            }
            None => (listener, opening.await?),
        };

        let stopping = Shutdown::new();
        let metrics = Metrics::new(SERVICE);
        let state = assemble::assemble(&settings, &store, keys, &clock, &stopping, &metrics)?;
        Ok(Core {
            settings,
            listener,
            address,
            joined,
            events,
            store,
            state,
            stopping,
            clock,
            metrics,
            held,
        })
    }
}

/// The core service, ready to serve.
pub struct Core {
    settings: Settings,
    listener: TcpListener,
    address: SocketAddr,
    joined: Joined,
    events: Events,
    store: Store,
    state: AppState,
    stopping: Shutdown,
    clock: SharedClock,
    metrics: Metrics,
    /// The lock that keeps a second core out of the data folder.
    held: File,
}

impl Core {
    /// [`Core::bind`], then [`Bound::open`].
    ///
    /// # Errors
    /// The errors of both.
    // Boxed, as is what runs it: a crate that awaits an `async fn` of another compiles it again.
    pub fn build(
        settings: Settings,
        dependencies: Dependencies,
    ) -> BoxFuture<'static, anyhow::Result<Self>> {
        Box::pin(async move { Self::bind(settings, dependencies).await?.open().await })
    }

    /// Checks the settings, locks the data folder, binds the address and joins the mesh. Waits for the
    /// registry without limit.
    ///
    /// # Errors
    /// When a setting is invalid, no bus or broker is given, the data folder cannot be used, the address is
    /// taken, or the registry refuses the join token.
    pub fn bind(
        settings: Settings,
        dependencies: Dependencies,
    ) -> BoxFuture<'static, anyhow::Result<Bound>> {
        Box::pin(async move {
            settings.tokens.policy()?;
            settings.signals.check()?;
            let Dependencies { publisher, clock, workload } = dependencies;
            let events = match (publisher, settings.broker()) {
                (Some(publisher), _) => Events::InProcess(publisher),
                (None, Some(broker)) => Events::Broker(Box::new(broker)),
                (None, None) => return Err(NoBroker.into()),
            };
            let redis = settings.database.redis()?;
            let sessions = redis
                .map(|url| {
                    RedisSessions::new(url, &settings.database.sessions.session_redis_prefix)
                })
                .transpose()?;
            create_private(&settings.data_dir)?;
            let held = hold_folder(&settings.data_dir, SERVICE)
                .with_context(|| format!("--data-dir {}", settings.data_dir.display()))?;
            let keys = signing_keys(&settings.tokens, &settings.data_dir)?;
            // Before the first write to the database: of two processes on one folder, one fails here or
            // waits for the other's lock, and neither has written.
            let listener = bind(settings.listen).await?;
            let address = listener.local_addr()?;
            let access = &settings.mesh.access;
            let id = settings.mesh.instance_id_or_new(SERVICE);
            let joining = Joining::new(access.registry(), (SERVICE, &id));
            let joined =
                joining.join(workload).await.context("cannot join the mesh of --registry-url")?;
            Ok(Bound { settings, listener, address, joined, events, clock, sessions, keys, held })
        })
    }

    /// The address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Registers and serves until `stop`, then leaves the registry, drains and ends its tasks.
    ///
    /// # Errors
    /// When the listener fails for good.
    pub fn run_until_stopped(self, stop: Shutdown) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(async move {
            let service = Service::new(SERVICE).listening(self.address);
            // Attributes logs and traces outside of requests to this service.
            service.run(self.run(&service, stop)).await
        })
    }

    async fn run(self, service: &Service, stop: Shutdown) -> anyhow::Result<()> {
        let Self {
            settings,
            listener,
            address,
            joined,
            events,
            store,
            state,
            stopping,
            clock,
            metrics,
            held,
        } = self;
        // Tasks outlive the last request, so that its views and events are still written.
        let end = Shutdown::new();
        let tasks = Tasks::new(end.clone()).of_service(service).or_stop(stop.clone());
        let health = Health::new();
        let own = joined.workload.clone();
        watch_certificate(move || own.left(), (&health, &metrics));
        let (publisher, bus): (Arc<dyn Publisher>, _) = match events {
            Events::InProcess(publisher) => (publisher, None),
            Events::Broker(broker) => {
                let bus = RabbitBus::start(*broker);
                (Arc::new(bus.clone()), Some(bus))
            }
        };
        if let Some(bus) = bus.clone() {
            tasks.spawn(
                "event bus watch",
                broker::watch(
                    bus,
                    health.register("event bus"),
                    settings.readiness.clone(),
                    end.clone(),
                ),
            );
        }
        let sources = metrics::Sources {
            store: store.clone(),
            views: state.content.views.clone(),
            bus: bus.clone(),
            clock: Arc::clone(&clock),
        };
        metrics::register(&metrics, &sources);
        let names = background::Names {
            database: database_name(&settings),
            redis: store.with_redis().map(|redis| format!("redis at {}", redis.redis_address())),
        };
        let watched = (&health, names, &metrics);
        background::start(&tasks, &store, &state, publisher, clock, watched, &settings.readiness);
        let ended = (&state.revocations, &state.keys);
        signals::start(&tasks, &settings.signals, &store, ended, (&sources.clock, &metrics))?;
        let gauge = metrics::of_outbox(&metrics, &sources);
        tasks.spawn("outbox gauge", gauge.run(end.clone()));
        tasks.spawn("search index", store.clone().keep_search_index(end.clone()));

        let limits = HttpLimits::default();
        let admission = Admission::new(SERVICE, http::CALLERS);
        let views = state.content.views.clone();
        let routes = http::router(state).layer(from_fn(run_to_completion));
        let answered = metrics.http().clone();
        let observer = (service.clone(), metrics);
        let router = observed_router(observer, routes, admission, health.clone(), &limits);

        let mesh = &settings.mesh;
        let id = &joined.workload.name().instance;
        let mut instance = Instance::new(SERVICE, id, mesh.advertised(address));
        instance.metadata.extend(mesh.metadata());
        tracing::info!(addr = %address, id = instance.id, "core listening");
        let registration = Registration::start(
            joined.registry.clone(),
            instance,
            Duration::from_millis(mesh.heartbeat_ms),
            Duration::from_millis(mesh.lease_ms),
            end.token(),
        );
        let registry = background::watch_registry(
            registration.state(),
            health.register_optional("registry"),
            end.clone(),
        );
        tasks.spawn("registry watch", registry);

        // Requests are served until every gateway knows that the instance leaves.
        let drain = Shutdown::new();
        let farewell = async {
            stop.begun().await;
            // Long polls end first, so that the drain does not wait for them.
            stopping.begin();
            let departing = registration.depart().await;
            drain.begin();
            departing
        };
        let drain_timeout = Duration::from_millis(settings.drain_timeout_ms);
        let listener = Listener::with_tls(
            listener,
            joined.workload.server_config(),
            &joined.workload.name().mesh,
        );
        let serving = serve(listener, router, &limits, drain.clone(), drain_timeout);
        let (served, departing) = tokio::join!(
            async {
                let served = serving.await;
                // After the listener has failed, `farewell` must not wait for a stop.
                stop.begin();
                served
            },
            farewell
        );
        departing.finish(answered.totals()).await;
        if let Err(error) = views.flush().await {
            tracing::warn!(%error, "the last views could not be written");
        }
        if let Some(bus) = &bus {
            broker::last_round(&*store.outbox(), bus).await;
        }
        end.begin();
        let finished = tasks.finish(TASKS_LIMIT).await;
        if let Some(bus) = bus {
            broker::close(bus).await;
        }
        if timeout(CLOSE_LIMIT, store.close()).await.is_err() {
            tracing::warn!("connections to the database were still in use at the stop");
        }
        drop(held);
        served.context("serving").and(finished)
    }
}

/// Handles a request to its end, even after the client has disconnected or the request has timed out.
/// The driver cannot reuse a connection whose operation was dropped, and would wait on it forever.
/// Each operation of the store bounds its own time.
async fn run_to_completion(request: Request, next: Next) -> Response {
    let handling = tokio::spawn(Span::current().run(next.run(request)));
    match handling.await {
        Ok(response) => response,
        Err(error) => match error.try_into_panic() {
            // The chassis handles the panic, as in every service.
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => {
                ApiError::unavailable(messages::stopping(), Duration::from_secs(1)).into_response()
            }
        },
    }
}

/// The database's name in readiness, without credentials.
fn database_name(settings: &Settings) -> String {
    match settings.database.mysql() {
        Some(url) => format!("mysql at {url}"),
        None => format!("sqlite in {}", settings.data_dir.display()),
    }
}

/// Opens the store that the settings choose, with the catalogue in it and the search index read.
async fn open_store(
    settings: &Settings,
    sessions: Option<RedisSessions>,
    clock: &SharedClock,
) -> anyhow::Result<Store> {
    let store = match settings.database.mysql() {
        Some(url) => {
            let mysql = Store::open_mysql(url, settings.database.pool_sizes()).await?;
            match sessions {
                Some(redis) => {
                    redis.wait().await?;
                    Store::MysqlRedis(MysqlRedisStore::new(mysql, redis, Arc::clone(clock)))
                }
                None => Store::Mysql(mysql),
            }
        }
        None => {
            Store::Sqlite(Store::open_sqlite(&settings.data_dir, settings.database_readers).await?)
        }
    };
    if !settings.no_demo {
        let spots = store.spots();
        let loading = load_catalogue(&*spots, clock.as_ref());
        loading.await.context("loading the catalogue of tour spots")?;
    }
    store.refresh_search_index().await.context("reading the search index")?;
    Ok(store)
}

/// Creates the folder with access for its owner only: it has a private key and password hashes.
fn create_private(folder: &Path) -> anyhow::Result<()> {
    create_private_folder(folder)
        .with_context(|| format!("--data-dir {}: cannot make the folder", folder.display()))
}

/// Whether the folder has a database of core.
pub fn has_database(data_dir: &Path) -> bool {
    data_dir.join(store::DATABASE_FILE).exists()
}

/// The tour spots in a data folder, for an import. A service may run on the folder.
///
/// # Errors
/// When the folder cannot be created or the database cannot be opened.
pub fn open_spots(data_dir: &Path) -> BoxFuture<'_, anyhow::Result<SqliteStore>> {
    Box::pin(async move {
        create_private(data_dir)?;
        Store::open_sqlite(data_dir, 1).await
    })
}

/// The tour spots in a database on a server, for an import. Services may run on the database. Waits
/// 10 s for the server.
///
/// # Errors
/// When the server refuses or does not answer.
pub fn open_spots_on_server(url: &MysqlUrl) -> BoxFuture<'_, anyhow::Result<MysqlStore>> {
    Box::pin(async move { Store::open_mysql_within(COMMAND_LIMIT, url).await })
}

/// The outbox in a data folder. A service may run on the folder.
///
/// # Errors
/// When the database cannot be opened.
pub fn open_outbox(data_dir: &Path) -> BoxFuture<'_, anyhow::Result<Arc<dyn OutboxStore>>> {
    Box::pin(async move { Ok(Store::Sqlite(Store::open_sqlite(data_dir, 1).await?).outbox()) })
}

/// The outbox in a database on a server. Services may run on the database. Waits 10 s for the server.
///
/// # Errors
/// When the server refuses or does not answer.
pub fn open_outbox_on_server(
    url: &MysqlUrl,
) -> BoxFuture<'_, anyhow::Result<Arc<dyn OutboxStore>>> {
    Box::pin(async move {
        Ok(Store::Mysql(Store::open_mysql_within(COMMAND_LIMIT, url).await?).outbox())
    })
}

fn signing_keys(settings: &TokenSettings, data_dir: &Path) -> anyhow::Result<SigningKeys> {
    let current = match &settings.signing_key {
        Some(file) => read_signing_key(file).context("--signing-key")?,
        None => read_or_create_signing_key(&data_dir.join("signing.pem")).context("--data-dir")?,
    };
    let mut previous = settings.previous_signing_keys.clone();
    let folder = data_dir.join("previous-keys");
    if previous.is_empty() && folder.is_dir() {
        previous.push(folder);
    }
    let previous = read_previous_keys(&previous).context("--previous-signing-keys")?;
    SigningKeys::new(&current, &previous)
}
