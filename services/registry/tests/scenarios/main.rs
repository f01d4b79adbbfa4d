//! The registry and its client, over real HTTPS.

// Helpers outside of test functions: a panic is how a scenario fails.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod certificates;
mod departures;
mod interruptions;
mod joining;
mod leases;
mod operators;
mod shared;
mod strangers;
mod verification;
mod world;
