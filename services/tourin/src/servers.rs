//! Servers in the place of what the all-in-one embeds: the same variables as of the services by
//! themselves.

use clap::Args;
use tourin_chassis::config::ServerUrl;
use tourin_core::MysqlUrl;

/// Where the mesh keeps what it keeps. Without a server, a part is embedded.
#[derive(Debug, Clone, Args)]
pub struct Servers {
    /// MySQL 8 or MariaDB 10.6+ for accounts, spots, reviews and bookmarks:
    /// mysql://USER:PASSWORD@HOST:PORT/DATABASE [default: SQLite in the data folder]
    #[arg(long, env = "TOURIN_MYSQL_URL", value_name = "URL", hide_env_values = true)]
    pub mysql_url: Option<MysqlUrl>,
    /// Redis for the trend, and for sessions where accounts are on a server too:
    /// redis://[USER:PASSWORD@]HOST:PORT[/DATABASE] [default: SQLite in the data folder]
    #[arg(long, env = "TOURIN_REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<ServerUrl>,
    /// MongoDB for histories and the replica of spots:
    /// mongodb://[USER:PASSWORD@]HOST:PORT[/DATABASE][?OPTIONS] [default: SQLite in the data folder]
    #[arg(long, env = "TOURIN_MONGODB_URL", value_name = "URL", hide_env_values = true)]
    pub mongodb_url: Option<ServerUrl>,
    /// RabbitMQ for events: amqp://USER:PASSWORD@HOST:PORT/VHOST, amqps for TLS
    /// [default: a bus in this process]
    #[arg(long, env = "TOURIN_AMQP_URL", value_name = "URL", hide_env_values = true)]
    pub amqp_url: Option<ServerUrl>,
    /// What the names of exchanges and queues begin with, where meshes share a virtual host
    #[arg(long, env = "TOURIN_AMQP_PREFIX", value_name = "TEXT", default_value = "")]
    pub amqp_prefix: String,
    /// What the names of the trend's keys in Redis begin with
    #[arg(
        long,
        env = "TOURIN_RECOMMENDATION_REDIS_PREFIX",
        value_name = "TEXT",
        default_value = RECOMMENDATION_PREFIX
    )]
    pub recommendation_redis_prefix: String,
    /// What the names of sessions' keys in Redis begin with
    #[arg(
        long,
        env = "TOURIN_SESSION_REDIS_PREFIX",
        value_name = "TEXT",
        default_value = SESSION_PREFIX
    )]
    pub session_redis_prefix: String,
}

const RECOMMENDATION_PREFIX: &str = "tourin";
const SESSION_PREFIX: &str = "tourin:sessions";

impl Default for Servers {
    fn default() -> Self {
        Self {
            mysql_url: None,
            redis_url: None,
            mongodb_url: None,
            amqp_url: None,
            amqp_prefix: String::new(),
            recommendation_redis_prefix: RECOMMENDATION_PREFIX.to_owned(),
            session_redis_prefix: SESSION_PREFIX.to_owned(),
        }
    }
}

impl Servers {
    /// Whether events go through a broker.
    pub fn has_broker(&self) -> bool {
        ServerUrl::given(self.amqp_url.as_ref()).is_some()
    }

    /// The Redis that keeps sessions: they go there together with the accounts' move to MySQL.
    pub fn session_redis(&self) -> Option<&ServerUrl> {
        let has_mysql = self.mysql_url.as_ref().is_some_and(|url| !url.is_blank());
        ServerUrl::given(self.redis_url.as_ref()).filter(|_| has_mysql)
    }

    /// The kinds of server that are used.
    pub fn names(&self) -> Vec<&'static str> {
        let mysql = self.mysql_url.as_ref().is_some_and(|url| !url.is_blank());
        let given = |url: &Option<ServerUrl>| ServerUrl::given(url.as_ref()).is_some();
        [
            ("MySQL", mysql),
            ("Redis", given(&self.redis_url)),
            ("MongoDB", given(&self.mongodb_url)),
            ("RabbitMQ", given(&self.amqp_url)),
        ]
        .into_iter()
        .filter_map(|(name, is_given)| is_given.then_some(name))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_is_used() {
        let servers = Servers {
            redis_url: Some("redis://127.0.0.1".parse().unwrap()),
            amqp_url: Some("".parse().unwrap()),
            ..Servers::default()
        };
        assert_eq!(servers.names(), ["Redis"]);
        assert!(!servers.has_broker());
    }
}
