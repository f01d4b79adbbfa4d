//! Adapters of the ports in [`crate::app`], one module per engine.

pub mod key_files;
pub mod sqlite;

#[cfg(test)]
mod content_contract;
#[cfg(test)]
mod contract;
