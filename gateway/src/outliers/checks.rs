//! When instances are checked, and what is expected of them.

use clap::{Args, value_parser};

/// How instances are checked.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct HealthCheckSettings {
    /// Path of health checks: /healthz (the process answers) or /readyz (it can do its work too; all
    /// instances may be unready at once while a store is down). A status below 500 passes
    #[arg(
        long,
        env = "TOURIN_GATEWAY_HEALTH_CHECK_PATH",
        value_name = "PATH",
        default_value = "/healthz",
        value_parser = parse_path
    )]
    pub health_check_path: String,
    /// Milliseconds without an answer of an instance after which it is checked; 0: only instances that
    /// are suspected or ejected are checked
    #[arg(long, env = "TOURIN_GATEWAY_HEALTH_CHECK_INTERVAL_MS", value_name = "MS", default_value_t = 5_000, value_parser = value_parser!(u64).range(0..=3_600_000))]
    pub health_check_interval_ms: u64,
    /// Milliseconds that a health check may take
    #[arg(long, env = "TOURIN_GATEWAY_HEALTH_CHECK_TIMEOUT_MS", value_name = "MS", default_value_t = 1_000, value_parser = value_parser!(u64).range(1..=60_000))]
    pub health_check_timeout_ms: u64,
    /// Failed health checks in a row after which an instance gets no more requests; one is enough for an
    /// instance whose calls fail or wait
    #[arg(long, env = "TOURIN_GATEWAY_HEALTH_CHECK_FAILURES", value_name = "N", default_value_t = 2, value_parser = value_parser!(u32).range(1..))]
    pub health_check_failures: u32,
    /// Milliseconds for which an instance with calls in flight may answer nothing before it is checked
    #[arg(long, env = "TOURIN_GATEWAY_SILENCE_MS", value_name = "MS", default_value_t = 1_000, value_parser = value_parser!(u64).range(100..=3_600_000))]
    pub silence_ms: u64,
}

fn parse_path(text: &str) -> Result<String, String> {
    match text.parse::<http::uri::PathAndQuery>() {
        Ok(path) if text.starts_with('/') => Ok(path.to_string()),
        _ => Err("expected a path such as /healthz".to_owned()),
    }
}
