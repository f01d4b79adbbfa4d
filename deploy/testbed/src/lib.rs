//! Real servers in the hands of a test. For tests only: no program of Tourin depends on this crate.
//!
//! - [`Bed`]: servers of a test's own, which it may stop, kill and start again.
//! - [`Proxy`]: a way to a server that can be cut, delayed and made deaf, while the server stays as
//!   it is for everybody else.
//! - [`given`]: where the servers are that the caller of the tests has running.
//!
//! A failure here fails the test; nothing returns an error.

mod bed;
mod proxy;
mod quorum_queues;
mod url;

use std::fmt;
use std::net::{SocketAddr, TcpListener};

use rand::Rng as _;

pub use bed::{Bed, Ending};
pub use proxy::{Cut, Proxy};
pub use url::{authority, with_authority};

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
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Mysql, Self::Redis, Self::Mongodb, Self::Amqp];

    /// The environment variable that says where it is.
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

/// An address of this machine on which nobody listens: for who must know it before the program that
/// will. Its port is below the kernel's range for outgoing connections, so that it is still free when
/// a program that was killed comes back to it.
pub fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], rand::rng().random_range(15_000..32_000)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// The URL of a server that is given to the tests by the environment.
///
/// # Panics
///
/// Without one.
pub fn given(server: Server) -> String {
    let variable = server.variable();
    match std::env::var(variable) {
        Ok(url) if !url.is_empty() => url,
        _ => panic!("{variable} is not set: run it by deploy/testbed.sh run -- cargo test ..."),
    }
}
