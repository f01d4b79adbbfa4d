//! The URL of a server, with its credentials.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// The URL of a server. It may contain a password, so it is never shown.
///
/// It is parsed from any text. The code that connects validates it, without quoting it as clap
/// would.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl(String);

impl ServerUrl {
    /// The URL itself, for the client that connects.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is blank: an environment variable that is set to nothing.
    pub fn is_blank(&self) -> bool {
        self.0.is_empty()
    }

    /// The given URL, if any; a blank one counts as absent.
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
    fn debug_output_is_redacted_and_a_blank_secret_is_absent() {
        let url: ServerUrl = "redis://default:sea-breeze1@cache.example/0".parse().unwrap();
        assert!(!format!("{url:?}").contains("sea"));
        assert_eq!(url.expose(), "redis://default:sea-breeze1@cache.example/0");
        assert_eq!(ServerUrl::given(Some(&url)), Some(&url));
        assert_eq!(ServerUrl::given(Some(&" ".parse().unwrap())), None);
        assert_eq!(ServerUrl::given(None), None);
    }
}
