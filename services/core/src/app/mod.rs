//! Use cases and the ports they need. Every port method is one atomic operation. Use cases do not
//! depend on the engine behind a port.

pub mod accounts;
pub mod attempts;
pub mod bookmarks;
pub mod client_source;
pub mod content;
pub mod devices;
pub mod fair_queue;
pub mod import;
pub mod invalidations;
mod outcomes;
pub mod passwords;
pub mod reviews;
pub mod revocations;
pub mod session_store;
pub mod sessions;
pub mod signals;
pub mod signing;
pub mod spots;
mod tokens;
pub mod views;
pub mod visitor_keys;

/// A failure of the engine behind a port. Callers can only pass it on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Unreachable or overloaded; a retry later may succeed.
    #[error("the store cannot be reached")]
    Unavailable(#[source] anyhow::Error),
    /// A fault, such as an invalid statement or stored data that breaks a rule.
    #[error("the store failed")]
    Failed(#[source] anyhow::Error),
}

impl StoreError {
    /// With its causes, for a log line.
    fn describe(&self) -> String {
        match self {
            Self::Unavailable(cause) | Self::Failed(cause) => format!("{self}: {cause:#}"),
        }
    }
}
