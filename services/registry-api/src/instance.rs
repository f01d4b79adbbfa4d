//! A running copy of a service.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Whether an instance takes new requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Takes requests.
    #[default]
    Up,
    /// Finishes the requests it has and takes no new ones, because it is about to leave.
    Draining,
    /// Takes no requests, because an operator has said so. It runs on, and its lease is renewed.
    OutOfService,
    /// Its lease has ended. Only in reports to operators: to everybody else it is gone, or, where it is
    /// kept by protection, what it was.
    Expired,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "UP",
            Self::Draining => "DRAINING",
            Self::OutOfService => "OUT_OF_SERVICE",
            Self::Expired => "EXPIRED",
        })
    }
}

/// Metadata key of an instance's share of requests among its service's instances: a whole number from 0
/// to [`MAX_WEIGHT`]; [`DEFAULT_WEIGHT`] where it is missing.
pub const WEIGHT: &str = "weight";
/// Metadata key of the version of the program that runs.
pub const VERSION: &str = "version";
/// Metadata key of the zone in which an instance runs.
pub const ZONE: &str = "zone";
/// Metadata key of the address at which an instance answers operators, where that is another one than for
/// its clients: the gateway's.
pub const ADMIN_ADDRESS: &str = "admin";
/// The weight of an instance that names none.
pub const DEFAULT_WEIGHT: u32 = 100;
/// The greatest weight.
pub const MAX_WEIGHT: u32 = 1_000;

/// A running copy of a service, identified by the service's name and an id that it chose itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The service's name; see [`crate::limits::service_name`].
    pub service: String,
    /// Unique among the service's live instances; see [`crate::limits::instance_id`].
    pub id: String,
    /// Where others reach it over HTTP.
    pub address: SocketAddr,
    /// Whether it takes new requests.
    pub status: Status,
    /// What other programs may need to know about it; see [`crate::limits::metadata`].
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl Instance {
    /// An instance that is up, without metadata.
    pub fn new(service: impl Into<String>, id: impl Into<String>, address: SocketAddr) -> Self {
        Self {
            service: service.into(),
            id: id.into(),
            address,
            status: Status::Up,
            metadata: BTreeMap::new(),
        }
    }

    /// The same with one more pair of metadata.
    #[must_use]
    pub fn with_metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// Its [`WEIGHT`].
    pub fn weight(&self) -> u32 {
        let given = self.metadata.get(WEIGHT).and_then(|weight| weight.parse().ok());
        given.unwrap_or(DEFAULT_WEIGHT)
    }

    /// `https://<address>`, without a trailing slash.
    pub fn base_url(&self) -> String {
        format!("https://{}", self.address)
    }
}
