//! Settings of the registry.

use std::net::SocketAddr;

use clap::Args;
use tourin_chassis::config::{REGISTRY_ADDRESS, Unquoted, defaults};
use tourin_chassis::secret::Secret;

use crate::app::Limits;
use crate::domain::{CatalogueLimits, WatcherLimits};

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
    /// Secret shared by the mesh (16 characters or more): only its holders may register
    #[arg(long, env = "TOURIN_REGISTRATION_SECRET", value_name = "SECRET", hide_env_values = true, value_parser = Unquoted::<Secret>::parser())]
    pub registration_secret: Secret,
    /// Maximum number of instances
    #[arg(
        long,
        env = "TOURIN_REGISTRY_MAX_INSTANCES",
        value_name = "N",
        default_value_t = 1_000,
        value_parser = clap::value_parser!(u32).range(1..=5_000)
    )]
    pub max_instances: u32,
    /// Maximum number of authenticated watchers, named or not
    #[arg(
        long,
        env = "TOURIN_REGISTRY_MAX_WATCHERS",
        value_name = "N",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub max_watchers: u32,
    /// Maximum number of anonymous watchers
    #[arg(
        long,
        env = "TOURIN_REGISTRY_MAX_ANONYMOUS_WATCHERS",
        value_name = "N",
        default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(0..=10_000)
    )]
    pub max_anonymous_watchers: u32,
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
    /// The defaults, at an address and with a secret.
    pub fn new(listen: SocketAddr, registration_secret: Secret) -> Self {
        let defaults =
            defaults(&[&format!("--registration-secret={}", registration_secret.expose())]);
        Self { listen, registration_secret, ..defaults }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            catalogue: CatalogueLimits {
                instances: self.max_instances as usize,
                history: self.history as usize,
            },
            watchers: WatcherLimits {
                authenticated: self.max_watchers as usize,
                anonymous: self.max_anonymous_watchers as usize,
            },
        }
    }
}
