//! The URL of a MongoDB, whose password is never shown.

use std::fmt;
use std::str::FromStr;

use mongodb::options::ConnectionString;

/// The URL of a MongoDB with its credentials, which neither `Debug` nor an error shows.
#[derive(Clone, PartialEq, Eq)]
pub struct MongodbUrl(String);

/// The text is not the URL of a MongoDB. The error does not quote it, because it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected mongodb://[user:password@]host[:port][,host...][/database][?options]")]
pub struct InvalidMongodbUrl;

impl MongodbUrl {
    /// The URL itself, for the driver.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for MongodbUrl {
    type Err = InvalidMongodbUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ConnectionString::parse(text).map_err(|_| InvalidMongodbUrl)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for MongodbUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MongodbUrl(..)")
    }
}
