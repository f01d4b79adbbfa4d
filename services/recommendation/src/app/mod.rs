//! Use cases and the ports they need. Every port method is one whole operation, atomic in its
//! engine; none of them knows which engine answers it.

pub mod ingest;
pub mod model;
pub mod ports;
pub mod recommend;
pub mod resync;

#[cfg(test)]
mod tests;
