//! Use cases and the ports they need. Every port method is one whole atomic operation; none of
//! them knows which engine answers it.

pub mod accounts;
pub mod attempts;
pub mod bookmarks;
pub mod content;
pub mod import;
mod outcomes;
pub mod passwords;
pub mod reviews;
pub mod revocations;
pub mod sessions;
pub mod signing;
pub mod spots;
mod tokens;
pub mod views;

/// What a port answers when its engine fails. The caller can do nothing but pass it on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Out of reach or overloaded; trying again later may help.
    #[error("the store cannot be reached")]
    Unavailable(#[source] anyhow::Error),
    /// A fault: a statement that is wrong, data that breaks a rule.
    #[error("the store failed")]
    Failed(#[source] anyhow::Error),
}
