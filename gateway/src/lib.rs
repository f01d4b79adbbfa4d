//! Tourin's gateway: one URL in front of the services.
//!
//! Requests go through Pingora's proxy with the phases of [`proxy`], in an accept loop of our own
//! ([`server`]). Background tasks keep the data current that requests are checked by: instances
//! ([`upstreams`]), token keys and ended sessions ([`auth`]), the API description ([`openapi`]). A
//! request waits for the network only if its token has an unknown key or has to be renewed.
//!
//! It speaks HTTP/1.1, and with clients over TLS ([`tls`]) also HTTP/2 ([`http2`]).

pub mod access_log;
pub mod adaptive;
pub mod admin;
pub mod admission;
pub mod attempt;
pub mod auth;
pub mod authority;
pub mod balance;
pub mod breaker;
pub mod cache;
pub mod canary;
pub mod client_address;
pub mod client_connections;
pub mod compression;
pub mod config;
pub mod connection;
pub mod connection_app;
pub mod context;
pub mod descriptors;
pub mod failover;
pub mod failures;
pub mod fallback;
pub mod handover;
pub mod headers;
pub mod health_checks;
pub mod http2;
pub mod incoming;
mod instance_socket;
pub mod keyed;
pub mod landing_page;
pub mod limits;
mod log_throttle;
pub mod malformed;
pub mod mesh_client;
mod messages;
pub mod metrics;
pub mod mirror;
pub mod openapi;
pub mod origin;
pub mod outliers;
pub mod path;
pub mod policy_fields;
pub mod portion;
pub mod proxy;
pub mod proxy_protocol;
pub mod rate_limits;
pub mod readiness;
pub mod reload;
pub mod request_body;
pub mod response_headers;
pub mod responses;
pub mod retries;
pub mod routes;
pub mod server;
pub mod server_settings;
pub mod service_guards;
pub mod stream_opening;
pub mod streams;
pub mod timed_connector;
pub mod tls;
pub mod traffic;
pub mod transport;
mod unserved;
pub mod upgrade_connector;
pub mod upstream_tls;
pub mod upstreams;
pub mod vary;
pub mod websocket;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pingora::server::configuration::ServerConf;
use tourin_chassis::http::Listener;
use tourin_chassis::peer::GATEWAY;
use tourin_chassis::pruning::PruneGuard;
use tourin_chassis::shutdown::{Shutdown, Tasks};
use tourin_chassis::telemetry::Service;
use tourin_registry_api::{Directory, Instance, Joined, Joining, Registration, Workload};

pub use auth::cookies::SecureCookies;
pub use auth::revocation::StalePolicy;
pub use config::Settings;

use access_log::AccessLog;
use admission::SessionRedis;
use auth::revocation::stream::RevocationStream;
use descriptors::ConnectionCounts;
use failover::Failover;
use futures::future::BoxFuture;
use handover::Sockets;
use health_checks::HealthChecks;
use malformed::MalformedRequests;
use mesh_client::MeshClient;
use metrics::GatewayMetrics;
use proxy::Proxy;
use rate_limits::shared::SharedCounts;
use reload::{Contents, Reloader};
use routes::{CurrentRoutes, RoutesFile};
use server::DataPlane;
use server_settings::ServerSettings;
use streams::OpenStreams;
use tls::CertificateStore;
use upstream_tls::UpstreamTls;
use upstreams::Upstreams;

/// The most idle connections to all instances together that each worker thread keeps open. Below the number
/// of instances, nearly every request would open a new one.
const UPSTREAM_POOL: usize = 2_048;
const TASKS_END: Duration = Duration::from_millis(500);

/// A gateway, bound but not yet serving.
pub struct Gateway {
    settings: Settings,
    routes: Arc<CurrentRoutes>,
    routes_file: Contents,
    joined: Joined,
    redis: Option<SessionRedis>,
    access_log: AccessLog,
    listener: TcpListener,
    addr: SocketAddr,
    operators: tokio::net::TcpListener,
    admin_addr: SocketAddr,
    connections: ConnectionCounts,
    certificates: Option<(Arc<CertificateStore>, Contents)>,
    sockets: Sockets,
    #[cfg(feature = "testing")]
    has_plain_upstreams: bool,
}

impl Gateway {
    /// Reads the routes, binds the listeners and joins the mesh, unless a `workload` is given. Connections
    /// wait until [`Gateway::run_until_stopped`]. Waits for the registry without limit.
    ///
    /// # Errors
    /// An invalid route table, an invalid URL of the registry or of Redis, an address that cannot be
    /// bound, or a join token that the registry refuses; each names its flag.
    // Boxed, as is what runs it: a crate that awaits an `async fn` of another compiles it again.
    pub fn build(
        mut settings: Settings,
        workload: Option<Workload>,
    ) -> BoxFuture<'static, anyhow::Result<Self>> {
        Box::pin(async move {
            // Before any file is opened.
            let open_files = descriptors::raise_limit();
            let (table, routes_file) = RoutesFile::load(settings.routes.as_deref())?;
            let routes = Arc::new(CurrentRoutes::new(table));
            let certificates = settings.tls.load()?;
            settings.check_mesh()?;
            settings.adaptive.check()?;
            let prefix = &settings.sessions.session_redis_prefix;
            let redis = settings.sessions.redis().map(|url| {
                let counts = SharedCounts::new(url, prefix, settings.shared_limit_timeout)?;
                anyhow::Ok((RevocationStream::new(url, prefix)?, Arc::new(counts)))
            });
            let redis = redis.transpose()?;
            let access_log = AccessLog::open(&settings.access_log)?;
            let mut sockets = Sockets::new(settings.handover.clone()).await?;
            let (listener, addr) = sockets.listen(settings.listen).await?;
            let (operators, admin_addr) = sockets.listen(settings.admin_listen).await?;
            let operators = tokio::net::TcpListener::from_std(operators)
                .context("cannot listen for operators")?;
            let connections = ConnectionCounts {
                total: settings.max_connections,
                per_client: settings.max_connections_per_client,
            }
            .within(open_files);
            if connections.total < settings.max_connections {
                // Over HTTP/2 one connection has many requests, each with a connection to an instance.
                settings.max_requests = settings.max_requests.min(connections.total);
                let streams = u32::try_from(connections.total).unwrap_or(u32::MAX);
                settings.streams.max_streams = settings.streams.max_streams.min(streams);
            }
            let access = &settings.mesh.access;
            let id = settings.mesh.instance_id_or_new(GATEWAY);
            let joining = Joining::new(access.registry(), (GATEWAY, &id));
            let joined =
                joining.join(workload).await.context("cannot join the mesh of --registry-url")?;
            Ok(Self {
                settings,
                routes,
                routes_file,
                joined,
                redis,
                access_log,
                listener,
                addr,
                operators,
                admin_addr,
                connections,
                certificates,
                sockets,
                #[cfg(feature = "testing")]
                has_plain_upstreams: false,
            })
        })
    }

    /// Calls instances over plain HTTP, by which a benchmark tells what TLS costs.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn with_plain_upstreams(self) -> Self {
        Self { has_plain_upstreams: true, ..self }
    }

    /// The bound address of the operators' listener.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// The bound address of the clients' listener.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `shutdown` begins, then drains for at most [`Settings::drain_timeout_ms`] and half
    /// a second more. The access log may take two seconds after that, if its disk is slow.
    ///
    /// # Errors
    /// When the data plane fails.
    pub fn run_until_stopped(self, shutdown: Shutdown) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(async move {
            let Self { settings, routes, joined, redis, listener, addr, .. } = self;
            let Joined { workload, registry, .. } = joined.clone();
            let (operators, admin_addr, connections) =
                (self.operators, self.admin_addr, self.connections);
            let replaced = self.sockets.replaced();
            let id = workload.name().instance.clone();
            let service = Service::new(GATEWAY).listening(addr);
            let metrics = Arc::new(GatewayMetrics::new(&routes));
            // Background tasks outlive the drain: requests in flight need their data, and leaving the
            // registry waits for this gateway's own acknowledgement.
            let end = Shutdown::new();
            let tasks = Tasks::new(end.clone()).of_service(&service).or_stop(shutdown.clone());
            let stop = end.token();
            // Also when this future is dropped.
            let _end = end.token().drop_guard();

            let (directory, watching) =
                Directory::watch(registry.clone(), id.clone(), stop.clone());
            tasks.spawn("registry watch", watching);
            let streams = OpenStreams::new(settings.streams, &metrics.service);
            let mesh = MeshClient::new(workload.clone(), directory);
            mesh.prepare(&routes.services())?;
            let mut reloader = Reloader::new(settings.watch_interval(), &metrics.service);
            if let Some(file) = settings.routes.clone() {
                let file = RoutesFile::new(file, Arc::clone(&routes), mesh.clone());
                reloader.add(Arc::new(file), &self.routes_file);
            }
            let access_log = self.access_log;
            access_log.measure(&metrics.service);
            if let Some(reopening) = access_log.reopening() {
                reloader.add(reopening, &Contents::default());
            }
            if let Some((store, contents)) = &self.certificates {
                reloader.add(Arc::clone(store) as _, contents);
                metrics.read_certificates(Arc::clone(store));
            }
            let hang_ups = reloader.hang_ups()?;
            let reloads = reloader.states();
            tasks.spawn("reloads", reloader.run(hang_ups, stop.clone()));
            let upstreams = Arc::new(Upstreams::new(
                Arc::clone(&routes),
                mesh.directory().clone(),
                settings.pools(),
                metrics.outliers.clone(),
            ));
            let checked_by = Some(mesh.clone());
            #[cfg(feature = "testing")]
            let checked_by = checked_by.filter(|_| !self.has_plain_upstreams);
            let checks = HealthChecks::new(
                Arc::clone(&upstreams),
                checked_by,
                settings.health_checks.clone(),
            );
            tasks.spawn("health checks", checks.run(stop.clone()));
            let admission = admission::start(
                &settings,
                routes,
                (&workload, mesh, upstreams),
                redis,
                streams.clone(),
                &metrics,
                &tasks,
                &stop,
            );
            metrics.read_state(
                Arc::clone(&admission.upstreams),
                Arc::clone(&admission.keys),
                Arc::clone(&admission.authenticator.revocations),
                admission.concurrency.clone(),
            );
            admission.guards.read_state(&metrics.service);
            PruneGuard::measure(
                vec![admission.authenticator.revocations.guard()],
                &metrics.service,
            );
            let pages = admin::operators(
                &metrics.service,
                admin::OperatorsState::new(&admission, reloads, shutdown.clone()),
                &settings.admin_hosts,
            );
            let operators =
                Listener::with_tls(operators, workload.server_config(), &workload.name().mesh);

            let conf = ServerConf {
                threads: settings.threads(),
                max_retries: settings.upstream_tries,
                // Descriptors were counted for as many as there are clients.
                upstream_keepalive_pool_size: (connections.total / settings.threads())
                    .clamp(1, UPSTREAM_POOL),
                ..ServerConf::default()
            };
            let http2 = settings.http2.max_streams > 0;
            let tls = self.certificates.map(|(store, _)| store.acceptor(http2)).transpose()?;
            let has_tls = tls.is_some();
            let malformed = MalformedRequests::new(
                service.clone(),
                Arc::clone(&metrics),
                (access_log.clone(), admission.response_headers.clone()),
            );
            let counts = metrics.connections.clone();
            let server_settings =
                ServerSettings::new(&settings, (connections, counts), tls, malformed);
            let answered = metrics.service.http().clone();
            let tls = UpstreamTls::new(workload);
            #[cfg(feature = "testing")]
            let tls = if self.has_plain_upstreams { tls.without_tls() } else { tls };
            let failover = Failover::new(
                Arc::clone(&admission.upstreams),
                settings.retries.clone(),
                settings.upstream_tries,
            );
            let upstreams = (failover, settings.upstream_limits(), tls);
            self.sockets.ready(|| admission.readiness(false), &shutdown).await?;
            let requests = (metrics, access_log.clone());
            let proxy = Proxy::new(admission, upstreams, service, requests);
            let proxy = pingora::proxy::http_proxy(&Arc::new(conf), proxy);
            let mut data_plane = DataPlane::start(listener, proxy, server_settings)?;
            // Not before this gateway is ready: both may accept from the same socket.
            tasks.spawn(
                "operators' listener",
                admin::serve_operators(operators, pages, end.clone(), replaced.clone()),
            );
            self.sockets.serving(&tasks, &shutdown).await?;

            let advertised = settings.mesh.advertised(addr);
            let mut instance = Instance::new(GATEWAY, id, advertised);
            instance.metadata.extend(settings.mesh.metadata());
            instance.metadata.extend([admin::metadata(admin_addr, advertised)]);
            let registration = Registration::start(
                registry,
                instance,
                Duration::from_millis(settings.mesh.heartbeat_ms),
                Duration::from_millis(settings.mesh.lease_ms),
                stop,
            );
            tracing::info!(%addr, admin = %admin_addr, tls = has_tls, "gateway listening");
            if settings.cookie_secure == SecureCookies::Never && !addr.ip().is_loopback() {
                tracing::warn!(
                    "--cookie-secure never: session cookies go over plain http, and other hosts of the \
                 domain can set them"
                );
            }

            let served = tokio::select! {
                () = handover::any_begun(&shutdown, &replaced) => {
                    streams.close_all();
                    // Clients do not find gateways by the registry, so the order does not matter.
                    let (stopped, departing) =
                        tokio::join!(data_plane.stop(&shutdown), registration.depart());
                    departing.finish(answered.totals()).await;
                    stopped
                }
                ended = data_plane.ended() => ended,
            };
            end.begin();
            let finished = tasks.finish(TASKS_END).await;
            // No request is left that could write a line.
            access_log.close().await;
            served.and(finished)
        })
    }
}
