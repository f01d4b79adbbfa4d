//! Spans from the API to where an operator reads them: a real Zipkin server, and the store in
//! memory, by one suite; and what a collector that is dead or slow costs.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod collectors;
mod deferred;
mod global;
mod readers;
mod spans;
mod tail;
mod unsampled;
