//! The address of a database, whose password is never shown.

use std::fmt;
use std::str::FromStr;

use sqlx::mysql::MySqlConnectOptions;

/// `mysql://USER:PASSWORD@HOST:PORT/DATABASE`, with the port 3306 if none is given and sqlx's parameters behind a `?`.
///
/// Without `ssl-mode` it is `PREFERRED`: TLS if the server has it, without checking its identity. The programs' settings
/// add `ssl-mode=VERIFY_IDENTITY` for another machine; `ssl-ca=FILE` is for a private certificate authority.
///
/// `Debug` and `Display` show host, port and database only, and no error repeats the text.
#[derive(Clone)]
pub struct MysqlUrl(MySqlConnectOptions);

/// A text that is not a database address. The error does not repeat it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must be mysql://USER:PASSWORD@HOST:PORT/DATABASE")]
pub struct InvalidMysqlUrl;

impl MysqlUrl {
    /// The options to connect with.
    pub fn options(&self) -> &MySqlConnectOptions {
        &self.0
    }
}

impl FromStr for MysqlUrl {
    type Err = InvalidMysqlUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        if !matches!(scheme, Some("mysql" | "mariadb")) {
            return Err(InvalidMysqlUrl);
        }
        let options = MySqlConnectOptions::from_str(text).map_err(|_| InvalidMysqlUrl)?;
        if options.get_database().is_some_and(|name| !name.is_empty()) {
            Ok(Self(options))
        } else {
            Err(InvalidMysqlUrl)
        }
    }
}

impl fmt::Display for MysqlUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = (self.0.get_host(), self.0.get_port());
        write!(f, "{host}:{port}/{}", self.0.get_database().unwrap_or_default())
    }
}

impl fmt::Debug for MysqlUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MysqlUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_shows_neither_user_nor_password() {
        let url: MysqlUrl =
            "mysql://tourin:s3cr3t-word@db.example.com/core?ssl-mode=REQUIRED".parse().unwrap();
        assert_eq!(url.to_string(), "db.example.com:3306/core");
        assert_eq!(format!("{url:?}"), "MysqlUrl(db.example.com:3306/core)");
        assert_eq!(url.options().get_username(), "tourin");
    }

    #[test]
    fn an_invalid_url_is_refused_without_being_repeated() {
        for wrong in [
            "",
            "s3cr3t-word",
            "mysql:/tourin:s3cr3t-word@db/core",
            "mysql://tourin:s3cr3t-word@db",
            "mysql://tourin:s3cr3t-word@db:port/core",
            "mysql://tourin:s3cr3t-word@db/core?ssl-mode=s3cr3t-word",
            "redis://s3cr3t-word@db/1",
        ] {
            let error = wrong.parse::<MysqlUrl>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{wrong}");
        }
    }
}
