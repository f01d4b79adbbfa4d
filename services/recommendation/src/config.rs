//! The service's settings: flags, `TOURIN_*` variables, defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use tourin_chassis::config::{
    AmqpSettings, MeshSettings, PlaintextSettings, ReadinessSettings, ServerUrl, Unquoted,
    defaults, flag_default,
};
use tourin_chassis::redis::RedisUrl;
use tourin_shared_events::bus::rabbitmq::{AmqpUrl, RabbitSettings};
use tourin_shared_events::consumer::ConsumerSettings;

use crate::app::ingest::Ages;
use crate::app::model::CoOccurrenceRules;
use crate::domain::similarity::Exponents;
use crate::domain::trend::{DEFAULT_FLOOR, TrendRules};
use crate::store::HistoryRules;
use crate::store::mongodb::MongodbUrl;

/// The file of the embedded stores in the data folder.
const FILE: &str = "recommendation.db";

/// Settings of the recommendation service.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Address to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "TOURIN_RECOMMENDATION_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8082"
    )]
    pub listen: SocketAddr,
    /// Folder for the service's data; created if it does not exist
    #[arg(
        long,
        env = "TOURIN_RECOMMENDATION_DATA_DIR",
        value_name = "DIR",
        default_value = "tourin-data/recommendation"
    )]
    pub data_dir: PathBuf,
    /// Registry, secret and instance.
    #[command(flatten)]
    pub mesh: MeshSettings,
    /// Trend, histories, model.
    #[command(flatten)]
    pub rules: RuleSettings,
    /// The servers of the stores.
    #[command(flatten)]
    pub servers: ServerSettings,
    /// The broker.
    #[command(flatten)]
    pub broker: AmqpSettings<AmqpUrl>,
    /// Whether servers may be reached without TLS.
    #[command(flatten)]
    pub plaintext: PlaintextSettings,
    /// How often stores are checked.
    #[command(flatten)]
    pub readiness: ReadinessSettings,
    /// Seconds between two full readings of core's catalogue; between them events keep the replica current
    #[arg(long, env = "TOURIN_RESYNC_INTERVAL_S", value_name = "S", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub resync_interval_s: u64,
    /// Milliseconds that requests in flight get to finish when the service stops
    #[arg(long, env = "TOURIN_RECOMMENDATION_DRAIN_TIMEOUT_MS", value_name = "MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub drain_timeout_ms: u64,
}

/// Where stores live. Without a server they are embedded: a file in the data folder.
#[derive(Debug, Clone, Args)]
pub struct ServerSettings {
    /// Redis that keeps the trend, redis://[user:password@]host[:port][/database], or rediss:// for
    /// TLS [default: a file in the data folder]
    #[arg(long, env = "TOURIN_REDIS_URL", value_name = "URL", hide_env_values = true, value_parser = Unquoted::<ServerUrl<RedisUrl>>::parser())]
    pub redis_url: Option<ServerUrl<RedisUrl>>,
    /// What the names of the trend's keys in Redis begin with
    #[arg(long, env = "TOURIN_RECOMMENDATION_REDIS_PREFIX", value_name = "TEXT", default_value = "tourin", value_parser = redis_prefix)]
    pub recommendation_redis_prefix: String,
    /// MongoDB that keeps histories and the replica of spots,
    /// mongodb://[user:password@]host[:port][,host...][/database][?options]; the database is
    /// tourin_recommendation unless the URL names one [default: a file in the data folder]
    #[arg(long, env = "TOURIN_MONGODB_URL", value_name = "URL", hide_env_values = true, value_parser = Unquoted::<ServerUrl<MongodbUrl>>::parser())]
    pub mongodb_url: Option<ServerUrl<MongodbUrl>>,
}

impl Default for ServerSettings {
    fn default() -> Self {
        defaults(&[])
    }
}

impl ServerSettings {
    /// The Redis to use, if any.
    pub fn redis(&self) -> Option<&RedisUrl> {
        ServerUrl::given(self.redis_url.as_ref())
    }

    /// The MongoDB to use, if any.
    pub fn mongodb(&self) -> Option<&MongodbUrl> {
        ServerUrl::given(self.mongodb_url.as_ref())
    }
}

/// Rules of the recommendations.
#[derive(Debug, Clone, Args)]
pub struct RuleSettings {
    /// Half-life of a view's or bookmark's weight in the trend, in milliseconds
    #[arg(long, env = "TOURIN_TREND_HALF_LIFE_MS", value_name = "MS", default_value_t = flag_default(TrendRules::default().half_life.as_millis()), value_parser = clap::value_parser!(u64).range(1..=31_536_000_000))]
    pub trend_half_life_ms: u64,
    /// Smallest weight, in views of this moment, with which a spot is still in the trend
    #[arg(long, env = "TOURIN_TREND_FLOOR", value_name = "VIEWS", default_value_t = DEFAULT_FLOOR, value_parser = positive)]
    pub trend_floor: f64,
    /// Milliseconds within which the same person, spot and kind count once for the trend. The same in
    /// core, which drops repeated views, and in recommendation
    #[arg(long, env = "TOURIN_TREND_WINDOW_MS", value_name = "MS", default_value_t = flag_default(TrendRules::default().window.as_millis()), value_parser = clap::value_parser!(u64).range(1..=604_800_000))]
    pub trend_window_ms: u64,
    /// Age in seconds beyond which an event no longer counts for the trend
    #[arg(long, env = "TOURIN_TREND_MAX_AGE_S", value_name = "S", default_value_t = TrendRules::default().max_age.as_secs(), value_parser = clap::value_parser!(u64).range(60..=31_536_000))]
    pub trend_max_age_s: u64,
    /// Age in seconds beyond which a view or bookmark no longer enters a member's history
    #[arg(long, env = "TOURIN_HISTORY_MAX_AGE_S", value_name = "S", default_value_t = HistoryRules::default().max_age.as_secs(), value_parser = clap::value_parser!(u64).range(60..=315_360_000))]
    pub history_max_age_s: u64,
    /// Seconds that an event may be dated ahead of the clock; one further ahead counts as happening now
    #[arg(long, env = "TOURIN_EVENT_MAX_AHEAD_S", value_name = "S", default_value_t = ConsumerSettings::default().max_ahead.as_secs(), value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub event_max_ahead_s: u64,
    /// Latest spots of a member that recommendations are based on; spots that the member knows are never
    /// recommended
    #[arg(long, env = "TOURIN_HISTORY_LIMIT", value_name = "SPOTS", default_value_t = HistoryRules::default().recent, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000))]
    pub history_limit: usize,
    /// Milliseconds for which the neighbours of a spot are cached before they are computed again
    #[arg(long, env = "TOURIN_NEIGHBOURS_MAX_AGE_MS", value_name = "MS", default_value_t = flag_default(CoOccurrenceRules::default().row_max_age.as_millis()), value_parser = clap::value_parser!(u64).range(0..=86_400_000))]
    pub neighbours_max_age_ms: u64,
    /// Exponent that discounts the popularity of the spot whose neighbours are computed
    #[arg(long, env = "TOURIN_SIMILARITY_SEED_EXPONENT", value_name = "X", default_value_t = Exponents::default().seed, value_parser = exponent)]
    pub similarity_seed_exponent: f64,
    /// Exponent that discounts the popularity of a neighbour
    #[arg(long, env = "TOURIN_SIMILARITY_NEIGHBOUR_EXPONENT", value_name = "X", default_value_t = Exponents::default().neighbour, value_parser = exponent)]
    pub similarity_neighbour_exponent: f64,
    /// Exponent that discounts members who know many spots
    #[arg(long, env = "TOURIN_SIMILARITY_MEMBER_EXPONENT", value_name = "X", default_value_t = Exponents::default().member, value_parser = exponent)]
    pub similarity_member_exponent: f64,
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
            connection_name: "tourin recommendation".to_owned(),
            prefix: self.broker.amqp_prefix.clone(),
            ..RabbitSettings::new(self.broker.url()?.clone())
        })
    }

    /// The file of the embedded stores.
    pub fn file(&self) -> PathBuf {
        self.data_dir.join(FILE)
    }
}

impl Default for RuleSettings {
    fn default() -> Self {
        defaults(&[])
    }
}

impl RuleSettings {
    /// How the trend counts.
    pub fn trend(&self) -> TrendRules {
        TrendRules {
            half_life: Duration::from_millis(self.trend_half_life_ms),
            window: Duration::from_millis(self.trend_window_ms),
            floor: self.trend_floor,
            max_age: Duration::from_secs(self.trend_max_age_s),
        }
    }

    /// How histories are kept.
    pub fn histories(&self) -> HistoryRules {
        HistoryRules {
            recent: self.history_limit,
            max_age: Duration::from_secs(self.history_max_age_s),
        }
    }

    /// The ages beyond which events have no effect.
    pub fn ages(&self) -> Ages {
        Ages {
            trend: Duration::from_secs(self.trend_max_age_s),
            histories: Duration::from_secs(self.history_max_age_s),
        }
    }

    /// How co-occurrence is computed.
    pub fn co_occurrence(&self) -> CoOccurrenceRules {
        CoOccurrenceRules {
            exponents: Exponents {
                seed: self.similarity_seed_exponent,
                neighbour: self.similarity_neighbour_exponent,
                member: self.similarity_member_exponent,
            },
            row_max_age: Duration::from_millis(self.neighbours_max_age_ms),
            ..CoOccurrenceRules::default()
        }
    }
}

fn redis_prefix(text: &str) -> Result<String, String> {
    // Braces would move the tag that keeps the keys in one slot of a cluster.
    if text.is_empty() || text.contains(['{', '}']) || text.contains(char::is_whitespace) {
        return Err("a text without spaces and braces is needed".to_owned());
    }
    Ok(text.to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("a number above 0 is needed".to_owned()),
    }
}

fn exponent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=5.0).contains(&number) => Ok(number),
        _ => Err("a number from 0 to 5 is needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        settings: Settings,
    }

    fn parse(flags: &[&str]) -> Result<Settings, clap::Error> {
        Command::try_parse_from(["recommendation"].iter().chain(flags))
            .map(|command| command.settings)
    }

    #[test]
    fn the_defaults_of_the_flags_are_those_of_the_rules() {
        let parsed = parse(&[]).unwrap();
        assert_eq!(parsed.rules.trend(), TrendRules::default());
        assert_eq!(parsed.rules.histories(), HistoryRules::default());
        assert_eq!(parsed.rules.co_occurrence(), CoOccurrenceRules::default());
    }

    #[test]
    fn a_value_that_makes_no_sense_is_refused() {
        for flags in [
            ["--trend-half-life-ms", "0"],
            ["--trend-floor", "0"],
            ["--trend-floor", "NaN"],
            ["--similarity-seed-exponent", "-1"],
            ["--history-limit", "0"],
            ["--recommendation-redis-prefix", "a{b"],
        ] {
            assert!(parse(&flags).is_err(), "{flags:?}");
        }
    }

    #[test]
    fn a_blank_url_is_absent() {
        let settings = parse(&["--redis-url", "", "--mongodb-url", " ", "--amqp-url", ""]).unwrap();
        assert_eq!((settings.servers.redis(), settings.servers.mongodb()), (None, None));
        assert!(settings.broker().is_none());
    }

    #[test]
    fn the_broker_settings_have_url_and_prefix() {
        let url = "amqps://user:hunter2@broker.example/vhost";
        let settings = parse(&["--amqp-url", url, "--amqp-prefix", "test."]).unwrap();
        let rabbitmq = settings.broker().unwrap();
        assert_eq!(
            (rabbitmq.url.address().as_str(), rabbitmq.prefix.as_str()),
            ("broker.example:5671", "test.")
        );
    }

    #[test]
    fn a_wrong_url_is_refused_by_its_flag_and_not_repeated() {
        for (flag, url) in [
            ("--amqp-url", "http://user:hunter2@there"),
            ("--amqp-url", "amqp://user:hunter2@there:port"),
            ("--redis-url", "https://user:hunter2@there"),
            ("--redis-url", "redis://user:hunter2@there/not-a-number"),
            ("--mongodb-url", "postgres://user:hunter2@there"),
            ("--mongodb-url", "mongodb://user:hunter2@there:port"),
            ("--mongodb-url", "mongodb+srv://user:hunter2@there:27017"),
        ] {
            let error = parse(&[flag, url]).unwrap_err();
            assert!(error.to_string().contains(&format!("'{flag} <URL>': ")), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_server_s_password_does_not_show() {
        let settings = parse(&["--redis-url", "redis://user:hunter2@there"]).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert_eq!(settings.servers.redis().unwrap().expose(), "redis://user:hunter2@there");
    }
}
