//! The same scenarios with every store and the bus on the test bed's servers.
//!
//! The scenarios without a store (the gateway's own rules, the command line, fuzzing) are not repeated.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

#[path = "../scenarios/account_scenarios.rs"]
mod account_scenarios;
mod backends;
#[path = "../scenarios/bookmark_scenarios.rs"]
mod bookmark_scenarios;
#[path = "../scenarios/clock_scenarios.rs"]
mod clock_scenarios;
mod late_servers;
#[path = "../scenarios/member_scenarios.rs"]
mod member_scenarios;
#[path = "../scenarios/recommendation_scenarios.rs"]
mod recommendation_scenarios;
#[path = "../scenarios/review_scenarios.rs"]
mod review_scenarios;
#[path = "../scenarios/session_scenarios.rs"]
mod session_scenarios;
mod slow_store;
#[path = "../scenarios/spot_scenarios.rs"]
mod spot_scenarios;
#[path = "../scenarios/text_scenarios.rs"]
mod text_scenarios;
#[path = "../scenarios/virtual_host.rs"]
mod virtual_host;
#[path = "../scenarios/world.rs"]
mod world;
