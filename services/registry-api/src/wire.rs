//! The registry's HTTP API. JSON, snake case.
//!
//! | call | who | body -> response |
//! |---|---|---|
//! | `POST /v1/certificates` | join token, or any peer | [`CertificateRequest`] -> [`IssuedCertificate`] |
//! | `POST /v1/join-tokens` | operator | [`JoinTokenRequest`] -> [`IssuedJoinToken`] |
//! | `POST /v1/root/rotation` | operator | -> 202; 409 being replaced already |
//! | `PUT /v1/instances/{service}/{id}` | itself | [`RegisterRequest`] -> [`Registered`]; 409 held by another address |
//! | `POST /v1/instances/{service}/{id}/renew` | itself | -> 204; 404 unknown: register again |
//! | `POST /v1/instances/{service}/{id}/drain?wait_ms=` | itself | -> [`Departure`]; 404 |
//! | `DELETE /v1/instances/{service}/{id}?wait_ms=` | itself | -> [`Departure`]; 404 |
//! | `POST /v1/instances/{service}/{id}/leave` | itself | [`LeaveRequest`] -> [`Departure`]; 404 |
//! | `GET /v1/instances?service=` | any peer | -> [`Snapshot`] |
//! | `GET /v1/watch?from=&epoch=&watcher=` | any peer; with `watcher` that gateway | server-sent events: [`SNAPSHOT_EVENT`], [`CHANGE_EVENT`] |
//! | `PUT /v1/watchers/{watcher}/ack` | that gateway | [`AckRequest`] -> 204; 404 not watching |
//! | `GET /v1/leases?service=` | operator | -> [`LeaseReport`] |
//! | `PUT /v1/overrides/{service}/{id}?wait_ms=` | operator | [`OverrideRequest`] -> [`Departure`]; 404; 409 too many |
//! | `DELETE /v1/protection/{service}` | operator | -> 204; 404 not protected |
//! | `GET /v1/departures?service=` | operator | -> [`ScaleReport`] |
//!
//! "Any peer" has a certificate of the mesh. "Itself" is the peer whose certificate names that service and
//! instance. A join token is sent as `Authorization: Bearer`. The `error` of a refusal is one of [`codes`], or a
//! kind that all services have, such as `invalid`.

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
    /// The services some of whose instances have no lease any more and stay, because too many leases
    /// ended at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protected: Vec<String>,
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
    /// It takes no requests, because an operator has said so.
    OutOfService,
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

/// Response to a drain, a deregistration or an operator's override: the receipt of the watchers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// The version that has the change.
    pub version: u64,
    /// Whether every live watcher acknowledged that version in time.
    pub acknowledged: bool,
    /// How many did.
    #[serde(default)]
    pub watchers: usize,
    /// The last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowest: Option<SlowestAck>,
}

/// The last watcher to acknowledge a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowestAck {
    /// Its name.
    pub watcher: String,
    /// The time from the change to its acknowledgement (milliseconds).
    pub ms: u64,
}

/// Body of an instance's last call, once it has no requests in flight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaveRequest {
    /// Requests that it answered in its life.
    pub served: u64,
    /// Those of them that it answered with 5xx.
    pub errors: u64,
    /// Time from its drain to its last answer (milliseconds).
    pub drain_ms: u64,
    /// The receipt of its drain; `None` when the registry did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Departure>,
}

/// Body of an operator's override. What is not given stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverrideRequest {
    /// Whether the instance is out of service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_service: Option<bool>,
    /// Its weight, instead of the one with which it registers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Its weight is the one with which it registers again.
    #[serde(default)]
    pub own_weight: bool,
}

/// The leases, for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReport {
    /// The last change in it.
    pub version: u64,
    /// The services whose ended leases are kept; see [`Snapshot::protected`].
    pub protected: Vec<String>,
    /// Sorted by service, then id.
    pub leases: Vec<LeaseInfo>,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// The instance. Its status is [`Status::Expired`] once the lease has ended.
    pub instance: Instance,
    /// What is left of the lease (milliseconds); 0 once it has ended.
    pub left_ms: u64,
}

/// The latest departures, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleReport {
    /// At most as many as the registry keeps.
    pub departures: Vec<DepartureRecord>,
}

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepartureRecord {
    /// When, in milliseconds since the Unix epoch, by the registry's clock.
    pub at_ms: i64,
    /// The instance as it last was.
    pub instance: Instance,
    /// Why it is gone.
    pub reason: DownReason,
    /// What it said when it left; `None` for one that did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<LeaveRequest>,
}

/// The `error` of refusals that only the registry has, for programs.
pub mod codes {
    /// 409: the id belongs to a live lease of another address.
    pub const ID_HELD: &str = "id_held";
    /// 503: the registry holds as many instances as it may.
    pub const REGISTRY_FULL: &str = "registry_full";
    /// 409: the service has as many instances as it may.
    pub const TOO_MANY_INSTANCES: &str = "too_many_instances";
    /// 409: the peer has as many watches open as it may.
    pub const TOO_MANY_WATCHES: &str = "too_many_watches";
    /// 422: the registry cannot reach the instance at its address, or finds another one there.
    pub const UNVERIFIED: &str = "unverified";
    /// 401: the join token is not one of this mesh, or has expired.
    pub const JOIN_TOKEN_INVALID: &str = "join_token_invalid";
    /// 401: the join token is used up.
    pub const JOIN_TOKEN_USED_UP: &str = "join_token_used_up";
    /// 409: the root is being replaced already, or is not the registry's own.
    pub const ROOT_FIXED: &str = "root_fixed";
}

/// Body of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AckRequest {
    /// Everything up to this version is in effect at the watcher.
    pub version: u64,
}

/// What a join token says: the claims of a JWT that the registry signs for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinClaims {
    /// The mesh's name.
    pub iss: String,
    /// The service whose instances it lets join.
    pub sub: String,
    /// Its id, by which uses are counted.
    pub jti: String,
    /// Its end, in seconds since the epoch.
    pub exp: u64,
    /// How many instances it lets join; without it, any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// The mesh's root at the time: SHA-256 of its DER, in base64url. By it an instance that joins knows
    /// the registry.
    pub root: String,
}

/// Body of a request for a certificate. The same key and instance by the same join token again, because the
/// response was lost, is no further use of the token for ten minutes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateRequest {
    /// PKCS #10, PEM. Only its key counts.
    pub csr: String,
    /// The instance's name. A renewal keeps that of the peer's certificate.
    pub instance: String,
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificate {
    /// The certificate and the authority's own between it and the root (PEM).
    pub chain: String,
    /// The mesh's roots (PEM); two while they change.
    pub roots: String,
    /// How long it is valid from now, in seconds.
    pub lifetime_s: u32,
}

/// Body of a request for a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenRequest {
    /// The service whose instances it lets join.
    pub service: String,
    /// How many; without it, any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// How long it is valid, in seconds; at most [`crate::limits::MAX_JOIN_TOKEN_TTL_S`].
    pub ttl_s: u64,
}

/// A join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedJoinToken {
    /// A JWT with [`JoinClaims`].
    pub token: String,
}
