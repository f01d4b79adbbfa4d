//! Builds the parts of the mesh, each on its own loopback listener, on embedded stores or on the servers
//! in the settings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tourin_chassis::clock::{SharedClock, SystemClock};
use tourin_chassis::config::{MeshAccess, MeshSettings};
use tourin_chassis::peer;
use tourin_chassis::telemetry::memory::MemoryStore;
use tourin_core::Core;
use tourin_gateway::Gateway;
use tourin_recommendation::{Recommendation, open_stores};
use tourin_registry::Registry;
use tourin_registry::authority::Authority;
use tourin_registry_api::{Joining, TokenSource, Workload};
use tourin_shared_events::bus::in_process::InProcessBus;

use crate::data_dir::DataDir;
use crate::events::dead_letters;
use crate::mesh_file::MeshFile;
use crate::operator::{Operator, PartAddresses};
use crate::ports::Ports;
use crate::up::UpSettings;

const FREE_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The parts without stores, bound but not yet serving. They serve while the others wait for their
/// servers.
pub(crate) struct StatelessParts {
    /// The one URL that clients know.
    pub url: String,
    /// The registry's URL.
    pub registry_url: String,
    /// The gateway's readiness, on its listener for operators, so that these requests are not counted as
    /// clients'.
    pub readiness_url: String,
    pub gateway: Gateway,
    pub registry: Registry,
    pub operator: Operator,
    pub mesh_file: MeshFile,
    /// Shared by the services.
    pub context: ServiceContext,
}

/// What the services share.
pub(crate) struct ServiceContext {
    mesh: MeshAccess,
    authority: Arc<Authority>,
    bus: Option<Arc<InProcessBus>>,
    clock: SharedClock,
    shown: PartAddresses,
    ports: Ports,
}

/// The addresses of the services.
pub(crate) struct Addresses {
    pub core: SocketAddr,
    pub replicas: Vec<SocketAddr>,
}

impl ServiceContext {
    /// Releases the reserved addresses, which the services bind at once.
    pub(crate) fn take_addresses(&mut self, settings: &UpSettings) -> Addresses {
        let replicas = 1..=settings.replicas.recommendation;
        Addresses {
            core: self.ports.release(CORE, FREE_PORT),
            replicas: replicas.map(|n| self.ports.release(&replica(n), FREE_PORT)).collect(),
        }
    }
}

const GATEWAY: &str = "gateway";
const GATEWAY_ADMIN: &str = "gateway-admin";
const REGISTRY: &str = "registry";
const OPERATOR: &str = "operator";
const CORE: &str = "core";

fn replica(number: usize) -> String {
    format!("recommendation-{number}")
}

/// Reserves an address for each part without a configured one, and saves it.
fn reserve(settings: &UpSettings, data_dir: &DataDir) -> anyhow::Result<Ports> {
    let mut ports = Ports::of(data_dir);
    let mut parts = [
        (GATEWAY, settings.parts.gateway.listen),
        (GATEWAY_ADMIN, settings.parts.gateway.admin_listen),
        (OPERATOR, settings.operator.operator_listen),
        (REGISTRY, FREE_PORT),
        (CORE, FREE_PORT),
    ];
    // Ports that somebody chose come first, so that no other part takes one of them.
    parts.sort_by_key(|(_, wanted)| wanted.port() == 0);
    for (part, wanted) in parts {
        ports.reserve(part, wanted);
    }
    for number in 1..=settings.replicas.recommendation {
        ports.reserve(&replica(number), FREE_PORT);
    }
    ports.save(data_dir)?;
    Ok(ports)
}

/// Builds the parts without stores.
///
/// # Errors
/// When a setting is bad, or the folder or an address cannot be used.
pub(crate) async fn stateless(
    settings: &UpSettings,
    traces: Option<&MemoryStore>,
    data_dir: &DataDir,
) -> anyhow::Result<StatelessParts> {
    let mut ports = reserve(settings, data_dir)?;
    let mut of_registry = settings.parts.registry.clone();
    of_registry.listen = ports.release(REGISTRY, FREE_PORT);
    of_registry.data_dir = data_dir.path().join(REGISTRY);
    let registry = Registry::build(of_registry).await?;
    let authority = Arc::clone(registry.authority());
    let registry_url = format!("https://{}", registry.addr());
    let mesh_file = MeshFile::write(data_dir.path(), &registry_url, &authority)?;
    let mesh = MeshAccess::new(&registry_url);

    let shown = PartAddresses::default();
    shown.add(REGISTRY, registry.addr());
    let mut of_operator = settings.operator.clone();
    of_operator.operator_listen = ports.release(OPERATOR, of_operator.operator_listen);
    let identity =
        authority.workload(peer::OPERATOR, "page")?.with_tokens(tokens(&authority, peer::OPERATOR));
    let joining = Joining::new(mesh.registry(), (peer::OPERATOR, "page"));
    let joined = joining.join(Some(identity)).await?;
    let operator = Operator::build(&of_operator, traces, (shown.clone(), joined)).await?;

    let mut of_gateway = gateway_settings(settings, mesh.clone());
    of_gateway.listen = ports.release(GATEWAY, of_gateway.listen);
    of_gateway.admin_listen = ports.release(GATEWAY_ADMIN, of_gateway.admin_listen);
    let operator_url = format!("http://{}", local(operator.addr));
    let shown_here = traces.map(|_| operator_url.clone());
    of_gateway.traces_url = of_gateway.traces_url.or(shown_here);
    of_gateway.metrics_url.get_or_insert_with(|| format!("{operator_url}/metrics"));
    let identity = new_identity(&authority, GATEWAY, &of_gateway.mesh)?;
    let gateway = Gateway::build(of_gateway, Some(identity)).await?;
    let url = format!("http://{}", local(gateway.addr()));
    let readiness_url = format!("http://{}/readyz", local(gateway.admin_addr()));
    shown.add(GATEWAY, gateway.admin_addr());
    let bus = embedded_bus(settings, data_dir).await?;
    let context =
        ServiceContext { mesh, authority, bus, clock: Arc::new(SystemClock), shown, ports };
    Ok(StatelessParts {
        url,
        registry_url,
        readiness_url,
        gateway,
        registry,
        operator,
        mesh_file,
        context,
    })
}

/// Builds core. Waits for its servers without a limit.
///
/// # Errors
/// When a setting is bad, or the folder cannot be used.
pub(crate) async fn core(
    settings: &UpSettings,
    data_dir: &DataDir,
    (context, address): (&ServiceContext, SocketAddr),
) -> anyhow::Result<Core> {
    let mut settings = core_settings(settings, data_dir, context.mesh.clone());
    settings.listen = address;
    let dependencies = tourin_core::Dependencies {
        publisher: context.bus.clone().map(|bus| bus as _),
        clock: context.clock.clone(),
        workload: Some(new_identity(&context.authority, CORE, &settings.mesh)?),
    };
    let core = Core::bind(settings, dependencies).await?;
    // Its readiness says what it waits for.
    context.shown.add(CORE, core.addr());
    core.open().await
}

/// Builds the replicas of recommendation, on stores that they share.
///
/// # Errors
/// When a setting is bad, or the folder cannot be used.
pub(crate) async fn replicas(
    settings: &UpSettings,
    data_dir: &DataDir,
    (context, addresses): (&ServiceContext, &[SocketAddr]),
) -> anyhow::Result<Vec<Recommendation>> {
    let mut of_replica = recommendation_settings(settings, data_dir, context.mesh.clone());
    let stores = open_stores(&of_replica, context.clock.clone()).await?;
    let mut replicas = Vec::new();
    for (number, address) in (1..).zip(addresses) {
        of_replica.listen = *address;
        let dependencies = tourin_recommendation::Dependencies {
            events: context.bus.clone().map(|bus| bus as _),
            workload: Some(new_identity(
                &context.authority,
                tourin_recommendation::SERVICE,
                &of_replica.mesh,
            )?),
            stores: Some(stores.clone()),
            clock: context.clock.clone(),
        };
        let replica = Recommendation::build(of_replica.clone(), dependencies).await?;
        context.shown.add(self::replica(number), replica.addr());
        replicas.push(replica);
    }
    Ok(replicas)
}

/// The identity of a new instance of `service`.
fn new_identity(
    authority: &Arc<Authority>,
    service: &'static str,
    mesh: &MeshSettings,
) -> anyhow::Result<Workload> {
    let workload = authority.workload(service, &mesh.instance_id_or_new(service))?;
    Ok(workload.with_tokens(tokens(authority, service)))
}

/// Tokens by which an instance joins again, should its certificate have expired: after the machine was
/// suspended for long.
fn tokens(authority: &Arc<Authority>, service: &'static str) -> TokenSource {
    let authority = Arc::clone(authority);
    let ttl = Duration::from_secs(60);
    Arc::new(move || authority.join_token(service, None, ttl).map_err(|error| format!("{error:#}")))
}

/// The bus in this process; `None` with a broker, to which the services connect themselves.
async fn embedded_bus(
    settings: &UpSettings,
    data_dir: &DataDir,
) -> anyhow::Result<Option<Arc<InProcessBus>>> {
    if settings.parts.has_broker() {
        return Ok(None);
    }
    let letters = dead_letters::open(data_dir.path()).await?;
    let bus = InProcessBus::new(Arc::new(letters));
    // Before anything is published: a confirmed event must have reached every queue.
    for subscription in tourin_recommendation::subscriptions() {
        bus.declare(subscription)?;
    }
    Ok(Some(Arc::new(bus)))
}

fn gateway_settings(settings: &UpSettings, mesh: MeshAccess) -> tourin_gateway::Settings {
    let mut gateway = settings.parts.gateway.clone();
    gateway.mesh.access = mesh;
    if !has_sessions_on_redis(settings) {
        gateway.sessions.redis_url = None;
    }
    gateway
}

fn core_settings(
    settings: &UpSettings,
    data_dir: &DataDir,
    mesh: MeshAccess,
) -> tourin_core::Settings {
    let mut core = settings.parts.core.clone();
    core.data_dir = data_dir.path().to_owned();
    core.mesh.access = mesh;
    if !has_sessions_on_redis(settings) {
        core.database.sessions.redis_url = None;
    }
    core
}

/// Sessions are in Redis only if accounts are in MySQL; otherwise Redis is for the trend alone.
fn has_sessions_on_redis(settings: &UpSettings) -> bool {
    settings.parts.core.database.mysql().is_some()
}

fn recommendation_settings(
    settings: &UpSettings,
    data_dir: &DataDir,
    mesh: MeshAccess,
) -> tourin_recommendation::Settings {
    let mut recommendation = settings.parts.recommendation.clone();
    recommendation.data_dir = data_dir.path().to_owned();
    recommendation.mesh.access = mesh;
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
