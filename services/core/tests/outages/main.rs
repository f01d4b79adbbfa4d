//! The service while a server that it uses is killed, is away and comes back. Each test has servers
//! of its own, which `deploy/testbed.sh` starts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod broker;
mod database;
mod refused_writes;
#[path = "../service/running.rs"]
#[allow(dead_code, reason = "shared with the tests of the service")]
mod running;
