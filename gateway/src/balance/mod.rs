//! Which instance of a service gets a request.
//!
//! A [`Policy`] of the route chooses among a [`ServicePool`]'s members: the service's instances, each with
//! its weight, its zone and its health. Instances that [`crate::outliers`] has ejected are passed over.
//!
//! Choosing takes no lock and does not walk over the members, unless almost none of them may be chosen. An
//! instance whose turn it is and that may not be chosen is replaced by a random one. So its share goes to
//! all others, and not to its neighbour alone.

mod policy;
mod pool;
mod schedule;

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, value_parser};

use crate::outliers::OutlierSettings;
use crate::retries::RetrySettings;

pub use policy::{HashKey, Policy, RawPolicy};
pub use pool::{Candidates, Member, MemberReport, ServicePool, ServiceReport};

/// How instances are chosen.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct BalanceSettings {
    /// Milliseconds in which a new instance, or one that returns after an ejection, comes to its full
    /// share of requests; 0: at once
    #[arg(long, env = "TOURIN_GATEWAY_SLOW_START_MS", value_name = "MS", default_value_t = 5_000, value_parser = value_parser!(u64).range(0..=3_600_000))]
    pub slow_start_ms: u64,
}

/// How the instances of a service are chosen, ejected and tried again.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// The choice.
    pub balance: BalanceSettings,
    /// The gateway's zone.
    pub zone: Option<String>,
    /// The ejection.
    pub outliers: Arc<OutlierSettings>,
    /// The budget of retries.
    pub retries: RetrySettings,
}

impl BalanceSettings {
    fn slow_start(&self) -> Duration {
        Duration::from_millis(self.slow_start_ms)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::{BalanceSettings, PoolSettings};
    use crate::outliers::tests::settings;
    use crate::retries::RetrySettings;

    pub(crate) fn pool_settings() -> PoolSettings {
        PoolSettings {
            balance: BalanceSettings { slow_start_ms: 0 },
            zone: None,
            outliers: Arc::new(settings()),
            retries: RetrySettings {
                retry_budget_percent: 20,
                retry_budget_min: 10,
                retry_pause_ms: 25,
            },
        }
    }
}
