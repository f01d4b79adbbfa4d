//! What the use cases need: the instances and their leases, in this process or shared by several registries.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use chrono::TimeDelta;
use tokio::sync::watch as signal;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::wire::{
    DepartureRecord, JoinClaims, LeaseReport, LeaveRequest, OverrideRequest,
};
use tourin_registry_api::{Instance, Snapshot};

use crate::domain::{AckState, LeaseError, RegisterError, Session, Since, Swept};

/// The store does not answer. Nothing is known of what became of the call; each may be repeated.
#[derive(Debug, thiserror::Error)]
#[error("the registry's store does not answer: {0:#}")]
pub struct Unavailable(#[from] pub anyhow::Error);

/// Why a call had no effect.
#[derive(Debug, thiserror::Error)]
pub enum StoreError<E> {
    /// The rules refuse it.
    #[error("{0}")]
    Refused(E),
    /// The store does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// The instances, their leases, the changes, and who has acknowledged these. The rules are those of
/// [`crate::domain::Catalogue`] and [`crate::domain::Acks`]. A call is atomic, also between registries that
/// share a store.
#[async_trait]
pub trait Store: Debug + Send + Sync + 'static {
    /// Whether the instance has a lease at its address.
    async fn has(&self, instance: &Instance) -> Result<bool, Unavailable>;

    /// Registers an instance, or renews its lease if nothing about it has changed. Gives a version that
    /// includes it, which this registry shows by then.
    async fn register(
        &self,
        instance: &Instance,
        length: TimeDelta,
    ) -> Result<u64, StoreError<RegisterError>>;

    /// Renews a lease.
    async fn renew(&self, service: &str, id: &str) -> Result<(), StoreError<LeaseError>>;

    /// Marks an instance as draining. Gives a version that includes it.
    async fn drain(&self, service: &str, id: &str) -> Result<u64, StoreError<LeaseError>>;

    /// Removes an instance, with what it `said`. Gives the version of that change.
    async fn deregister(
        &self,
        service: &str,
        id: &str,
        said: Option<LeaveRequest>,
    ) -> Result<u64, StoreError<LeaseError>>;

    /// Changes what an operator decides about an instance. Gives a version that includes it.
    async fn set_override(
        &self,
        of: (&str, &str),
        request: &OverrideRequest,
    ) -> Result<u64, StoreError<LeaseError>>;

    /// Ends the protection of a service; false if there is none.
    async fn end_protection(&self, service: &str) -> Result<bool, Unavailable>;

    /// Removes the instances whose leases have ended. Gives what no other sweep has given.
    async fn sweep(&self) -> Result<Swept, Unavailable>;

    /// The time until a sweep may find something.
    fn until_sweep(&self) -> Duration;

    /// The leases of one service or of all.
    async fn leases(&self, service: Option<&str>) -> Result<LeaseReport, Unavailable>;

    /// The latest departures of one service or of all.
    async fn departures(&self, service: Option<&str>) -> Result<Vec<DepartureRecord>, Unavailable>;

    /// Whether this registry knows the instances. What it shows before that is not to be believed.
    fn ready(&self) -> Result<(), Unavailable>;

    /// Whether ended leases of some service are kept.
    fn is_protecting(&self) -> bool;

    /// The instances as this registry shows them.
    fn snapshot(&self, service: Option<&str>) -> Snapshot;

    /// How a watcher that has `version` of `epoch` (0: unknown) catches up.
    fn since(&self, version: u64, epoch: u64) -> Since;

    /// The version that this registry shows, with a wake-up at every change.
    fn version(&self) -> signal::Receiver<u64>;

    /// A watcher that acknowledges is here.
    async fn joined(&self, session: &Session) -> Result<(), Unavailable>;

    /// It has left. Other registries are told later.
    fn left(&self, session: &Session);

    /// Notes that everything up to `version` is in effect at a watcher; false when there is no such watcher.
    async fn acknowledge(&self, watcher: &str, version: u64) -> Result<bool, Unavailable>;

    /// Who has acknowledged `version`.
    async fn acks(&self, version: u64) -> Result<AckState, Unavailable>;

    /// Skips the watchers that have not acknowledged `version` until they have; gives their names.
    async fn stop_waiting_for(&self, version: u64) -> Result<Vec<String>, Unavailable>;

    /// Wakes when somebody has acknowledged or left here. What happens at other registries wakes nobody, so
    /// who waits looks again after [`Store::look_again`].
    fn progress(&self) -> signal::Receiver<()>;

    /// How long a wait for acknowledgements may rely on [`Store::progress`].
    fn look_again(&self) -> Duration;

    /// Keeps the store in touch with other registries, until `stop`.
    async fn keep(&self, stop: Shutdown);
}

/// How long a request by a join token may be repeated, because its response was lost. Instances ask again every few
/// seconds; this leaves time for a network that is cut.
pub const REPEATABLE: Duration = Duration::from_secs(600);

/// Counts uses of join tokens, for all registries of a mesh.
#[async_trait]
pub trait TokenUses: Send + Sync + 'static {
    /// Counts a use of a token that has a `limit` of them; false when it is used up. The same `request` again is
    /// no other use within [`REPEATABLE`], also when the token is used up meanwhile.
    async fn count(
        &self,
        claims: &JoinClaims,
        limit: u32,
        request: &str,
    ) -> Result<bool, Unavailable>;
}

/// Whether an instance is found where it says.
#[async_trait]
pub trait Verifier: Debug + Send + Sync + 'static {
    /// Connects to the instance as others would.
    ///
    /// # Errors
    /// Why they would not find it.
    async fn verify(&self, instance: &Instance) -> Result<(), String>;
}
