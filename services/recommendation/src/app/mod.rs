//! Use cases and the ports they need. Every port method is one whole operation, atomic in its
//! engine; none of them knows which engine answers it.

pub mod audit;
pub mod ingest;
pub mod last_trend;
pub mod model;
pub mod ports;
pub mod recommend;
pub mod resync;

#[cfg(test)]
mod tests;
