//! Real servers for tests, and how a test waits. No program of Tourin depends on this crate.
//!
//! - [`Bed`]: a test's own servers, which it can stop, kill and restart.
//! - [`Proxy`]: a route to a server that can be cut, delayed and muted, without a change for the
//!   server's other clients.
//! - [`eventually`]: waits for a condition.
//! - [`given`], [`given_to`]: the servers that already run when the tests start.
//!
//! A failure here fails the test; no function returns an error.

mod bed;
mod proxy;
mod quorum_queues;
mod url;
mod waiting;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

use rand::Rng as _;

pub use bed::{Bed, StopSignal};
pub use proxy::{Cut, Proxy};
pub use url::{authority, with_authority};
pub use waiting::{Answer, SOON, contains, equal, eventually, eventually_within};

/// A server of a bed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// MariaDB.
    Mysql,
    /// Redis.
    Redis,
    /// A server that speaks MongoDB's protocol.
    Mongodb,
    /// RabbitMQ.
    Amqp,
}

impl Server {
    /// All servers.
    pub const ALL: [Self; 4] = [Self::Mysql, Self::Redis, Self::Mongodb, Self::Amqp];

    /// The environment variable with its URL.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Mysql => "TOURIN_MYSQL_URL",
            Self::Redis => "TOURIN_REDIS_URL",
            Self::Mongodb => "TOURIN_MONGODB_URL",
            Self::Amqp => "TOURIN_AMQP_URL",
        }
    }
}

impl fmt::Display for Server {
    /// Its name for `deploy/testbed.sh`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mysql => "mysql",
            Self::Redis => "redis",
            Self::Mongodb => "mongodb",
            Self::Amqp => "amqp",
        })
    }
}

/// A user of a server with the rights of one program, and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// The gateway's, at Redis.
    Gateway,
    /// Core's, at Redis and RabbitMQ.
    Core,
    /// Recommendation's, at Redis, MongoDB and RabbitMQ.
    Recommendation,
    /// That of operators' commands, at RabbitMQ.
    Operator,
    /// That of registries that share their state, at Redis.
    Registry,
}

impl User {
    /// All users.
    pub const ALL: [Self; 5] =
        [Self::Gateway, Self::Core, Self::Recommendation, Self::Operator, Self::Registry];

    /// The environment variable with the URL of a server for this user, such as `TOURIN_AMQP_CORE_URL`. A server
    /// has the users whose programs it serves.
    pub fn variable(self, server: Server) -> String {
        format!("TOURIN_{server}_{self:?}_URL").to_uppercase()
    }
}

/// An unused address of this machine, for a test that must know it before its program starts. The
/// port is below the kernel's range for outgoing connections, so that it is still free when a
/// killed program restarts on it. No other test of this process gets it.
pub fn free_address() -> SocketAddr {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = rand::rng().random_range(15_000..32_000);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let is_free = TcpListener::bind(address).is_ok();
        if is_free && GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            return address;
        }
    }
}

/// The URL of a server from the tests' environment.
///
/// # Panics
///
/// If the variable is missing.
pub fn given(server: Server) -> String {
    given_by(server.variable())
}

/// The URL of a server for one of its users, from the tests' environment.
///
/// # Panics
///
/// If the variable is missing.
pub fn given_to(user: User, server: Server) -> String {
    given_by(&user.variable(server))
}

fn given_by(variable: &str) -> String {
    match std::env::var(variable) {
        Ok(url) if !url.is_empty() => url,
        _ => panic!("{variable} is not set: run it by deploy/testbed.sh run -- cargo test ..."),
    }
}
