//! What goes wrong in a mesh of separate processes on real servers, while an audit makes requests:
//! no acknowledged write is lost, no effect is had twice, and what recovers does so in time.
//!
//! Every fault is a test of its own. They share one mesh and one private test bed, started by the
//! first of them, and take turns. Both end with this process, however that ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]
#![allow(clippy::print_stdout, reason = "the figures of a fault, shown with --nocapture")]

mod audited;
mod broker_faults;
mod event_faults;
mod mesh;
mod process_faults;
mod server_faults;
mod service;

#[path = "../scenarios/backends.rs"]
#[allow(dead_code, reason = "the scenarios use the rest")]
mod backends;
#[path = "../scenarios/process.rs"]
#[allow(dead_code, reason = "the scenarios use the rest")]
mod process;
#[path = "../scenarios/world.rs"]
#[allow(dead_code, reason = "the scenarios use the rest")]
mod world;
