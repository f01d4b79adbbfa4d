//! The registry and its client, over real HTTP.

// Helpers outside of test functions: a panic is how a scenario fails.
#![allow(clippy::unwrap_used)]

mod departures;
mod interruptions;
mod leases;
mod strangers;
mod world;
