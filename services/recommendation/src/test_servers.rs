//! The test bed's servers. Tests that need one fail without it, because a skipped test proves
//! nothing.

use std::fmt::Debug;
use std::str::FromStr;

use uuid::Uuid;

use tourin_chassis::redis::RedisUrl;

use crate::store::mongodb::MongodbUrl;

/// The first byte of a TLS handshake.
pub(crate) const TLS_HANDSHAKE: u8 = 0x16;

/// The test bed's Redis for the service's user.
pub(crate) fn redis() -> RedisUrl {
    server("TOURIN_REDIS_RECOMMENDATION_URL")
}

/// The same database for a user with all rights.
pub(crate) fn redis_with_all_rights() -> RedisUrl {
    let (service, all): (RedisUrl, RedisUrl) = (redis(), server("TOURIN_REDIS_URL"));
    let (_, database) = service.expose().rsplit_once('/').expect("it names a database");
    let (place, _) = all.expose().rsplit_once('/').expect("it names a database");
    format!("{place}/{database}").parse().expect("the URL of such a server")
}

/// The test bed's MongoDB.
pub(crate) fn mongodb() -> MongodbUrl {
    server("TOURIN_MONGODB_URL")
}

/// A unique name for a prefix or a database.
pub(crate) fn unique() -> String {
    format!("test-{}", Uuid::new_v4().simple())
}

fn server<U: FromStr<Err: Debug>>(variable: &str) -> U {
    let Ok(url) = std::env::var(variable) else {
        panic!("{variable} is not set: run it by deploy/testbed.sh run -- cargo test ...");
    };
    url.parse().expect("the URL of such a server")
}
