//! Events per second from an outbox in MariaDB through a quorum queue to the trend in Redis, against
//! the ceiling of the same broker: a bare publisher with confirms and a bare consumer on one quorum
//! queue. Run it by `deploy/bench.sh relay-to-effect`.

#[path = "relay_to_effect/ceiling.rs"]
mod ceiling;
#[path = "relay_to_effect/mesh.rs"]
mod mesh;

use std::io::Write;
use std::time::Duration;

use clap::Parser;
use tourin_chassis::config::Unquoted;
use tourin_chassis::redis::RedisUrl;
use tourin_shared_events::mysql::MysqlUrl;

/// Measures the path from the outbox to the effect.
#[derive(Parser)]
struct Settings {
    /// Events in each round
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    events: usize,
    /// Rounds; the ratio printed last is the median's
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// MariaDB or MySQL
    #[arg(long, env = "TOURIN_MYSQL_URL", value_name = "URL", hide_env_values = true, value_parser = Unquoted::<MysqlUrl>::parser())]
    mysql_url: MysqlUrl,
    /// Redis
    #[arg(long, env = "TOURIN_REDIS_URL", value_name = "URL", hide_env_values = true, value_parser = Unquoted::<RedisUrl>::parser())]
    redis_url: RedisUrl,
    /// RabbitMQ
    #[arg(long, env = "TOURIN_AMQP_URL", value_name = "URL", hide_env_values = true)]
    amqp_url: String,
}

/// The figures of a round.
#[derive(Debug, Clone, Copy)]
struct Figures {
    took: Duration,
    processor_time: Duration,
    events: usize,
}

impl Figures {
    fn rate(&self) -> f64 {
        self.events as f64 / self.took.as_secs_f64()
    }

    /// Microseconds of processor time per event, in this process alone.
    fn cost(&self) -> f64 {
        self.processor_time.as_secs_f64() * 1e6 / self.events as f64
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let mut out = std::io::stdout();
    let mut ratios = Vec::new();
    for round in 1..=settings.rounds {
        let ceiling = ceiling::measure(&settings.amqp_url, settings.events).await?;
        let (mesh, redis_commands) = mesh::measure(&settings).await?;
        let ratio = mesh.rate() / ceiling.rate();
        ratios.push(ratio);
        writeln!(
            out,
            "round {round}: ceiling {:.0} events/s at {:.1} us of CPU each; outbox to trend {:.0} events/s at {:.1} us \
             each, {:.0} commands to Redis per 1,000 events; ratio {ratio:.2}",
            ceiling.rate(),
            ceiling.cost(),
            mesh.rate(),
            mesh.cost(),
            redis_commands as f64 * 1e3 / mesh.events as f64,
        )?;
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or_default();
    writeln!(out, "relay to effect / ceiling, median of {}: {median:.2}", ratios.len())?;
    Ok(())
}
