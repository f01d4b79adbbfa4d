//! Faults of a mesh of separate processes on real servers, while an audit makes requests: no acknowledged
//! write is lost, no effect happens twice, and the mesh recovers in time.
//!
//! Each fault is one test. They share a mesh and a private test bed, which the first test starts, and run one
//! after the other. Mesh and bed end with this process, even if it is killed.

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
