//! A running copy of a service.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Whether an instance takes new requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Takes requests.
    #[default]
    Up,
    /// Finishes the requests it has and takes no new ones.
    Draining,
}

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

    /// `http://<address>`, without a trailing slash.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }
}
