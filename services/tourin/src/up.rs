//! `tourin up`: the whole mesh in one process.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use crate::DATA_DIR;
use crate::operator::OperatorSettings;
use crate::part_settings::PartSettings;

/// Maximum number of replicas of a service in one process: each has its own listener and heartbeat.
const MAX_REPLICAS: usize = 16;

/// Settings of the all-in-one.
#[derive(Debug, Clone, Args)]
pub struct UpSettings {
    /// Folder that keeps the data; created if it does not exist
    #[arg(long, env = "TOURIN_DATA_DIR", value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// Keep the data in a temporary folder, removed with the process; wins over --data-dir
    #[arg(long, env = "TOURIN_EPHEMERAL")]
    pub ephemeral: bool,
    /// How many instances of a service to run; `recommendation` from 1 to 16
    #[arg(
        long,
        env = "TOURIN_REPLICAS",
        value_name = "SERVICE=N",
        default_value = "recommendation=1"
    )]
    pub replicas: Replicas,
    /// The operators' listener.
    #[command(flatten)]
    pub operator: OperatorSettings,
    /// The settings of the parts, without those that `up` sets itself.
    #[command(flatten)]
    pub parts: PartSettings,
}

impl UpSettings {
    /// The defaults, on a free port and a temporary folder.
    pub fn ephemeral() -> Self {
        let mut parts = PartSettings::default();
        parts.gateway.listen.set_port(0);
        Self {
            data_dir: PathBuf::new(),
            ephemeral: true,
            replicas: Replicas { recommendation: 1 },
            operator: OperatorSettings::default(),
            parts,
        }
    }
}

/// The number of instances by service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    /// Instances of the recommendation service.
    pub recommendation: usize,
}

impl FromStr for Replicas {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || format!("expected recommendation=N with N from 1 to {MAX_REPLICAS}");
        let (service, count) = text.split_once('=').ok_or_else(expected)?;
        if service != "recommendation" {
            return Err(format!("'{service}' cannot be replicated in one process; {}", expected()));
        }
        match count.parse() {
            Ok(recommendation) if (1..=MAX_REPLICAS).contains(&recommendation) => {
                Ok(Self { recommendation })
            }
            _ => Err(expected()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_a_service_and_a_number() {
        assert_eq!("recommendation=3".parse(), Ok(Replicas { recommendation: 3 }));
        for wrong in ["recommendation", "recommendation=0", "recommendation=x", "core=2", "=1"] {
            assert!(wrong.parse::<Replicas>().unwrap_err().contains("recommendation=N"), "{wrong}");
        }
    }
}
