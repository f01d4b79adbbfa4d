//! Where the instances and their leases are: in this process, or in Redis for several registries.

#[cfg(test)]
mod contract;
pub mod memory;
pub mod redis;
