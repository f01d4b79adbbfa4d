//! The service's settings: flags, `TOURIN_*` variables, defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tourin_chassis::config::MeshSettings;

use crate::app::ingest::Ages;
use crate::app::model::CoOccurrenceRules;
use crate::domain::similarity::Exponents;
use crate::domain::trend::{DEFAULT_FLOOR, TrendRules};
use crate::store::HistoryRules;

/// The file in the data folder that holds everything the service keeps.
const FILE: &str = "recommendation.db";

/// How the recommendation service runs.
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
    /// Folder for the service's data; made when it is not there
    #[arg(
        long,
        env = "TOURIN_RECOMMENDATION_DATA_DIR",
        value_name = "DIR",
        default_value = "tourin-data/recommendation"
    )]
    pub data_dir: PathBuf,
    /// The service's place in the mesh.
    #[command(flatten)]
    pub mesh: MeshSettings,
    /// Trend, histories, model.
    #[command(flatten)]
    pub rules: RuleSettings,
    /// Seconds between two full readings of core's catalogue; events keep the replica fresh between
    #[arg(long, env = "TOURIN_RESYNC_INTERVAL_S", value_name = "S", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub resync_interval_s: u64,
    /// Milliseconds that requests in flight get to finish when the service stops
    #[arg(long, env = "TOURIN_RECOMMENDATION_DRAIN_TIMEOUT_MS", value_name = "MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub drain_timeout_ms: u64,
}

/// What the recommendations follow.
#[derive(Debug, Clone, Args)]
pub struct RuleSettings {
    /// Milliseconds in which a view's or bookmark's worth for the trend halves
    #[arg(long, env = "TOURIN_TREND_HALF_LIFE_MS", value_name = "MS", default_value_t = 3_600_000, value_parser = clap::value_parser!(u64).range(1..=31_536_000_000))]
    pub trend_half_life_ms: u64,
    /// Smallest worth, in views of this moment, with which a spot is still in the trend
    #[arg(long, env = "TOURIN_TREND_FLOOR", value_name = "VIEWS", default_value_t = DEFAULT_FLOOR, value_parser = positive)]
    pub trend_floor: f64,
    /// Milliseconds within which the same person, spot and kind count once for the trend
    #[arg(long, env = "TOURIN_TREND_WINDOW_MS", value_name = "MS", default_value_t = 3_600_000, value_parser = clap::value_parser!(u64).range(1..=604_800_000))]
    pub trend_window_ms: u64,
    /// Age in seconds beyond which an event no longer counts for the trend
    #[arg(long, env = "TOURIN_TREND_MAX_AGE_S", value_name = "S", default_value_t = 86_400, value_parser = clap::value_parser!(u64).range(60..=31_536_000))]
    pub trend_max_age_s: u64,
    /// Age in seconds beyond which a view or bookmark no longer enters a member's history
    #[arg(long, env = "TOURIN_HISTORY_MAX_AGE_S", value_name = "S", default_value_t = 2_592_000, value_parser = clap::value_parser!(u64).range(60..=315_360_000))]
    pub history_max_age_s: u64,
    /// Latest spots of a member that recommendations are made from; all are left out of them
    #[arg(long, env = "TOURIN_HISTORY_LIMIT", value_name = "SPOTS", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub history_limit: u16,
    /// Milliseconds for which the neighbours of a spot are kept before they are worked out again
    #[arg(long, env = "TOURIN_NEIGHBOURS_MAX_AGE_MS", value_name = "MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(0..=86_400_000))]
    pub neighbours_max_age_ms: u64,
    /// Exponent by which the popularity of the spot one starts from is discounted
    #[arg(long, env = "TOURIN_SIMILARITY_SEED_EXPONENT", value_name = "X", default_value_t = Exponents::default().seed, value_parser = exponent)]
    pub similarity_seed_exponent: f64,
    /// Exponent by which the popularity of the spot that is found is discounted
    #[arg(long, env = "TOURIN_SIMILARITY_NEIGHBOUR_EXPONENT", value_name = "X", default_value_t = Exponents::default().neighbour, value_parser = exponent)]
    pub similarity_neighbour_exponent: f64,
    /// Exponent by which members who know many spots are discounted
    #[arg(long, env = "TOURIN_SIMILARITY_MEMBER_EXPONENT", value_name = "X", default_value_t = Exponents::default().member, value_parser = exponent)]
    pub similarity_member_exponent: f64,
}

impl Settings {
    /// Settings of an instance that listens on `listen` and keeps its data in `data_dir`, with the
    /// defaults for the rest.
    pub fn new(listen: SocketAddr, data_dir: impl Into<PathBuf>, mesh: MeshSettings) -> Self {
        Self {
            listen,
            data_dir: data_dir.into(),
            mesh,
            rules: RuleSettings::default(),
            resync_interval_s: 3_600,
            drain_timeout_ms: 1_000,
        }
    }

    /// The file that holds everything the service keeps.
    pub fn file(&self) -> PathBuf {
        self.data_dir.join(FILE)
    }
}

impl Default for RuleSettings {
    fn default() -> Self {
        let exponents = Exponents::default();
        Self {
            trend_half_life_ms: 3_600_000,
            trend_floor: DEFAULT_FLOOR,
            trend_window_ms: 3_600_000,
            trend_max_age_s: 86_400,
            history_max_age_s: 2_592_000,
            history_limit: 100,
            neighbours_max_age_ms: 2_000,
            similarity_seed_exponent: exponents.seed,
            similarity_neighbour_exponent: exponents.neighbour,
            similarity_member_exponent: exponents.member,
        }
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
            recent: usize::from(self.history_limit),
            max_age: Duration::from_secs(self.history_max_age_s),
        }
    }

    /// Ages beyond which events no longer come.
    pub fn ages(&self) -> Ages {
        Ages {
            trend: Duration::from_secs(self.trend_max_age_s),
            histories: Duration::from_secs(self.history_max_age_s),
        }
    }

    /// How co-occurrence is worked out.
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
        let secret = ["recommendation", "--registration-secret", "0123456789abcdef"];
        Command::try_parse_from(secret.iter().chain(flags)).map(|command| command.settings)
    }

    #[test]
    fn the_defaults_of_the_flags_are_the_defaults_of_the_code() {
        let parsed = parse(&[]).unwrap();
        let made = Settings::new(parsed.listen, parsed.data_dir.clone(), parsed.mesh.clone());
        assert_eq!(format!("{parsed:?}"), format!("{made:?}"));
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
        ] {
            assert!(parse(&flags).is_err(), "{flags:?}");
        }
    }
}
