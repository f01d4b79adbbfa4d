//! The servers that several binaries use, each with one set of arguments. `U` is what a URL of the kind
//! is parsed into, by the crate that connects.

use clap::Args;

use super::defaults;
use super::server_url::{ServerAddress, ServerUrl, Unquoted};

/// RabbitMQ.
#[derive(Debug, Clone, Args)]
pub struct AmqpSettings<U: ServerAddress> {
    /// RabbitMQ that carries events, amqp://[USER:PASSWORD@]HOST[:PORT][/VHOST], or amqps:// for TLS;
    /// required by `core` and `recommendation` as processes of their own [default: none; events and dead
    /// letters of `tourin up` are in its data folder]
    #[arg(long, env = "TOURIN_AMQP_URL", value_name = "URL", hide_env_values = true, value_parser = Unquoted::<ServerUrl<U>>::parser())]
    pub amqp_url: Option<ServerUrl<U>>,
    /// What the names of exchanges and queues begin with, where meshes share a virtual host; the same for
    /// every service of a mesh
    #[arg(long, env = "TOURIN_AMQP_PREFIX", value_name = "TEXT", default_value = "")]
    pub amqp_prefix: String,
}

impl<U: ServerAddress> Default for AmqpSettings<U> {
    fn default() -> Self {
        defaults(&[])
    }
}

impl<U: ServerAddress> AmqpSettings<U> {
    /// The broker, if any.
    pub fn url(&self) -> Option<&U> {
        ServerUrl::given(self.amqp_url.as_ref())
    }
}

/// The MySQL of core.
#[derive(Debug, Clone, Args)]
pub struct MysqlSettings<U: ServerAddress> {
    /// MySQL 8 or MariaDB 10.6+ with core's data, mysql://USER:PASSWORD@HOST[:PORT]/DATABASE[?ssl-mode=...];
    /// on another machine ssl-mode is VERIFY_IDENTITY unless the URL names one. Any number of cores may run
    /// on it [default: none; SQLite in the data folder]
    #[arg(long, env = "TOURIN_MYSQL_URL", value_name = "URL", hide_env_values = true, value_parser = Unquoted::<ServerUrl<U>>::parser())]
    pub mysql_url: Option<ServerUrl<U>>,
}

impl<U: ServerAddress> MysqlSettings<U> {
    /// The database, if any.
    pub fn url(&self) -> Option<&U> {
        ServerUrl::given(self.mysql_url.as_ref())
    }
}
