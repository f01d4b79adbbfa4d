//! Why the registry does not do what it is asked.

use std::net::SocketAddr;

/// A registration that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The id belongs to a live lease of another address.
    #[error(
        "the id is held by a live instance at {held_by}; choose another id or wait for its lease to end"
    )]
    Held {
        /// The holder's address.
        held_by: SocketAddr,
    },
    /// The limit of instances is reached.
    #[error("the registry holds as many instances as it may ({limit})")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// The registry does not find the instance where others would.
    #[error("the registry does not find this instance at {address}: {reason}")]
    Unverified {
        /// The instance's address.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// The limit of instances of the service is reached.
    #[error("the registry holds as many instances of this service as it may ({limit})")]
    ServiceFull {
        /// The limit.
        limit: usize,
    },
}

/// A call about an instance that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// No live lease has this service and id.
    #[error("no such instance")]
    Unknown,
}
