//! `tourin up`: the whole mesh in one process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use clap::builder::BoolishValueParser;
use tourin_gateway::client_address::Network;
use tourin_gateway::origin::Origin;

use crate::operator::OperatorSettings;
use crate::servers::Servers;

/// The most replicas of a service in one process: each has its own listener and heartbeat.
const MAX_REPLICAS: usize = 16;

/// Settings of the all-in-one.
#[derive(Debug, Clone, Args)]
pub struct UpSettings {
    /// Where the gateway listens; port 0 takes a free one
    #[arg(long, env = "TOURIN_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Folder that keeps the data; made when it is not there
    #[arg(long, env = "TOURIN_DATA_DIR", value_name = "DIR", default_value = "tourin-data")]
    pub data_dir: PathBuf,
    /// Keep the data in a temporary folder that goes with the process; wins over --data-dir
    #[arg(long, env = "TOURIN_EPHEMERAL", value_parser = BoolishValueParser::new())]
    pub ephemeral: bool,
    /// Do not load the catalogue of tour spots at the first start
    #[arg(long, env = "TOURIN_NO_DEMO", value_parser = BoolishValueParser::new())]
    pub no_demo: bool,
    /// How many instances of a service to run; `recommendation` from 1 to 16
    #[arg(
        long,
        env = "TOURIN_REPLICAS",
        value_name = "SERVICE=N",
        default_value = "recommendation=1"
    )]
    pub replicas: Replicas,
    /// Milliseconds in which a view's or bookmark's worth for the trend halves
    #[arg(long, env = "TOURIN_TREND_HALF_LIFE_MS", value_name = "MS", default_value_t = 3_600_000, value_parser = clap::value_parser!(u64).range(1..=31_536_000_000))]
    pub trend_half_life_ms: u64,
    /// Send session cookies over HTTPS only; for a gateway behind a TLS terminator
    #[arg(long, env = "TOURIN_COOKIE_SECURE", value_parser = BoolishValueParser::new())]
    pub cookie_secure: bool,
    /// Web origin (`https://app.example`) that may call with cookies from another site; repeatable
    #[arg(
        long = "allowed-origin",
        env = "TOURIN_ALLOWED_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    pub allowed_origins: Vec<Origin>,
    /// Address or network (`10.0.0.0/8`) of proxies in front whose word on the client is believed;
    /// repeatable
    #[arg(long, env = "TOURIN_TRUSTED_PROXIES", value_name = "NET", value_delimiter = ',')]
    pub trusted_proxies: Vec<Network>,
    /// Route table of the gateway [default: the one built in, gateway/routes.toml]
    #[arg(long, env = "TOURIN_ROUTES", value_name = "FILE")]
    pub routes: Option<PathBuf>,
    /// Traces and metrics for whoever runs it.
    #[command(flatten)]
    pub operator: OperatorSettings,
    /// Servers in the place of what is embedded.
    #[command(flatten)]
    pub servers: Servers,
}

impl UpSettings {
    /// A mesh on a free port and a temporary folder, otherwise with the defaults.
    pub fn ephemeral() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            data_dir: PathBuf::new(),
            ephemeral: true,
            no_demo: false,
            replicas: Replicas { recommendation: 1 },
            trend_half_life_ms: 3_600_000,
            cookie_secure: false,
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            routes: None,
            operator: OperatorSettings::default(),
            servers: Servers::default(),
        }
    }
}

/// How many instances of each service that can have several.
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
