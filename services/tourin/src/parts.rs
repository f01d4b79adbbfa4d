//! The parts of the mesh, each on its own loopback listener as a process of its own would have it,
//! over what is embedded or over the servers that the settings name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tourin_chassis::clock::{SharedClock, SystemClock};
use tourin_chassis::config::MeshSettings;
use tourin_chassis::telemetry::memory::MemoryStore;
use tourin_core::Core;
use tourin_gateway::Gateway;
use tourin_recommendation::{Recommendation, open_stores};
use tourin_registry::Registry;
use tourin_shared_events::bus::in_process::InProcessBus;

use crate::data_dir::DataDir;
use crate::events::dead_letters;
use crate::operator::{Operator, PartAddresses};
use crate::up::UpSettings;

const FREE_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What needs no server, built and bound but not yet running: it answers while the services wait for
/// theirs.
pub(crate) struct Front {
    /// The one URL that clients know.
    pub url: String,
    /// Where the registry answers.
    pub registry_url: String,
    /// Where the gateway says whether it is ready: its listener for operators, so that what is asked
    /// until then counts with no client's requests.
    pub readiness_url: String,
    pub gateway: Gateway,
    pub registry: Registry,
    pub operator: Operator,
    /// What the services are built with.
    pub common: Common,
}

/// What the services have in common.
pub(crate) struct Common {
    mesh: MeshSettings,
    bus: Option<Arc<InProcessBus>>,
    clock: SharedClock,
    shown: PartAddresses,
}

/// Builds what needs no server.
///
/// # Errors
/// When a setting is bad, or the folder or the address cannot be had.
pub(crate) async fn front(
    settings: &UpSettings,
    traces: Option<&MemoryStore>,
    data_dir: &DataDir,
) -> anyhow::Result<Front> {
    let secret = data_dir.secret()?;
    let registry =
        Registry::build(tourin_registry::Settings::new(FREE_PORT, secret.clone())).await?;
    let registry_url = format!("http://{}", registry.addr());
    data_dir.describe_mesh(&registry_url, &secret)?;
    let mesh = MeshSettings::new(registry_url.clone(), secret);

    let shown = PartAddresses::default();
    shown.add("registry", registry.addr());
    let operator = Operator::build(&settings.operator, traces, shown.clone()).await?;

    let mut of_gateway = gateway_settings(settings, mesh.clone());
    let operator_url = format!("http://{}", local(operator.addr));
    of_gateway.traces_url = traces.map(|_| operator_url.clone());
    of_gateway.metrics_url = Some(format!("{operator_url}/metrics"));
    let gateway = Gateway::build(of_gateway).await?;
    let url = format!("http://{}", local(gateway.addr()));
    let readiness_url = format!("http://{}/readyz", local(gateway.admin_addr()));
    shown.add("gateway", gateway.admin_addr());
    let bus = embedded_bus(settings, data_dir).await?;
    let common = Common { mesh, bus, clock: Arc::new(SystemClock), shown };
    Ok(Front { url, registry_url, readiness_url, gateway, registry, operator, common })
}

/// Builds core. Waits for the servers that the settings name for it, for as long as it takes.
///
/// # Errors
/// When a setting is bad, or the folder cannot be had.
pub(crate) async fn core(
    settings: &UpSettings,
    data_dir: &DataDir,
    common: &Common,
) -> anyhow::Result<Core> {
    let dependencies = tourin_core::Dependencies {
        publisher: common.bus.clone().map(|bus| bus as _),
        clock: common.clock.clone(),
    };
    let settings = core_settings(settings, data_dir, common.mesh.clone());
    let core = Core::bind(settings).await?;
    // It says there what it waits for.
    common.shown.add("core", core.addr());
    core.open(dependencies).await
}

/// Builds the replicas of recommendation, on stores that they share.
///
/// # Errors
/// When a setting is bad, or the folder cannot be had.
pub(crate) async fn replicas(
    settings: &UpSettings,
    data_dir: &DataDir,
    common: &Common,
) -> anyhow::Result<Vec<Recommendation>> {
    let of_replica = recommendation_settings(settings, data_dir, common.mesh.clone());
    let stores = open_stores(&of_replica, common.clock.clone()).await?;
    let mut replicas = Vec::new();
    for number in 1..=settings.replicas.recommendation {
        let dependencies = tourin_recommendation::Dependencies {
            events: common.bus.clone().map(|bus| bus as _),
            stores: Some(stores.clone()),
            clock: common.clock.clone(),
        };
        let replica = Recommendation::build(of_replica.clone(), dependencies).await?;
        common.shown.add(format!("recommendation-{number}"), replica.addr());
        replicas.push(replica);
    }
    Ok(replicas)
}

/// The bus in this process; none where a broker is named, to which the services connect themselves.
async fn embedded_bus(
    settings: &UpSettings,
    data_dir: &DataDir,
) -> anyhow::Result<Option<Arc<InProcessBus>>> {
    if settings.servers.has_broker() {
        return Ok(None);
    }
    let letters = dead_letters::open(data_dir.path()).await?;
    let bus = InProcessBus::new(Arc::new(letters));
    // Before anything is published: what is confirmed was offered to every queue.
    for subscription in tourin_recommendation::subscriptions() {
        bus.declare(subscription)?;
    }
    Ok(Some(Arc::new(bus)))
}

fn gateway_settings(settings: &UpSettings, mesh: MeshSettings) -> tourin_gateway::Settings {
    let mut gateway = tourin_gateway::Settings::new(mesh);
    gateway.listen = settings.listen;
    gateway.allowed_origins.clone_from(&settings.allowed_origins);
    gateway.trusted_proxies.clone_from(&settings.trusted_proxies);
    gateway.routes.clone_from(&settings.routes);
    gateway.redis_url = settings.servers.session_redis().cloned();
    gateway.session_redis_prefix.clone_from(&settings.servers.session_redis_prefix);
    gateway
}

fn core_settings(
    settings: &UpSettings,
    data_dir: &DataDir,
    mesh: MeshSettings,
) -> tourin_core::Settings {
    let mut core = tourin_core::Settings::new(FREE_PORT, data_dir.path(), mesh);
    core.no_demo = settings.no_demo;
    core.tokens.cookie_secure = settings.cookie_secure;
    let servers = &settings.servers;
    core.database.mysql_url.clone_from(&servers.mysql_url);
    core.database.redis_url = servers.session_redis().cloned();
    core.database.session_redis_prefix.clone_from(&servers.session_redis_prefix);
    core.events.amqp_url.clone_from(&servers.amqp_url);
    core.events.amqp_prefix.clone_from(&servers.amqp_prefix);
    core
}

fn recommendation_settings(
    settings: &UpSettings,
    data_dir: &DataDir,
    mesh: MeshSettings,
) -> tourin_recommendation::Settings {
    let mut recommendation = tourin_recommendation::Settings::new(FREE_PORT, data_dir.path(), mesh);
    recommendation.rules.trend_half_life_ms = settings.trend_half_life_ms;
    let servers = &settings.servers;
    recommendation.servers.redis_url.clone_from(&servers.redis_url);
    recommendation.servers.mongodb_url.clone_from(&servers.mongodb_url);
    let prefix = &servers.recommendation_redis_prefix;
    recommendation.servers.recommendation_redis_prefix.clone_from(prefix);
    recommendation.broker.amqp_url.clone_from(&servers.amqp_url);
    recommendation.broker.amqp_prefix.clone_from(&servers.amqp_prefix);
    recommendation
}

/// The address at which this machine itself reaches a listener.
pub(crate) fn local(listening: SocketAddr) -> SocketAddr {
    match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, listening.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, listening.port()).into(),
        _ => listening,
    }
}
