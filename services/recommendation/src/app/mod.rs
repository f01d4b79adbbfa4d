//! Use cases and their ports. Each port method is one complete operation, atomic in its engine. The
//! use cases do not know the engines.

pub mod audit;
pub mod ingest;
pub mod last_trend;
pub mod model;
pub mod ports;
pub mod recommend;
pub mod resync;

#[cfg(test)]
mod tests;
