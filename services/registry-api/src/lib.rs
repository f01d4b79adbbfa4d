//! Wire types and client of Tourin's registry.
//!
//! | you are | you use |
//! |---|---|
//! | an instance that wants to be found | [`Registration`]: registers, renews, re-registers, leaves |
//! | somebody who looks for instances | [`Directory`]: follows every change, keeps the last knowledge |
//! | a tool | [`RegistryClient`]: one call, one answer |
//! | the registry itself | [`wire`], [`limits`] |
//!
//! Every change of membership has a number, its *version*. Versions grow by one with each change
//! and start at the registry's start time in microseconds since the Unix epoch, so that they grow
//! across restarts too. The start value is the *epoch*: two snapshots with different epochs come
//! from different lives of the registry, which remembers nothing between them.

pub mod limits;
pub mod wire;

mod backoff;
mod client;
mod directory;
mod instance;
mod membership;
mod registration;
pub mod sse;

pub use client::{ClientError, InvalidRegistryUrl, RegistryClient};
pub use directory::{Directory, DirectorySettings, OUT_OF_REACH};
pub use instance::{Instance, Status};
pub use registration::{Registration, RegistrationState};
pub use wire::{Change, ChangeKind, Departure, DownReason, Registered, Snapshot};
