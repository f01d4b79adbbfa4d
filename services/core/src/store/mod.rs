//! Adapters of the ports in [`crate::app`], one module per engine.

mod engine;
mod errors;
pub mod key_files;
mod operation;
pub mod redis;
mod spot_index;
mod sql;

#[cfg(test)]
mod content_contract;
#[cfg(test)]
mod contract;

pub(crate) use self::engine::DATABASE_FILE;
pub use self::engine::Store;
pub use self::sql::{mysql, sqlite};
