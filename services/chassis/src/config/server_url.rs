//! The URL of a server, which may hold a password.

use std::ffi::OsStr;
use std::fmt::{Debug, Display};
use std::marker::PhantomData;
use std::str::FromStr;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command};

use super::plaintext::with_ssl_mode;

/// What a URL of one kind of server is parsed into. Neither its `Debug` nor the error of its `FromStr`
/// shows the password.
pub trait ServerAddress: FromStr<Err: Display> + Debug + Clone + Send + Sync + 'static {}

impl<U: FromStr<Err: Display> + Debug + Clone + Send + Sync + 'static> ServerAddress for U {}

/// A server's URL as a setting. A blank one counts as absent: an environment variable that is set to
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl<U>(Option<U>);

impl<U> ServerUrl<U> {
    /// The given URL, if any.
    pub fn given(url: Option<&Self>) -> Option<&U> {
        url?.0.as_ref()
    }
}

impl<U> From<U> for ServerUrl<U> {
    fn from(url: U) -> Self {
        Self(Some(url))
    }
}

impl<U: FromStr> FromStr for ServerUrl<U> {
    type Err = U::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "" => Ok(Self(None)),
            text => with_ssl_mode(text).parse().map(|url| Self(Some(url))),
        }
    }
}

/// Parses a value that no message may quote, because it may be a secret. clap's own parsers quote what
/// they refuse.
#[derive(Debug)]
pub struct Unquoted<T>(PhantomData<fn() -> T>);

impl<T> Unquoted<T> {
    /// The parser of `T`, for an argument's `value_parser`.
    pub fn parser() -> Self {
        Self(PhantomData)
    }
}

impl<T> Clone for Unquoted<T> {
    fn clone(&self) -> Self {
        Self::parser()
    }
}

impl<T: FromStr<Err: Display> + Clone + Send + Sync + 'static> TypedValueParser for Unquoted<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        let text = value.to_str().ok_or_else(|| "it is not UTF-8".to_owned());
        text.and_then(|text| text.parse().map_err(|error: T::Err| error.to_string())).map_err(
            |why| {
                let flag = arg.map(|arg| format!(" for '{arg}'")).unwrap_or_default();
                let message = format!("invalid value{flag}: {why}");
                clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::secret::Secret;

    #[derive(Debug, Clone, PartialEq)]
    struct Even(u32);

    impl FromStr for Even {
        type Err = &'static str;

        fn from_str(text: &str) -> Result<Self, Self::Err> {
            text.parse::<u32>()
                .ok()
                .filter(|n| n % 2 == 0)
                .map(Self)
                .ok_or("expected an even number")
        }
    }

    #[derive(Debug, Parser)]
    struct Program {
        #[arg(long, value_name = "URL", value_parser = Unquoted::<ServerUrl<Even>>::parser())]
        url: Option<ServerUrl<Even>>,
        #[arg(long, value_name = "SECRET", value_parser = Unquoted::<Secret>::parser())]
        secret: Option<Secret>,
    }

    #[test]
    fn a_blank_url_is_absent() {
        let url = |args: &[&str]| {
            let program = Program::try_parse_from([&["program"], args].concat()).unwrap();
            ServerUrl::given(program.url.as_ref()).cloned()
        };
        assert_eq!(url(&["--url", " 4 "]), Some(Even(4)));
        assert_eq!(url(&["--url", " "]), None);
        assert_eq!(url(&["--url="]), None);
        assert_eq!(url(&[]), None);
    }

    #[test]
    fn what_is_refused_is_not_quoted() {
        for (args, message) in [
            (["--url", "12345"], "invalid value for '--url <URL>': expected an even number"),
            (["--secret", "hunter2"], "invalid value for '--secret <SECRET>': a secret needs"),
        ] {
            let error = Program::try_parse_from([&["program"], &args[..]].concat()).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(error.to_string().contains(message), "{error}");
            assert!(!shown.contains("12345") && !shown.contains("hunter2"), "{shown}");
        }
    }
}
