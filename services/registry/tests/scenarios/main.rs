//! The registry and its client, over real HTTP.

// Helpers outside of test functions: a panic is how a scenario fails.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod anonymous;
mod departures;
mod interruptions;
mod leases;
mod world;
