//! The address of a database, whose password is never shown.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use sqlx::mysql::MySqlConnectOptions;

/// `mysql://USER:PASSWORD@HOST:PORT/DATABASE`, with the port 3306 if none is given and sqlx's parameters behind a `?`.
///
/// `ssl-mode` is `PREFERRED` by default: TLS if the server has it, without checking its identity. Across a network that
/// is not trusted use `?ssl-mode=VERIFY_IDENTITY`, and `&ssl-ca=FILE` for a private certificate authority.
///
/// `Debug` and `Display` show host, port and database only. It is parsed from any text, so that no parse error has to
/// repeat the text; [`MysqlUrl::options`] returns the error.
#[derive(Clone, PartialEq, Eq)]
pub struct MysqlUrl(String);

/// A text that is not a database address. The error does not repeat it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must be mysql://USER:PASSWORD@HOST:PORT/DATABASE")]
pub struct InvalidMysqlUrl;

impl MysqlUrl {
    /// The options to connect with.
    ///
    /// # Errors
    /// [`InvalidMysqlUrl`] when it is not a URL of this kind, or names no database.
    pub fn options(&self) -> Result<MySqlConnectOptions, InvalidMysqlUrl> {
        let scheme = self.0.split_once("://").map(|(scheme, _)| scheme);
        if !matches!(scheme, Some("mysql" | "mariadb")) {
            return Err(InvalidMysqlUrl);
        }
        let options = MySqlConnectOptions::from_str(&self.0).map_err(|_| InvalidMysqlUrl)?;
        if options.get_database().is_some_and(|name| !name.is_empty()) {
            Ok(options)
        } else {
            Err(InvalidMysqlUrl)
        }
    }

    /// Whether it is blank: an environment variable that is set to nothing.
    pub fn is_blank(&self) -> bool {
        self.0.trim().is_empty()
    }
}

impl FromStr for MysqlUrl {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for MysqlUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.options() {
            Ok(options) => {
                let (host, port) = (options.get_host(), options.get_port());
                write!(f, "{host}:{port}/{}", options.get_database().unwrap_or_default())
            }
            Err(_) => f.write_str("(not a database address)"),
        }
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

    fn url(text: &str) -> MysqlUrl {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_shows_neither_user_nor_password() {
        let url = url("mysql://tourin:s3cr3t-word@db.example.com/core?ssl-mode=REQUIRED");
        assert_eq!(url.to_string(), "db.example.com:3306/core");
        assert_eq!(format!("{url:?}"), "MysqlUrl(db.example.com:3306/core)");
        assert_eq!(url.options().unwrap().get_username(), "tourin");
    }

    #[test]
    fn an_invalid_url_is_refused_without_being_repeated() {
        for wrong in
            ["", "s3cr3t-word", "mysql://tourin:s3cr3t-word@db", "redis://s3cr3t-word@db/1"]
        {
            let error = url(wrong).options().unwrap_err();
            assert!(!format!("{error} {error:?} {:?}", url(wrong)).contains("s3cr3t"), "{wrong}");
        }
    }
}
