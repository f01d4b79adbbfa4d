//! The settings of the core service. Their defaults, units and variables are in `core --help`.

pub mod signals;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use chrono::TimeDelta;
use clap::{Args, value_parser};
use tourin_chassis::config::{
    AmqpSettings, MeshSettings, MysqlSettings, PlaintextSettings, ReadinessSettings,
    SESSION_COOKIE_IDLE_S, defaults, flag_default,
};
use tourin_chassis::redis::{RedisUrl, SessionRedisSettings};
use tourin_shared_events::bus::rabbitmq::{AmqpUrl, RabbitSettings};
use tourin_shared_events::mysql::{MysqlUrl, PoolSizes};

use self::signals::SignalSettings;
use crate::app::attempts::AttemptPolicy;
use crate::app::passwords::HashingPolicy;
use crate::app::spots::DEFAULT_MAP_SPOTS;
use crate::app::views::ViewPolicy;
use crate::domain::session::SessionPolicy;

/// Settings of the core service.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, env = "TOURIN_CORE_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub listen: SocketAddr,
    /// Folder of the database and the signing key; made if absent
    #[arg(
        long,
        env = "TOURIN_CORE_DATA_DIR",
        value_name = "DIR",
        default_value = "tourin-data/core"
    )]
    pub data_dir: PathBuf,
    /// Start with an empty catalogue of tour spots
    #[arg(long, env = "TOURIN_NO_DEMO")]
    pub no_demo: bool,
    /// Connections that read the SQLite database in the data folder; one more writes
    #[arg(long, env = "TOURIN_CORE_DATABASE_READERS", value_name = "N", default_value_t = 4, value_parser = value_parser!(u32).range(1..=64))]
    pub database_readers: u32,
    /// Maximum number of spots in one response of the map
    #[arg(long, env = "TOURIN_MAP_SPOTS", value_name = "N", default_value_t = DEFAULT_MAP_SPOTS, value_parser = value_parser!(u16).range(1..=5_000))]
    pub map_spots: u16,
    /// Milliseconds that requests in flight may take when the service stops
    #[arg(long, env = "TOURIN_CORE_DRAIN_TIMEOUT_MS", value_name = "MS", default_value_t = 1_000, value_parser = value_parser!(u64).range(0..=60_000))]
    pub drain_timeout_ms: u64,
    /// The database on a server, if there is one.
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// The broker that events go to, if there is one.
    #[command(flatten)]
    pub events: AmqpSettings<AmqpUrl>,
    /// Whether servers may be reached without TLS.
    #[command(flatten)]
    pub plaintext: PlaintextSettings,
    /// How tokens are signed and how long they hold.
    #[command(flatten)]
    pub tokens: TokenSettings,
    /// How passwords are hashed and guesses slowed down.
    #[command(flatten)]
    pub passwords: PasswordSettings,
    /// Which views become events.
    #[command(flatten)]
    pub views: ViewSettings,
    /// Security events to and from elsewhere.
    #[command(flatten)]
    pub signals: SignalSettings,
    /// How closely stores are watched.
    #[command(flatten)]
    pub readiness: ReadinessSettings,
    /// The service's place in the mesh.
    #[command(flatten)]
    pub mesh: MeshSettings,
}

/// The database on a server.
#[derive(Args, Clone, Debug)]
pub struct DatabaseSettings {
    /// The server.
    #[command(flatten)]
    pub server: MysqlSettings<MysqlUrl>,
    /// Connections that read from MySQL, at most
    #[arg(long, env = "TOURIN_MYSQL_READERS", value_name = "N", default_value_t = PoolSizes::default().readers, value_parser = value_parser!(u32).range(1..=1_000))]
    pub mysql_readers: u32,
    /// Connections that write to MySQL, at most
    #[arg(long, env = "TOURIN_MYSQL_WRITERS", value_name = "N", default_value_t = PoolSizes::default().writers, value_parser = value_parser!(u32).range(1..=1_000))]
    pub mysql_writers: u32,
    /// The Redis that sessions are on; it goes with --mysql-url.
    #[command(flatten)]
    pub sessions: SessionRedisSettings,
}

/// How tokens are signed and how long they hold.
#[derive(Args, Clone, Debug)]
pub struct TokenSettings {
    /// Ed25519 private key (PKCS#8 PEM) that signs access tokens [default: <data-dir>/signing.pem,
    /// made at the first start]
    #[arg(long, env = "TOURIN_SIGNING_KEY", value_name = "FILE")]
    pub signing_key: Option<PathBuf>,
    /// Keys that signed before and are still published: PEM files, or folders of *.pem
    /// [default: <data-dir>/previous-keys, if there is one]
    #[arg(long, env = "TOURIN_PREVIOUS_SIGNING_KEYS", value_name = "PATH", value_delimiter = ',')]
    pub previous_signing_keys: Vec<PathBuf>,
    /// Seconds that an access token holds
    #[arg(long, env = "TOURIN_ACCESS_TOKEN_S", value_name = "S", default_value_t = flag_default(SessionPolicy::default().access_token.num_seconds()), value_parser = value_parser!(u32).range(5..=86_400))]
    pub access_token_s: u32,
    /// Seconds that a session lasts, however often it is renewed (30 days)
    #[arg(long, env = "TOURIN_SESSION_S", value_name = "S", default_value_t = flag_default(SessionPolicy::default().absolute.num_seconds()), value_parser = value_parser!(u32).range(10..=31_536_000))]
    pub session_s: u32,
    /// Seconds that a session lasts without being renewed (14 days)
    #[arg(long, env = "TOURIN_SESSION_IDLE_S", value_name = "S", default_value_t = flag_default(SessionPolicy::default().idle.num_seconds()), value_parser = value_parser!(u32).range(10..=31_536_000))]
    pub session_idle_s: u32,
    /// Milliseconds in which a used refresh token still leads to its successor, for the race of two
    /// tabs; 0 for none
    #[arg(long, env = "TOURIN_REFRESH_GRACE_MS", value_name = "MS", default_value_t = flag_default(SessionPolicy::default().grace.num_milliseconds()), value_parser = value_parser!(u32).range(0..=120_000))]
    pub refresh_grace_ms: u32,
    /// Sessions that a member may have at once; one more ends the oldest
    #[arg(long, env = "TOURIN_SESSIONS_PER_MEMBER", value_name = "N", default_value_t = flag_default(SessionPolicy::default().per_member), value_parser = value_parser!(u16).range(1..=100))]
    pub sessions_per_member: u16,
    /// Seconds after a token's expiry in which a session that is carried by cookies still renews
    /// itself: browsers keep the access cookie that much longer; 0: renewed only before its expiry. The same in every
    /// gateway
    #[arg(long, env = "TOURIN_SESSION_COOKIE_IDLE_S", value_name = "S", default_value_t = SESSION_COOKIE_IDLE_S, value_parser = value_parser!(u32).range(0..=2_592_000))]
    pub session_cookie_idle_s: u32,
}

/// How passwords are hashed and guesses slowed down.
#[derive(Args, Clone, Debug)]
pub struct PasswordSettings {
    /// Memory of one Argon2id hash, in KiB (OWASP's recommendation)
    #[arg(long, env = "TOURIN_PASSWORD_MEMORY_KIB", value_name = "KIB", default_value_t = HashingPolicy::default().memory_kib, value_parser = value_parser!(u32).range(8..=4_194_304))]
    pub password_memory_kib: u32,
    /// Passes of one Argon2id hash over its memory (OWASP's recommendation)
    #[arg(long, env = "TOURIN_PASSWORD_ITERATIONS", value_name = "N", default_value_t = HashingPolicy::default().iterations, value_parser = value_parser!(u32).range(1..=100))]
    pub password_iterations: u32,
    /// Lanes of one Argon2id hash (OWASP's recommendation)
    #[arg(long, env = "TOURIN_PASSWORD_PARALLELISM", value_name = "N", default_value_t = HashingPolicy::default().parallelism, value_parser = value_parser!(u32).range(1..=64))]
    pub password_parallelism: u32,
    /// Hashes computed at once [default: half of the cores, at most 4]
    #[arg(long, env = "TOURIN_PASSWORD_CONCURRENCY", value_name = "N", value_parser = value_parser!(u16).range(1..=256))]
    pub password_concurrency: Option<u16>,
    /// Milliseconds that a request waits for its turn to hash before it is answered 503
    #[arg(long, env = "TOURIN_PASSWORD_WAIT_MS", value_name = "MS", default_value_t = flag_default(HashingPolicy::default().wait.as_millis()), value_parser = value_parser!(u64).range(1..=60_000))]
    pub password_wait_ms: u64,
    /// Wrong passwords that an account bears from one client's network, or from one session that
    /// changes the password, before attempts from there have to wait
    #[arg(long, env = "TOURIN_LOGIN_BURST", value_name = "N", default_value_t = AttemptPolicy::default().burst.get(), value_parser = value_parser!(u32).range(1..=10_000))]
    pub login_burst: u32,
    /// Milliseconds per further attempt from there
    #[arg(long, env = "TOURIN_LOGIN_REFILL_MS", value_name = "MS", default_value_t = flag_default(AttemptPolicy::default().refill.as_millis()), value_parser = value_parser!(u64).range(1..=3_600_000))]
    pub login_refill_ms: u64,
    /// Wrong passwords that an account bears from all strangers together before they have to wait:
    /// clients without the cookie of a device, outside the networks, from which the member has logged in
    #[arg(long, env = "TOURIN_LOGIN_ACCOUNT_BURST", value_name = "N", default_value_t = AttemptPolicy::default().account_burst.get(), value_parser = value_parser!(u32).range(1..=100_000))]
    pub login_account_burst: u32,
    /// Milliseconds per further attempt by strangers together
    #[arg(long, env = "TOURIN_LOGIN_ACCOUNT_REFILL_MS", value_name = "MS", default_value_t = flag_default(AttemptPolicy::default().account_refill.as_millis()), value_parser = value_parser!(u64).range(1..=3_600_000))]
    pub login_account_refill_ms: u64,
    /// Require the password for deleting the account and for changing its e-mail address. Without this,
    /// it may be left out; a wrong one is refused in either case
    #[arg(long, env = "TOURIN_STEP_UP")]
    pub step_up: bool,
    /// Wrong passwords on all accounts that a network bears before attempts from there have to wait,
    /// except from devices from which the member has logged in
    #[arg(long, env = "TOURIN_LOGIN_NETWORK_BURST", value_name = "N", default_value_t = AttemptPolicy::default().network_burst.get(), value_parser = value_parser!(u32).range(1..=100_000))]
    pub login_network_burst: u32,
    /// Milliseconds per further attempt from there
    #[arg(long, env = "TOURIN_LOGIN_NETWORK_REFILL_MS", value_name = "MS", default_value_t = flag_default(AttemptPolicy::default().network_refill.as_millis()), value_parser = value_parser!(u64).range(1..=3_600_000))]
    pub login_network_refill_ms: u64,
    /// Accounts, networks, and pairs of an account and a network, whose wrong passwords are counted at once
    #[arg(long, env = "TOURIN_LOGIN_ACCOUNTS", value_name = "N", default_value_t = flag_default(AttemptPolicy::default().keys), value_parser = value_parser!(u32).range(100..=10_000_000))]
    pub login_accounts: u32,
}

/// Which views become events.
#[derive(Args, Clone, Debug)]
pub struct ViewSettings {
    /// Milliseconds within which the same person, spot and kind count once for the trend. The same in
    /// core, which drops repeated views, and in recommendation
    #[arg(long, env = "TOURIN_TREND_WINDOW_MS", value_name = "MS", default_value_t = flag_default(ViewPolicy::default().window.num_milliseconds()), value_parser = value_parser!(u64).range(1..=604_800_000))]
    pub trend_window_ms: u64,
    /// Viewers of a spot that are remembered to tell repeated views, in memory and in Redis each;
    /// 200,000 take about 20 MB
    #[arg(long, env = "TOURIN_VIEWS_REMEMBERED", value_name = "N", default_value_t = ViewPolicy::default().remembered, value_parser = value_parser!(u64).range(0..=100_000_000))]
    pub views_remembered: u64,
}

impl ViewSettings {
    /// The rules of views.
    pub fn policy(&self) -> ViewPolicy {
        let window = i64::try_from(self.trend_window_ms).unwrap_or(i64::MAX);
        ViewPolicy {
            window: TimeDelta::milliseconds(window),
            remembered: self.views_remembered,
            ..ViewPolicy::default()
        }
    }
}

impl Settings {
    /// Settings of an instance that listens on `listen` and keeps its data in `data_dir`, with the
    /// defaults for the rest.
    pub fn new(listen: SocketAddr, data_dir: impl Into<PathBuf>, mesh: MeshSettings) -> Self {
        let defaults = defaults(&[]);
        Self { listen, data_dir: data_dir.into(), mesh, ..defaults }
    }

    /// The broker, if one is set.
    pub fn broker(&self) -> Option<RabbitSettings> {
        Some(RabbitSettings {
            connection_name: "tourin core".to_owned(),
            prefix: self.events.amqp_prefix.clone(),
            ..RabbitSettings::new(self.events.url()?.clone())
        })
    }
}

impl DatabaseSettings {
    /// The database on a server, if one is set.
    pub fn mysql(&self) -> Option<&MysqlUrl> {
        self.server.url()
    }

    /// The Redis for sessions, if one is set.
    ///
    /// # Errors
    /// When no database on a server is set.
    pub fn redis(&self) -> anyhow::Result<Option<&RedisUrl>> {
        let url = self.sessions.redis();
        ensure!(
            url.is_none() || self.mysql().is_some(),
            "--session-redis-url or --redis-url needs --mysql-url: sessions on Redis go with accounts on MySQL"
        );
        Ok(url)
    }

    /// The most connections to the server.
    pub fn pool_sizes(&self) -> PoolSizes {
        PoolSizes { readers: self.mysql_readers, writers: self.mysql_writers }
    }
}

impl Default for DatabaseSettings {
    fn default() -> Self {
        defaults(&[])
    }
}

impl Default for TokenSettings {
    fn default() -> Self {
        defaults(&[])
    }
}

impl Default for PasswordSettings {
    fn default() -> Self {
        defaults(&[])
    }
}

impl TokenSettings {
    /// The bounds of sessions.
    ///
    /// # Errors
    /// When one value contradicts another.
    pub fn policy(&self) -> anyhow::Result<SessionPolicy> {
        ensure!(
            self.access_token_s <= self.session_idle_s && self.session_idle_s <= self.session_s,
            "--access-token-s {} must not exceed --session-idle-s {}, nor that --session-s {}",
            self.access_token_s,
            self.session_idle_s,
            self.session_s
        );
        Ok(SessionPolicy {
            access_token: TimeDelta::seconds(self.access_token_s.into()),
            absolute: TimeDelta::seconds(self.session_s.into()),
            idle: TimeDelta::seconds(self.session_idle_s.into()),
            grace: TimeDelta::milliseconds(self.refresh_grace_ms.into()),
            per_member: self.sessions_per_member.into(),
            ..SessionPolicy::default()
        })
    }
}

impl PasswordSettings {
    /// The cost of a hash and how many are computed at once.
    pub fn hashing(&self) -> HashingPolicy {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        HashingPolicy {
            memory_kib: self.password_memory_kib,
            iterations: self.password_iterations,
            parallelism: self.password_parallelism,
            concurrency: self.password_concurrency.map_or((cores / 2).clamp(1, 4), usize::from),
            wait: Duration::from_millis(self.password_wait_ms),
        }
    }

    /// How many wrong passwords are allowed.
    pub fn attempts(&self) -> AttemptPolicy {
        let at_least_one = |burst| NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        AttemptPolicy {
            burst: at_least_one(self.login_burst),
            refill: Duration::from_millis(self.login_refill_ms),
            account_burst: at_least_one(self.login_account_burst),
            account_refill: Duration::from_millis(self.login_account_refill_ms),
            network_burst: at_least_one(self.login_network_burst),
            network_refill: Duration::from_millis(self.login_network_refill_ms),
            keys: usize::try_from(self.login_accounts).unwrap_or(usize::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        settings: Settings,
    }

    fn parse(arguments: &[&str]) -> Result<Settings, clap::Error> {
        Probe::try_parse_from(["core"].iter().chain(arguments)).map(|probe| probe.settings)
    }

    #[test]
    fn the_defaults_are_those_of_the_policies() {
        Probe::command().debug_assert();
        let settings = parse(&[]).unwrap();
        assert_eq!(settings.tokens.policy().unwrap(), SessionPolicy::default());
        assert_eq!(settings.passwords.attempts(), AttemptPolicy::default());
        assert_eq!(settings.views.policy(), ViewPolicy::default());
        let hashing = settings.passwords.hashing();
        let expected =
            HashingPolicy { concurrency: hashing.concurrency, ..HashingPolicy::default() };
        assert_eq!(hashing, expected);
    }

    #[test]
    fn the_databases_password_is_in_no_message() {
        let settings = parse(&["--mysql-url", "mysql://core:sea-breeze1@db.example/core"]).unwrap();
        let shown = format!("{settings:?}");
        assert!(shown.contains("db.example:3306/core") && !shown.contains("sea-breeze1"));
        let error = parse(&["--mysql-url", "mysql:/core:sea-breeze1@db.example"]).unwrap_err();
        assert!(error.to_string().contains("'--mysql-url <URL>': it must be mysql://"), "{error}");
        assert!(!format!("{error} {error:?}").contains("sea-breeze1"), "{error}");
        assert!(parse(&["--mysql-url", ""]).unwrap().database.mysql().is_none());
    }

    #[test]
    fn the_brokers_password_is_in_no_message() {
        let given = parse(&["--amqp-url", "amqp://core:sea-breeze1@bus.example/%2f"]).unwrap();
        let broker = given.broker().unwrap();
        assert_eq!(broker.url.address(), "bus.example:5672");
        let error = parse(&["--amqp-url", "http://core:sea-breeze1@bus.example"]).unwrap_err();
        assert!(error.to_string().contains("--amqp-url"), "{error}");
        let shown = format!("{given:?} {broker:?} {error} {error:?}");
        assert!(!shown.contains("sea-breeze1"), "{shown}");
        assert!(parse(&["--amqp-url", " "]).unwrap().broker().is_none());
    }

    #[test]
    fn values_that_are_out_of_range_or_contradict_are_refused_by_name() {
        let error = parse(&["--access-token-s", "1"]).unwrap_err().to_string();
        assert!(error.contains("--access-token-s"), "{error}");
        let at_odds = parse(&["--session-idle-s", "700", "--session-s", "600"]).unwrap();
        let error = at_odds.tokens.policy().unwrap_err().to_string();
        assert!(error.contains("--session-idle-s 700"), "{error}");
    }
}
