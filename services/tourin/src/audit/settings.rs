//! Settings of an audit.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tourin_chassis::config::{MeshAccess, defaults};

use crate::GATEWAY_URL;

/// Settings of an audit.
#[derive(Debug, Clone, Args)]
pub struct AuditSettings {
    /// URL of a gateway; repeatable. Requests use them round robin, and skip an unreachable one
    #[arg(
        long = "gateway",
        env = "TOURIN_GATEWAY_URL",
        value_name = "URL",
        value_delimiter = ',',
        default_value = GATEWAY_URL
    )]
    pub gateways: Vec<String>,
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub mesh: MeshAccess,
    /// The mesh.toml with the access, if there is one: it is read again when the registry is gone,
    /// because `tourin up` rewrites it at its start.
    #[arg(skip)]
    pub mesh_file: Option<PathBuf>,
    /// How long to make requests, such as 20s, 500ms or 2m
    #[arg(long, env = "TOURIN_AUDIT_DURATION", value_name = "TIME", default_value = "20s", value_parser = duration)]
    pub duration: Duration,
    /// Requests per second, whether or not earlier ones have been answered. About 300 bytes of
    /// each request stay in memory
    #[arg(long, env = "TOURIN_AUDIT_RATE", value_name = "PER_SECOND", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// Members to sign up. Each bookmarks a spot once at the most, so that together with the spots
    /// of the catalogue they bound the bookmarks
    #[arg(long, env = "TOURIN_AUDIT_MEMBERS", value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=250))]
    pub members: u16,
    /// Effects are due within this time after the last response; later ones are reported as late.
    /// Waiting events that make no progress for this long end the wait
    #[arg(long, env = "TOURIN_AUDIT_SETTLE", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub settle: Duration,
    /// Longest wait, after the last response, while events wait that may bring missing effects
    #[arg(long, env = "TOURIN_AUDIT_MAX_WAIT", value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub max_wait: Duration,
    /// Requests that may wait for their responses at once; further ones are skipped and counted
    #[arg(long, env = "TOURIN_AUDIT_IN_FLIGHT", value_name = "N", default_value_t = 2_048, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: u32,
    /// Attempts of a request that is safe to repeat, the first included
    #[arg(long, env = "TOURIN_AUDIT_TRIES", value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub tries: u32,
    /// Milliseconds to wait for a response; without one, the action may have happened nevertheless
    #[arg(long, env = "TOURIN_AUDIT_REQUEST_TIMEOUT_MS", value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub request_timeout_ms: u64,
}

impl AuditSettings {
    /// An audit through one gateway, with the defaults for the rest.
    pub fn new(gateway: impl Into<String>, mesh: MeshAccess) -> Self {
        Self { gateways: vec![gateway.into()], mesh, ..defaults(&[]) }
    }

    /// The number of requests.
    pub(super) fn requests(&self) -> u64 {
        let requests = self.duration.as_millis() * u128::from(self.rate) / 1_000;
        u64::try_from(requests).unwrap_or(u64::MAX).max(1)
    }
}

const LONGEST: Duration = Duration::from_secs(365 * 24 * 3_600);

/// A number and its unit: `ms`, `s`, `m`, `h` or `d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected =
        || "expected a number and its unit, such as 20s, 500ms, 2m, 12h or 30d".to_owned();
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
    let number: u64 = text[..unit_at].parse().map_err(|_| expected())?;
    let millis = match &text[unit_at..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 24 * 3_600_000,
        _ => return Err(expected()),
    };
    let time = Duration::from_millis(number.saturating_mul(millis));
    if time.is_zero() || time > LONGEST {
        return Err("expected more than nothing and at most 365d".to_owned());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        settings: AuditSettings,
    }

    #[test]
    fn the_defaults_of_the_flags_are_those_of_the_code() {
        let parsed = Probe::parse_from(["audit"]).settings;
        let mesh = MeshAccess::new("https://127.0.0.1:8500");
        let made = AuditSettings::new("http://127.0.0.1:8080", mesh);
        assert_eq!(format!("{parsed:?}"), format!("{made:?}"));
        assert_eq!(made.requests(), 4_000);
    }

    #[test]
    fn gateways_repeat() {
        let flags = ["audit", "--gateway", "a", "--gateway", "b"];
        assert_eq!(Probe::parse_from(flags).settings.gateways, ["a", "b"]);
    }

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(duration("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("12h"), Ok(Duration::from_secs(12 * 3_600)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 24 * 3_600)));
        for wrong in ["20", "s", "-1s", "1w", "1 s", "", "0s", "366d", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
