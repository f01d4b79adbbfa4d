//! Settings of the registry.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tourin_chassis::config::{PlaintextSettings, REGISTRY_ADDRESS, ServerUrl, Unquoted, defaults};
use tourin_chassis::redis::RedisUrl;

use crate::authority::AuthoritySettings;
use crate::domain::{CatalogueLimits, ProtectionRule, WatcherLimits};

/// Settings of the registry.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Address to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "TOURIN_REGISTRY_LISTEN",
        value_name = "ADDR",
        default_value = REGISTRY_ADDRESS
    )]
    pub listen: SocketAddr,
    /// Folder of the mesh's authority: the root and its key, and the key of join tokens
    #[arg(
        long,
        env = "TOURIN_REGISTRY_DATA_DIR",
        value_name = "DIR",
        default_value = "tourin-data/registry"
    )]
    pub data_dir: PathBuf,
    /// Name of the mesh, which is the trust domain of its SPIFFE IDs
    #[arg(long, env = "TOURIN_MESH", value_name = "NAME", default_value = "tourin")]
    pub mesh: String,
    /// Seconds that an instance's certificate is valid. Instances renew at half of it; it is also how long
    /// they work while the registry is away
    #[arg(long, env = "TOURIN_CERTIFICATE_LIFETIME_S", value_name = "S", default_value_t = 3_600, value_parser = clap::value_parser!(u32).range(10..=604_800))]
    pub certificate_lifetime_s: u32,
    /// Certificates of an authority that signs for this one (PEM), its own first, the root last
    /// [default: a root that the registry makes in its data folder]
    #[arg(long, env = "TOURIN_AUTHORITY_CERTIFICATES", value_name = "FILE")]
    pub authority_certificates: Option<PathBuf>,
    /// The key of that authority (PKCS #8, PEM; mode 0600)
    #[arg(long, env = "TOURIN_AUTHORITY_KEY", value_name = "FILE")]
    pub authority_key: Option<PathBuf>,
    /// Folder in which the registry keeps a join token for each service, in SERVICE/join-token
    #[arg(long, env = "TOURIN_JOIN_TOKENS", value_name = "DIR")]
    pub join_tokens: Option<PathBuf>,
    /// Redis 7 that several registries of a mesh share, so that any of them serves:
    /// redis://[USER:PASSWORD@]HOST:PORT[/DATABASE], rediss:// for TLS. They need one authority: give each the
    /// same --authority-certificates and --authority-key [default: none; this registry is alone, and
    /// instances are in memory]
    #[arg(long, env = "TOURIN_REGISTRY_REDIS_URL", value_name = "URL", hide_env_values = true, value_parser = Unquoted::<ServerUrl<RedisUrl>>::parser())]
    pub registry_redis_url: Option<ServerUrl<RedisUrl>>,
    /// What the names of the registry's keys in Redis begin with; the same for every registry of a mesh
    #[arg(
        long,
        env = "TOURIN_REGISTRY_REDIS_PREFIX",
        value_name = "TEXT",
        default_value = "tourin:registry"
    )]
    pub registry_redis_prefix: String,
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub plaintext: PlaintextSettings,
    /// Connect to each instance before it is registered, as others would: it must answer at its address with
    /// its own certificate
    #[arg(long, env = "TOURIN_REGISTRY_VERIFY")]
    pub verify_registrations: bool,
    /// Maximum number of instances
    #[arg(
        long,
        env = "TOURIN_REGISTRY_MAX_INSTANCES",
        value_name = "N",
        default_value_t = 1_000,
        value_parser = clap::value_parser!(u32).range(1..=5_000)
    )]
    pub max_instances: u32,
    /// Maximum number of instances of one service
    #[arg(
        long,
        env = "TOURIN_REGISTRY_MAX_INSTANCES_PER_SERVICE",
        value_name = "N",
        default_value_t = 500,
        value_parser = clap::value_parser!(u32).range(1..=5_000)
    )]
    pub max_instances_per_service: u32,
    /// Share of a service's leases, in percent, above which leases that run out at once are not believed: the
    /// last known instances stay, until renewals return or `tourin ctl end-protection`. 100 believes all
    #[arg(
        long,
        env = "TOURIN_REGISTRY_PROTECTION_PERCENT",
        value_name = "PERCENT",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=100)
    )]
    pub protection_percent: u32,
    /// Least number of a service's leases at which that holds
    #[arg(
        long,
        env = "TOURIN_REGISTRY_PROTECTION_MIN_INSTANCES",
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=5_000)
    )]
    pub protection_min_instances: u32,
    /// Maximum number of watches, of gateways and of others
    #[arg(
        long,
        env = "TOURIN_REGISTRY_MAX_WATCHERS",
        value_name = "N",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub max_watchers: u32,
    /// Maximum number of watches of one peer
    #[arg(
        long,
        env = "TOURIN_REGISTRY_MAX_WATCHES_PER_PEER",
        value_name = "N",
        default_value_t = 8,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub max_watches_per_peer: u32,
    /// Changes kept for watchers that resume
    #[arg(
        long,
        env = "TOURIN_REGISTRY_HISTORY",
        value_name = "N",
        default_value_t = 1_024,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub history: u32,
}

impl Settings {
    /// The defaults, at an address and with the authority's files in `data_dir`.
    pub fn new(listen: SocketAddr, data_dir: impl Into<PathBuf>) -> Self {
        Self { listen, data_dir: data_dir.into(), ..defaults(&[]) }
    }

    pub(crate) fn authority(&self) -> AuthoritySettings {
        let given = self.authority_certificates.clone().zip(self.authority_key.clone());
        AuthoritySettings {
            folder: self.data_dir.clone(),
            mesh: self.mesh.clone(),
            lifetime: Duration::from_secs(self.certificate_lifetime_s.into()),
            given,
            tokens: self.join_tokens.clone(),
        }
    }

    /// The Redis that registries share, if any.
    pub(crate) fn redis(&self) -> Option<&RedisUrl> {
        ServerUrl::given(self.registry_redis_url.as_ref())
    }

    pub(crate) fn catalogue_limits(&self) -> CatalogueLimits {
        CatalogueLimits {
            instances: self.max_instances as usize,
            per_service: self.max_instances_per_service as usize,
            history: self.history as usize,
            protection: ProtectionRule {
                percent: self.protection_percent as usize,
                min_leases: self.protection_min_instances as usize,
            },
        }
    }

    pub(crate) fn watcher_limits(&self) -> WatcherLimits {
        WatcherLimits {
            watchers: self.max_watchers as usize,
            per_peer: self.max_watches_per_peer as usize,
        }
    }
}
