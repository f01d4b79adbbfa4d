//! The gateway's settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, value_parser};
use ipnet::IpNet;
use tourin_chassis::config::{MeshSettings, PlaintextSettings, SESSION_COOKIE_IDLE_S, defaults};
use tourin_chassis::redis::SessionRedisSettings;
use tourin_registry_api::limits::{instance_id, lease_ms};

use crate::access_log::AccessLogSettings;
use crate::adaptive::AdaptiveSettings;
use crate::auth::cookies::SecureCookies;
use crate::auth::revocation::StalePolicy;
use crate::auth::revocation::canary::CanarySettings;
use crate::balance::{BalanceSettings, PoolSettings};
use crate::breaker::BreakerSettings;
use crate::client_address::{ForwardingHeader, parse_network};
use crate::handover::HandoverSettings;
use crate::http2::Http2Settings;
use crate::landing_page::parse_page_url;
use crate::limits::UpstreamLimits;
use crate::origin::Origin;
use crate::outliers::{HealthCheckSettings, OutlierSettings};
use crate::proxy_protocol::ProxyProtocolSettings;
use crate::rate_limits::shared::ANSWER_TIMEOUT;
use crate::request_body::BUFFERED_BYTES;
use crate::response_headers::ResponseHeaderSettings;
use crate::retries::RetrySettings;
use crate::streams::StreamSettings;
use crate::tls::TlsSettings;
use crate::traffic::TrafficSettings;

/// The gateway's settings; `main` adds logging and the configuration file.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Registry, secret and instance.
    #[command(flatten)]
    pub mesh: MeshSettings,
    /// Address to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "TOURIN_GATEWAY_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8080"
    )]
    pub listen: SocketAddr,
    /// Address to serve operators on: /metrics, /healthz, /readyz, /internal/state, /internal/log-filter;
    /// not for clients. All but the last in plain HTTP to this machine, and all by TLS to an operator's
    /// certificate. Port 0 takes a free one, which the log and the registry's entry name
    #[arg(
        long,
        env = "TOURIN_GATEWAY_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:0"
    )]
    pub admin_listen: SocketAddr,
    /// Name by which operators ask for that listener, besides addresses, localhost and names without a
    /// dot; repeatable. Requests with another Host get 403
    #[arg(
        long = "admin-host",
        env = "TOURIN_GATEWAY_ADMIN_HOSTS",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub admin_hosts: Vec<String>,
    /// Route table (TOML), read again when it changes and on SIGHUP [default: the one built in, which
    /// covers the whole contract]
    #[arg(long, env = "TOURIN_GATEWAY_ROUTES", value_name = "FILE")]
    pub routes: Option<PathBuf>,
    /// How this gateway is replaced by another one.
    #[command(flatten)]
    pub handover: HandoverSettings,
    /// The access log.
    #[command(flatten)]
    pub access_log: AccessLogSettings,
    /// Milliseconds between two looks at files that are read again when they change. A change counts
    /// when two looks find the same
    #[arg(long, env = "TOURIN_GATEWAY_WATCH_INTERVAL_MS", value_name = "MS", default_value_t = 1_000, value_parser = value_parser!(u64).range(10..=3_600_000))]
    pub watch_interval_ms: u64,
    /// Web origin (`https://app.example`) that may call with cookies from another site; repeatable
    #[arg(
        long = "allowed-origin",
        env = "TOURIN_GATEWAY_ALLOWED_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    pub allowed_origins: Vec<Origin>,
    /// Address or network (`10.0.0.0/8`) of trusted proxies; repeatable
    #[arg(long, env = "TOURIN_GATEWAY_TRUSTED_PROXIES", value_name = "NET", value_delimiter = ',', value_parser = parse_network)]
    pub trusted_proxies: Vec<IpNet>,
    /// The header by which trusted proxies name the client: x-forwarded-for (with X-Forwarded-Proto
    /// and -Host) or forwarded (RFC 7239). The other one is not read
    #[arg(
        long,
        env = "TOURIN_GATEWAY_FORWARDING_HEADER",
        value_name = "NAME",
        default_value = "x-forwarded-for"
    )]
    pub forwarding_header: ForwardingHeader,
    /// Balancers that name clients before the first request.
    #[command(flatten)]
    pub proxy_protocol: ProxyProtocolSettings,
    /// TLS towards clients.
    #[command(flatten)]
    pub tls: TlsSettings,
    /// HTTP/2 over it.
    #[command(flatten)]
    pub http2: Http2Settings,
    /// Headers that every response gets.
    #[command(flatten)]
    pub response_headers: ResponseHeaderSettings,

    /// When session cookies are Secure, with names that begin with `__Host-`: auto (except over plain
    /// HTTP to localhost and loopback addresses), always, or never. Without a value: always
    #[arg(
        long,
        env = "TOURIN_COOKIE_SECURE",
        value_name = "WHEN",
        num_args = 0..=1,
        default_value = "auto",
        default_missing_value = "always"
    )]
    pub cookie_secure: SecureCookies,

    /// Where traces are shown, for a link on the page at `/` [default: no link]
    #[arg(long, env = "TOURIN_GATEWAY_TRACES_URL", value_name = "URL", value_parser = parse_page_url)]
    pub traces_url: Option<String>,
    /// Where metrics are shown, for a link on the page at `/` [default: no link]
    #[arg(long, env = "TOURIN_GATEWAY_METRICS_URL", value_name = "URL", value_parser = parse_page_url)]
    pub metrics_url: Option<String>,

    /// Issuer that an access token must have (`iss`)
    #[arg(
        long,
        env = "TOURIN_GATEWAY_TOKEN_ISSUER",
        value_name = "ISS",
        default_value = "tourin-core"
    )]
    pub token_issuer: String,
    /// Audience that an access token must have (`aud`)
    #[arg(
        long,
        env = "TOURIN_GATEWAY_TOKEN_AUDIENCE",
        value_name = "AUD",
        default_value = "tourin"
    )]
    pub token_audience: String,
    /// Seconds by which core's clock may differ from this one's
    #[arg(long, env = "TOURIN_GATEWAY_TOKEN_LEEWAY_S", value_name = "S", default_value_t = 5, value_parser = value_parser!(u64).range(0..=60))]
    pub token_leeway_s: u64,
    /// Verified tokens that are cached until they expire
    #[arg(long, env = "TOURIN_GATEWAY_TOKEN_CACHE_ENTRIES", value_name = "N", default_value_t = 10_000, value_parser = value_parser!(u64).range(0..=10_000_000))]
    pub token_cache_entries: u64,
    /// Seconds after a token's expiry in which a session that is carried by cookies still renews
    /// itself; 0: only before its expiry. The same as core's
    #[arg(long, env = "TOURIN_SESSION_COOKIE_IDLE_S", value_name = "S", default_value_t = SESSION_COOKIE_IDLE_S, value_parser = value_parser!(u32).range(0..=2_592_000))]
    pub session_cookie_idle_s: u32,
    /// The Redis from whose stream ended sessions are read.
    #[command(flatten)]
    pub sessions: SessionRedisSettings,
    /// How long a call waits for its shared rate limit. No flag: tests alone change it.
    #[arg(skip = ANSWER_TIMEOUT)]
    pub shared_limit_timeout: Duration,
    /// Whether that may be without TLS.
    #[command(flatten)]
    pub plaintext: PlaintextSettings,
    /// Milliseconds without a response of core or Redis after which the list of ended sessions is stale
    #[arg(long, env = "TOURIN_GATEWAY_REVOCATION_STALE_MS", value_name = "MS", default_value_t = 30_000, value_parser = value_parser!(u64).range(100..=3_600_000))]
    pub revocation_stale_ms: u64,
    /// What calls that need a session get while it is stale; before it was read once they get 503 in
    /// either case
    #[arg(
        long,
        env = "TOURIN_GATEWAY_REVOCATION_WHEN_STALE",
        value_name = "POLICY",
        default_value = "serve"
    )]
    pub revocation_when_stale: StalePolicy,

    /// How soon this gateway learns of an ended session.
    #[command(flatten)]
    pub canary: CanarySettings,

    /// Milliseconds to connect to an instance before the next one is tried
    #[arg(long, env = "TOURIN_GATEWAY_CONNECT_TIMEOUT_MS", value_name = "MS", default_value_t = 1_000, value_parser = value_parser!(u64).range(1..=60_000))]
    pub connect_timeout_ms: u64,
    /// Milliseconds to wait for the first byte of a response, and between any two of its parts; more
    /// than the services' own 10 s, so that their own time-outs come first
    #[arg(long, env = "TOURIN_GATEWAY_FIRST_BYTE_TIMEOUT_MS", value_name = "MS", default_value_t = 12_000, value_parser = value_parser!(u64).range(1..=3_600_000))]
    pub first_byte_timeout_ms: u64,
    /// Milliseconds that a request and its response may take altogether
    #[arg(long, env = "TOURIN_GATEWAY_TOTAL_TIMEOUT_MS", value_name = "MS", default_value_t = 30_000, value_parser = value_parser!(u64).range(1..=3_600_000))]
    pub total_timeout_ms: u64,
    /// Instances tried for one request, the first included
    #[arg(long, env = "TOURIN_GATEWAY_UPSTREAM_TRIES", value_name = "N", default_value_t = 3, value_parser = parse_count)]
    pub upstream_tries: usize,
    /// Retries.
    #[command(flatten)]
    pub retries: RetrySettings,
    /// The choice of instances.
    #[command(flatten)]
    pub balance: BalanceSettings,
    /// Their ejection.
    #[command(flatten)]
    pub outliers: OutlierSettings,
    /// Their health checks.
    #[command(flatten)]
    pub health_checks: HealthCheckSettings,
    /// Milliseconds for which an idle connection to an instance is kept; below the 60 s after which
    /// services close it from their side
    #[arg(long, env = "TOURIN_GATEWAY_UPSTREAM_IDLE_MS", value_name = "MS", default_value_t = 30_000, value_parser = value_parser!(u64).range(1..=55_000))]
    pub upstream_idle_ms: u64,

    /// Largest request body, in bytes. One of at most 64 KiB is read before a service is asked; a
    /// larger one, where it is allowed, passes through as it comes
    #[arg(long, env = "TOURIN_GATEWAY_BODY_LIMIT_BYTES", value_name = "BYTES", default_value_t = BUFFERED_BYTES)]
    pub body_limit_bytes: u64,
    /// Longest request target, in bytes
    #[arg(long, env = "TOURIN_GATEWAY_URI_LIMIT_BYTES", value_name = "BYTES", default_value_t = 8 << 10, value_parser = parse_count)]
    pub uri_limit_bytes: usize,
    /// Largest request head, in bytes
    #[arg(long, env = "TOURIN_GATEWAY_HEADER_LIMIT_BYTES", value_name = "BYTES", default_value_t = 32 << 10, value_parser = parse_count)]
    pub header_limit_bytes: usize,
    /// Maximum number of header fields in a request (Pingora's own limit is 256)
    #[arg(long, env = "TOURIN_GATEWAY_HEADER_LIMIT_COUNT", value_name = "N", default_value_t = 100, value_parser = parse_count)]
    pub header_limit_count: usize,
    /// Milliseconds from the first byte of a request's head to its last
    #[arg(long, env = "TOURIN_GATEWAY_HEADER_READ_TIMEOUT_MS", value_name = "MS", default_value_t = 10_000, value_parser = value_parser!(u64).range(1..=600_000))]
    pub header_read_timeout_ms: u64,
    /// Milliseconds for which a client may stall in the middle of a request's body or of its response
    #[arg(long, env = "TOURIN_GATEWAY_CLIENT_STALL_MS", value_name = "MS", default_value_t = 10_000, value_parser = value_parser!(u64).range(1..=600_000))]
    pub client_stall_ms: u64,
    /// Milliseconds for which a new connection may stay silent before its first request
    #[arg(long, env = "TOURIN_GATEWAY_CLIENT_FIRST_BYTE_MS", value_name = "MS", default_value_t = 5_000, value_parser = value_parser!(u64).range(1..=600_000))]
    pub client_first_byte_ms: u64,
    /// Milliseconds for which a client's idle connection is kept between requests
    #[arg(long, env = "TOURIN_GATEWAY_CLIENT_IDLE_MS", value_name = "MS", default_value_t = 60_000, value_parser = value_parser!(u64).range(1..=3_600_000))]
    pub client_idle_ms: u64,
    /// Requests handled at once; more are answered 503
    #[arg(long, env = "TOURIN_GATEWAY_MAX_REQUESTS", value_name = "N", default_value_t = 4_096, value_parser = parse_count)]
    pub max_requests: usize,
    /// Requests of one client (IPv4 address, IPv6 /56) under way at once, those whose body is still
    /// arriving included; more are answered 429
    #[arg(long, env = "TOURIN_GATEWAY_MAX_REQUESTS_PER_CLIENT", value_name = "N", default_value_t = 128, value_parser = parse_count)]
    pub max_requests_per_client: usize,
    /// Client connections held at once; for one more, the longest idle ones are closed. Fewer when the
    /// limit of open files asks for it
    #[arg(long, env = "TOURIN_GATEWAY_MAX_CONNECTIONS", value_name = "N", default_value_t = 10_000, value_parser = parse_count)]
    pub max_connections: usize,
    /// Connections of one client (IPv4 address, IPv6 /56) held at once, trusted proxies apart; for one
    /// more, the client's longest idle one is closed
    #[arg(long, env = "TOURIN_GATEWAY_MAX_CONNECTIONS_PER_CLIENT", value_name = "N", default_value_t = 256, value_parser = parse_count)]
    pub max_connections_per_client: usize,
    /// Circuit breakers.
    #[command(flatten)]
    pub breaker: BreakerSettings,
    /// Concurrency limits of services.
    #[command(flatten)]
    pub adaptive: AdaptiveSettings,

    /// Bounds of WebSockets and of streams of events.
    #[command(flatten)]
    pub streams: StreamSettings,
    /// Bounds of cache and mirrors.
    #[command(flatten)]
    pub traffic: TrafficSettings,

    /// Worker threads [default: one per processor, at most 16]
    #[arg(long, env = "TOURIN_GATEWAY_THREADS", value_name = "N", value_parser = parse_count)]
    pub gateway_threads: Option<usize>,
    /// Milliseconds that requests in flight get to finish when the gateway stops
    #[arg(long, env = "TOURIN_GATEWAY_DRAIN_TIMEOUT_MS", value_name = "MS", default_value_t = 2_500, value_parser = value_parser!(u64).range(0..=3_000))]
    pub drain_timeout_ms: u64,
}

impl Settings {
    /// The defaults, for a gateway in the mesh that `mesh` describes.
    pub fn new(mesh: MeshSettings) -> Self {
        let defaults = defaults(&[]);
        Self { mesh, ..defaults }
    }

    /// Checks at the start what the registry would refuse later.
    pub(crate) fn check_mesh(&self) -> anyhow::Result<()> {
        if let Some(id) = &self.mesh.instance_id {
            instance_id(id).with_context(|| format!("--instance-id {id:?}"))?;
        }
        let lease = self.mesh.lease_ms;
        lease_ms(lease).with_context(|| format!("--lease-ms {lease}"))
    }

    pub(crate) fn threads(&self) -> usize {
        self.gateway_threads.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, |processors| processors.get().min(16))
        })
    }

    pub(crate) fn watch_interval(&self) -> Duration {
        Duration::from_millis(self.watch_interval_ms)
    }

    pub(crate) fn pools(&self) -> PoolSettings {
        PoolSettings {
            balance: self.balance.clone(),
            zone: self.mesh.zone.clone(),
            outliers: Arc::new(self.outliers.clone()),
            retries: self.retries.clone(),
        }
    }

    pub(crate) fn upstream_limits(&self) -> UpstreamLimits {
        UpstreamLimits {
            connect_timeout: Duration::from_millis(self.connect_timeout_ms),
            idle_timeout: Duration::from_millis(self.upstream_idle_ms),
            client_stall: Duration::from_millis(self.client_stall_ms),
        }
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

/// A whole number from 1 on. clap's ranges cover only fixed-width integers.
pub(crate) fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number from 1 on".to_owned()),
        Ok(count) => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Bare {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn cookie_secure_is_also_a_switch() {
        for (arguments, expected) in [
            (&[][..], SecureCookies::Auto),
            (&["--cookie-secure"], SecureCookies::Always),
            (&["--cookie-secure", "--trusted-proxies", "10.0.0.1"], SecureCookies::Always),
            (&["--cookie-secure=true"], SecureCookies::Always),
            (&["--cookie-secure", "never"], SecureCookies::Never),
            (&["--cookie-secure=auto"], SecureCookies::Auto),
        ] {
            let parsed = Bare::try_parse_from(["gateway"].iter().chain(arguments)).unwrap();
            assert_eq!(parsed.settings.cookie_secure, expected, "{arguments:?}");
        }
    }

    #[test]
    fn a_bad_value_is_named() {
        for (flag, value) in [
            ("--allowed-origin", "app.example"),
            ("--trusted-proxies", "10.0.0.0/33"),
            ("--forwarding-header", "x-real-ip"),
            ("--cookie-secure", "sometimes"),
            ("--traces-url", "traces"),
            ("--upstream-tries", "0"),
            ("--upstream-idle-ms", "60000"),
            ("--health-check-path", "healthz"),
            ("--eject-max-percent", "101"),
            ("--retry-pause-ms", "1000"),
            ("--revocation-when-stale", "maybe"),
        ] {
            let error =
                Bare::try_parse_from(["gateway", flag, value]).err().expect(flag).to_string();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
    }
}
