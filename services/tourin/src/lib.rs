//! The Tourin mesh in one process, and the operator's command line.
//!
//! The only crate that links every service. It chooses adapters (embedded stores, an in-process bus) and
//! changes no logic or middleware: a request crosses the gateway and a service over loopback.

pub mod audit;
pub mod authority;
pub mod certificate;
pub mod cli;
pub mod ctl;
pub mod data_dir;
pub mod demo_traffic;
pub mod events;
pub mod import;
mod joined;
pub mod log_level;
pub mod mesh;
mod mesh_file;
pub mod operator;
pub mod part_settings;
mod parts;
mod ports;
pub mod up;

/// The default `--data-dir` of `up`, and of the commands that use its data.
const DATA_DIR: &str = "tourin-data";
/// The default `--gateway` of the commands that call one: where `up` and a `gateway` listen by default.
const GATEWAY_URL: &str = "http://127.0.0.1:8080";
