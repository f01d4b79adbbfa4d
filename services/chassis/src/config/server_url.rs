//! The address of a server, with the credentials to enter it.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// The URL of a server, which may hold a password: it does not show itself.
///
/// It is parsed from any text. Whoever connects judges it, without repeating it as clap would.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl(String);

impl ServerUrl {
    /// The URL itself, for the client that connects.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether nothing is given: an environment variable that is set to nothing.
    pub fn is_blank(&self) -> bool {
        self.0.is_empty()
    }

    /// The URL that is given, if any: a blank one is none.
    pub fn given(url: Option<&Self>) -> Option<&Self> {
        url.filter(|url| !url.is_blank())
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerUrl(..)")
    }
}

impl FromStr for ServerUrl {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_nothing_and_a_blank_one_is_none() {
        let url: ServerUrl = "redis://default:sea-breeze1@cache.example/0".parse().unwrap();
        assert!(!format!("{url:?}").contains("sea"));
        assert_eq!(url.expose(), "redis://default:sea-breeze1@cache.example/0");
        assert_eq!(ServerUrl::given(Some(&url)), Some(&url));
        assert_eq!(ServerUrl::given(Some(&" ".parse().unwrap())), None);
        assert_eq!(ServerUrl::given(None), None);
    }
}
