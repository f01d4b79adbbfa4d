//! Tourin's gateway: one URL in front of the services.
//!
//! Requests go through Pingora's proxy with the phases of [`proxy`], in an accept loop of our own
//! ([`server`]). Background tasks keep the data current that requests are checked by: instances
//! ([`upstreams`]), token keys and ended sessions ([`auth`]), the API description ([`openapi`]). A
//! request waits for the network only if its token has an unknown key or has to be renewed.
//!
//! TLS ends in front of the gateway, which speaks HTTP/1.1 on both sides.

pub mod admin;
pub mod admission;
pub mod attempt;
pub mod auth;
pub mod authority;
pub mod client_address;
pub mod config;
pub mod connection;
pub mod context;
pub mod descriptors;
pub mod failures;
pub mod headers;
pub mod landing_page;
pub mod limits;
mod log_throttle;
pub mod malformed;
pub mod mesh_client;
mod messages;
pub mod metrics;
pub mod openapi;
pub mod origin;
pub mod path;
pub mod proxy;
pub mod responses;
pub mod routes;
pub mod server;
pub mod upstreams;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context;
use pingora::server::configuration::ServerConf;
use tokio_util::sync::CancellationToken;
use tourin_chassis::clock::{SharedClock, SystemClock};
use tourin_chassis::http_client;
use tourin_chassis::identity::IdentitySigner;
use tourin_chassis::metrics::CounterBy;
use tourin_chassis::pruning::PruneGuard;
use tourin_chassis::shutdown::{Shutdown, Tasks};
use tourin_chassis::telemetry::Service;
use tourin_registry_api::limits::{instance_id, lease_ms};
use tourin_registry_api::{Directory, Instance, Registration, RegistryClient};

use client_address::TrustedProxies;
pub use config::{SecureCookies, Settings, StalePolicy};

use admission::{AdmissionFilter, RequestLimits};
use auth::Authenticator;
use auth::cookies::CookiePolicy;
use auth::keys::KeyStore;
use auth::revocation::Revocations;
use auth::revocation::stream::RevocationStream;
use auth::sliding::SlidingSessions;
use auth::tokens::{TokenRules, TokenVerifier};
use auth::visitor::Visitors;
use connection::ConnectionLimits;
use descriptors::ConnectionCounts;
use futures::future::BoxFuture;
use landing_page::LandingPage;
use limits::{ConcurrencyLimit, RateLimits};
use malformed::MalformedRequests;
use mesh_client::{GATEWAY, MeshClient};
use metrics::GatewayMetrics;
use openapi::ApiDescription;
use origin::OriginPolicy;
use proxy::{Proxy, UpstreamLimits};
use routes::RouteTable;
use server::{DataPlane, ServerSettings};
use upstreams::Upstreams;

/// Idle connections to all instances together that are kept open.
const UPSTREAM_POOL: usize = 256;
const TASKS_END: Duration = Duration::from_millis(500);

/// A gateway, bound but not yet serving.
pub struct Gateway {
    settings: Settings,
    routes: RouteTable,
    registry: RegistryClient,
    stream: Option<RevocationStream>,
    listener: TcpListener,
    addr: SocketAddr,
    operators: tokio::net::TcpListener,
    admin_addr: SocketAddr,
    connections: ConnectionCounts,
}

impl Gateway {
    /// Reads the routes and binds the listeners. Connections wait until
    /// [`Gateway::run_until_stopped`].
    ///
    /// # Errors
    /// An invalid route table, an invalid URL of the registry or of Redis, or an address that cannot
    /// be bound; each names its flag.
    // Boxed, as is what runs it: a crate that awaits an `async fn` of another compiles it again.
    pub fn build(settings: Settings) -> BoxFuture<'static, anyhow::Result<Self>> {
        Box::pin(async move {
            // Before any file is opened.
            let open_files = descriptors::raise_limit();
            let routes = load_routes(&settings)?;
            check_mesh(&settings)?;
            let registry = RegistryClient::new(
                http_client::client(None)?,
                &settings.mesh.access.registry_url,
                settings.mesh.access.registration_secret.expose(),
            )
            .context("--registry-url")?;
            let stream = settings
                .sessions
                .redis()
                .map(|url| RevocationStream::new(url, &settings.sessions.session_redis_prefix))
                .transpose()?;
            let listener = tourin_chassis::http::bind(settings.listen).await?;
            let addr = listener.local_addr().context("cannot tell the bound address")?;
            let listener = listener.into_std().context("cannot hand the listener over")?;
            let operators = tourin_chassis::http::bind(settings.admin_listen).await?;
            let admin_addr = operators.local_addr().context("cannot tell the bound address")?;
            let connections = ConnectionCounts {
                total: settings.max_connections,
                per_client: settings.max_connections_per_client,
            }
            .within(open_files);
            Ok(Self {
                settings,
                routes,
                registry,
                stream,
                listener,
                addr,
                operators,
                admin_addr,
                connections,
            })
        })
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
    /// a second more.
    ///
    /// # Errors
    /// When the data plane fails.
    pub fn run_until_stopped(self, shutdown: Shutdown) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(async move {
            let Self { settings, routes, registry, stream, listener, addr, .. } = self;
            let (operators, admin_addr, connections) =
                (self.operators, self.admin_addr, self.connections);
            let id = settings.mesh.instance_id_or_new(GATEWAY);
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
            let renewals = metrics.renewals.clone();
            let admission =
                start_admission(&settings, routes, directory, (stream, renewals), &tasks, &stop)?;
            metrics.read_state(
                Arc::clone(&admission.upstreams),
                Arc::clone(&admission.keys),
                Arc::clone(&admission.authenticator.revocations),
                admission.concurrency.clone(),
            );
            PruneGuard::measure(
                vec![admission.authenticator.revocations.guard()],
                &metrics.service,
            );
            let pages = admin::operators(
                &metrics.service,
                admin::ReadinessState {
                    admission: Arc::clone(&admission),
                    stopping: shutdown.clone(),
                },
                &settings.mesh.access.registration_secret,
                &settings.admin_hosts,
            );
            tasks.spawn(
                "operators' listener",
                admin::serve_operators(operators, pages, end.clone()),
            );

            let limits = UpstreamLimits {
                connect_timeout: Duration::from_millis(settings.connect_timeout_ms),
                idle_timeout: Duration::from_millis(settings.upstream_idle_ms),
                tries: settings.upstream_tries,
                client_stall: Duration::from_millis(settings.client_stall_ms),
            };
            let conf = ServerConf {
                threads: settings.threads(),
                max_retries: settings.upstream_tries,
                upstream_keepalive_pool_size: UPSTREAM_POOL,
                ..ServerConf::default()
            };
            let server_settings = ServerSettings {
                threads: settings.threads(),
                connections,
                trusted_proxies: settings.trusted_proxies.clone(),
                drain_timeout: settings.drain_timeout(),
                limits: connection_limits(&settings),
                metrics: metrics.connections.clone(),
                malformed: Arc::new(MalformedRequests::new(service.clone(), Arc::clone(&metrics))),
            };
            let proxy = Proxy::new(admission, limits, service, metrics);
            let proxy = pingora::proxy::http_proxy(&Arc::new(conf), proxy);
            let mut data_plane = DataPlane::start(listener, proxy, server_settings)?;

            let advertised = settings.mesh.advertised(addr);
            let mut instance = Instance::new(GATEWAY, id, advertised);
            instance.metadata.insert(
                admin::ADMIN_ADDRESS.to_owned(),
                reachable(admin_addr, advertised).to_string(),
            );
            let registration = Registration::start(
                registry,
                instance,
                Duration::from_millis(settings.mesh.heartbeat_ms),
                Duration::from_millis(settings.mesh.lease_ms),
                stop,
            );
            tracing::info!(%addr, admin = %admin_addr, "gateway listening");
            if settings.cookie_secure == SecureCookies::Never && !addr.ip().is_loopback() {
                tracing::warn!(
                    "--cookie-secure never: session cookies go over plain http, and other hosts of the \
                 domain can set them"
                );
            }

            let served = tokio::select! {
                () = shutdown.begun() => {
                    // Clients do not find gateways by the registry, so the order does not matter.
                    let (stopped, _) = tokio::join!(data_plane.stop(), registration.leave());
                    stopped
                }
                ended = data_plane.ended() => ended,
            };
            end.begin();
            let finished = tasks.finish(TASKS_END).await;
            served.and(finished)
        })
    }
}

/// Checks at the start what the registry would refuse later.
fn check_mesh(settings: &Settings) -> anyhow::Result<()> {
    if let Some(id) = &settings.mesh.instance_id {
        instance_id(id).with_context(|| format!("--instance-id {id:?}"))?;
    }
    let lease = settings.mesh.lease_ms;
    lease_ms(lease).with_context(|| format!("--lease-ms {lease}"))
}

fn load_routes(settings: &Settings) -> anyhow::Result<RouteTable> {
    let Some(file) = &settings.routes else {
        return RouteTable::parse(routes::BUILT_IN).context("the built-in routes");
    };
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("--routes {shown}"))?;
    RouteTable::parse(&text).with_context(|| format!("--routes {shown}"))
}

/// The address at which others reach a listener: the advertised IP if it listens on all addresses.
fn reachable(listening: SocketAddr, advertised: SocketAddr) -> SocketAddr {
    if listening.ip().is_unspecified() {
        SocketAddr::new(advertised.ip(), listening.port())
    } else {
        listening
    }
}

fn connection_limits(settings: &Settings) -> ConnectionLimits {
    ConnectionLimits {
        head_bytes: settings.header_limit_bytes,
        target_bytes: settings.uri_limit_bytes,
        head_timeout: Duration::from_millis(settings.header_read_timeout_ms),
        first_byte_timeout: Duration::from_millis(settings.client_first_byte_ms),
        idle_timeout: Duration::from_millis(settings.client_idle_ms),
    }
}

/// Builds the admission filter, and starts the tasks that keep its data current.
fn start_admission(
    settings: &Settings,
    routes: RouteTable,
    directory: Directory,
    (stream, renewals): (Option<RevocationStream>, CounterBy),
    tasks: &Tasks,
    stop: &CancellationToken,
) -> anyhow::Result<Arc<AdmissionFilter>> {
    let secret = &settings.mesh.access.registration_secret;
    let clock: SharedClock = Arc::new(SystemClock);
    let signer = IdentitySigner::new(secret);
    let mesh = MeshClient::new(signer.clone(), directory.clone())?;

    let upstreams = Arc::new(Upstreams::new(routes.services(), directory.clone()));
    let keys = Arc::new(KeyStore::default());
    let revocations = Arc::new(Revocations::new(
        Duration::from_millis(settings.revocation_stale_ms),
        settings.revocation_when_stale,
        Arc::clone(&clock),
    ));
    let rates = Arc::new(RateLimits::new(&routes));
    let api = Arc::new(ApiDescription::default());
    let routes = Arc::new(routes);

    macro_rules! follow {
        ($name:literal, $what:ident, $method:ident $(, $argument:ident)*) => {{
            let (what, stop) = (Arc::clone(&$what), stop.clone());
            $(let $argument = $argument.clone();)*
            tasks.spawn($name, async move { what.$method($($argument,)* stop).await });
        }};
    }
    follow!("upstreams", upstreams, follow);
    follow!("token keys", keys, follow, mesh);
    match stream {
        Some(stream) => follow!("ended sessions", revocations, follow_stream, stream),
        None => follow!("ended sessions", revocations, follow, mesh),
    }
    let visitors = Arc::new(Visitors::default());
    follow!("visitor key", visitors, follow, mesh);
    follow!("rate limits", rates, evict_idle);
    follow!("API description", api, follow, routes, mesh);

    let rules = TokenRules {
        issuer: settings.token_issuer.clone(),
        audience: settings.token_audience.clone(),
        leeway: Duration::from_secs(settings.token_leeway_s),
        cache_entries: settings.token_cache_entries,
    };
    let tokens = Arc::new(TokenVerifier::new(Arc::clone(&keys), &rules, Arc::clone(&clock)));
    let sliding = Arc::new(SlidingSessions::new(
        mesh,
        Arc::clone(&tokens),
        renewals,
        Duration::from_secs(settings.session_cookie_idle_s.into()),
        Arc::clone(&clock),
        stop.clone(),
    ));
    follow!("session renewals", sliding, drain);
    Ok(Arc::new(AdmissionFilter {
        registry: directory.connected(),
        started: Instant::now(),
        was_ready: AtomicBool::new(false),
        routes,
        authenticator: Authenticator { tokens, revocations, sliding, visitors },
        upstreams,
        origins: OriginPolicy::new(settings.allowed_origins.clone()),
        trusted_proxies: TrustedProxies {
            networks: settings.trusted_proxies.clone(),
            header: settings.forwarding_header,
        },
        cookies: CookiePolicy::new(settings.cookie_secure),
        signer,
        rates,
        concurrency: ConcurrencyLimit::new(settings.max_requests),
        api,
        landing_page: LandingPage::new(
            settings.traces_url.as_deref(),
            settings.metrics_url.as_deref(),
        ),
        limits: RequestLimits {
            uri_bytes: settings.uri_limit_bytes,
            header_count: settings.header_limit_count,
            body_bytes: settings.body_limit_bytes,
            first_byte_timeout: Duration::from_millis(settings.first_byte_timeout_ms),
            total_timeout: Duration::from_millis(settings.total_timeout_ms),
        },
        keys,
    }))
}
