//! What every Tourin service shares: configuration, telemetry, HTTP serving, health, shutdown, and
//! the signed identity between the gateway and the services.

pub mod clock;
pub mod config;
pub mod health;
pub mod http;
pub mod http_client;
pub mod identity;
pub mod invalidation;
pub mod metrics;
pub mod peer;
pub mod process;
pub mod pruning;
#[cfg(feature = "redis")]
pub mod redis;
pub mod secret;
pub mod session_cookies;
pub mod shutdown;
pub mod telemetry;
pub mod text;
pub mod trace_viewer;
