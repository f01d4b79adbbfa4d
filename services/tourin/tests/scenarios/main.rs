//! The API contract, through the real gateway of a mesh.
//!
//! Stores are embedded. Scenarios of separate processes need a broker: run them by `deploy/testbed.sh run -- COMMAND`.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod account_scenarios;
mod audit_scenarios;
mod backends;
mod bookmark_scenarios;
mod clock_scenarios;
mod command_line_scenarios;
mod cookie_scenarios;
mod description_scenarios;
mod example_scenarios;
mod fuzz_scenarios;
mod gateway_scenarios;
mod member_scenarios;
mod mesh_certificate_scenarios;
mod mesh_identity_scenarios;
mod peers;
mod process;
mod recommendation_scenarios;
mod review_scenarios;
mod scaling_scenarios;
mod separate_process_scenarios;
mod session_scenarios;
mod spot_scenarios;
mod text_scenarios;
mod virtual_host;
mod world;
