//! Wire types and client of Tourin's registry.
//!
//! - [`Workload`] is an instance's key and certificate, by which it and its peers know each other.
//! - [`Registration`] keeps an instance registered: it registers, renews, registers again, leaves.
//! - [`Directory`] finds instances: it follows every change and keeps the last known state.
//! - [`RegistryClient`] makes single calls, for tools.
//! - [`wire`] and [`limits`] are what registry and clients agree on.
//!
//! Every change of membership has a *version*. Versions grow by one with each change. They start at
//! the registry's start time in microseconds since the Unix epoch, so they also grow across
//! restarts. The first version is the *epoch*: snapshots with different epochs are from different
//! runs of the registry, which remembers nothing between them.

pub mod limits;
pub mod wire;

mod backoff;
mod client;
mod directory;
mod instance;
mod membership;
mod registration;
pub mod sse;
mod workload;

pub use client::{ClientError, InvalidRegistryUrl, RegistryClient};
pub use directory::{Directory, DirectorySettings, UNREACHABLE};
pub use instance::{
    ADMIN_ADDRESS, DEFAULT_WEIGHT, Instance, MAX_WEIGHT, Status, VERSION, WEIGHT, ZONE,
};
pub use registration::{Departing, Registration, RegistrationState};
pub use wire::{Change, ChangeKind, Departure, DownReason, Registered, Snapshot};
pub use workload::{
    HttpSetup, InvalidIdentity, JoinError, Joined, Joining, REGISTRY, RegistryAccess, TokenSource,
    Workload, WorkloadKey, WorkloadName, root_hash,
};
