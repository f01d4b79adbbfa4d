//! The registry's HTTP API. JSON, snake case.
//!
//! | call | who | body -> response |
//! |---|---|---|
//! | `PUT /v1/instances/{service}/{id}` | secret | [`RegisterRequest`] -> [`Registered`]; 409 held by another address |
//! | `POST /v1/instances/{service}/{id}/renew` | secret | -> 204; 404 unknown: register again |
//! | `POST /v1/instances/{service}/{id}/drain?wait_ms=` | secret | -> [`Departure`]; 404 |
//! | `DELETE /v1/instances/{service}/{id}?wait_ms=` | secret | -> [`Departure`]; 404 |
//! | `GET /v1/instances?service=` | anyone | -> [`Snapshot`] |
//! | `GET /v1/watch?from=&epoch=&watcher=` | anyone; with `watcher` secret | server-sent events: [`SNAPSHOT_EVENT`], [`CHANGE_EVENT`] |
//! | `PUT /v1/watchers/{watcher}/ack` | secret | [`AckRequest`] -> 204; 404 not watching |
//!
//! "Secret" is `Authorization: Bearer <registration secret>`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::instance::{Instance, Status};

/// Name of the watch event whose data is a [`Snapshot`].
pub const SNAPSHOT_EVENT: &str = "snapshot";

/// Name of the watch event whose data is a [`Change`].
pub const CHANGE_EVENT: &str = "change";

/// A silent watch sends a comment this often (milliseconds).
pub const KEEP_ALIVE_MS: u64 = 1_000;

/// Longest time that a draining or leaving instance waits for acknowledgements (milliseconds).
pub const MAX_WAIT_MS: u64 = 2_000;

/// The registry's state at one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The registry's run that this comes from; see the crate's documentation.
    pub epoch: u64,
    /// The last change in it.
    pub version: u64,
    /// Sorted by service, then id.
    pub instances: Vec<Instance>,
}

/// Why an instance is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DownReason {
    /// It deregistered.
    Left,
    /// It did not renew its lease in time.
    Expired,
}

/// What happened to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ChangeKind {
    /// It takes requests; also when only its address or metadata changed.
    Up,
    /// It takes no new requests.
    Draining,
    /// It is gone.
    Down {
        /// Why.
        reason: DownReason,
    },
}

/// One change of membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The version that this change makes.
    pub version: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: ChangeKind,
    /// The instance as it is after the change, or as it last was when it is gone.
    pub instance: Instance,
}

/// Body of a registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// Where others reach the instance.
    pub address: SocketAddr,
    /// How long it stays registered without renewal (milliseconds);
    /// between [`crate::limits::MIN_LEASE_MS`] and [`crate::limits::MAX_LEASE_MS`].
    pub lease_ms: u64,
    /// [`Status::Up`] by default.
    #[serde(default)]
    pub status: Status,
    /// See [`crate::limits::metadata`].
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// Response to a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// A version in which the instance is known.
    pub version: u64,
}

/// Response to a drain or a deregistration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// The version that took the instance out of service.
    pub version: u64,
    /// Whether every live watcher acknowledged that version in time.
    pub acknowledged: bool,
}

/// Body of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AckRequest {
    /// Everything up to this version is in effect at the watcher.
    pub version: u64,
}
