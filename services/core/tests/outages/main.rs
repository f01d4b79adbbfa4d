//! The service while a server is killed, unreachable and restarted. Each test has its own servers,
//! which `deploy/testbed.sh` starts.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod broker;
mod database;
mod refused_writes;
#[path = "../service/running.rs"]
#[allow(dead_code, reason = "shared with the tests of the service")]
mod running;
