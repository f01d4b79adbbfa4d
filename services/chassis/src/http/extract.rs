//! Extractors that reject requests with the error body of [`ApiError`].

use std::num::{IntErrorKind, ParseIntError};
use std::str::FromStr;

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::{ApiError, Message, messages};
use crate::text;

/// A type that path segments are read into.
pub trait Segments: DeserializeOwned + Send {
    /// The same value in Unicode NFC.
    fn nfc(self) -> Self;
}

impl Segments for String {
    fn nfc(self) -> Self {
        text::nfc(self).into_owned()
    }
}

impl Segments for (String, String) {
    fn nfc(self) -> Self {
        (self.0.nfc(), self.1.nfc())
    }
}

/// Path segments in Unicode NFC. A segment that does not parse is answered 404.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

impl<T: Segments, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value.nfc())),
            Err(_) => Err(ApiError::not_found(messages::no_such_thing())),
        }
    }
}

/// A type of a query parameter.
pub trait Parameter: FromStr {
    /// The message for a value of `name` that does not parse.
    fn refusal(name: &str, error: &Self::Err) -> Message;
}

impl Parameter for String {
    fn refusal(_: &str, never: &Self::Err) -> Message {
        match *never {}
    }
}

impl Parameter for bool {
    fn refusal(name: &str, _: &Self::Err) -> Message {
        messages::not_true_or_false(name)
    }
}

impl Parameter for f64 {
    fn refusal(name: &str, _: &Self::Err) -> Message {
        messages::not_a_number(name)
    }
}

fn not_a_whole_number(name: &str, error: &ParseIntError) -> Message {
    match error.kind() {
        IntErrorKind::PosOverflow => messages::too_large_a_number(name),
        _ => messages::not_a_whole_number(name),
    }
}

impl Parameter for u32 {
    fn refusal(name: &str, error: &Self::Err) -> Message {
        not_a_whole_number(name, error)
    }
}

impl Parameter for u64 {
    fn refusal(name: &str, error: &Self::Err) -> Message {
        not_a_whole_number(name, error)
    }
}

impl Parameter for usize {
    fn refusal(name: &str, error: &Self::Err) -> Message {
        not_a_whole_number(name, error)
    }
}

/// The decoded query string. Values are normalised by [`text::line`]. Unknown parameters are
/// ignored.
#[derive(Debug, Clone, Default)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// The parameters of a raw query string such as `a=1&b=%20`.
    pub fn parse(query: &str) -> Self {
        Self(
            form_urlencoded::parse(query.as_bytes())
                .map(|(name, value)| (name.into_owned(), text::line(&value).into_owned()))
                .collect(),
        )
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The parsed value of a parameter, or `None` when it is absent.
    ///
    /// # Errors
    /// 422 when the value does not parse or is given more than once.
    pub fn one<T: Parameter>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let mut values = self.values(name);
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(ApiError::invalid(messages::given_more_than_once(name)));
        }
        value.parse().map(Some).map_err(|error| ApiError::invalid(T::refusal(name, &error)))
    }

    /// A trimmed text, or `None` when it is absent or blank.
    pub fn text(&self, name: &str) -> Option<String> {
        self.values(name).map(str::trim).find(|value| !value.is_empty()).map(ToOwned::to_owned)
    }

    /// A list, repeated (`a=1&a=2`) or separated by commas (`a=1,2`). Blank elements are left out.
    pub fn list(&self, name: &str) -> Vec<String> {
        self.values(name)
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|value| !value.is_empty())
            .map(ToOwned::to_owned)
            .collect()
    }

    /// Whether the parameter is present.
    pub fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn lists_repeat_or_are_separated_by_commas() {
        let expected = ["자연", "역사"];
        for query in ["tags=자연&tags=역사", "tags=자연,역사", "tags=%EC%9E%90%EC%97%B0,,%20역사"]
        {
            assert_eq!(Params::parse(query).list("tags"), expected, "{query}");
        }
        assert!(Params::parse("tag=자연").list("tags").is_empty());
    }

    #[test]
    fn values_are_composed_and_have_no_invisible_characters() {
        let query =
            "tags=%E1%84%8C%E1%85%A1%E1%84%8B%E1%85%A7%E1%86%AB%E2%80%8B,%E3%85%A4&query=%E3%85%A4";
        assert_eq!(Params::parse(query).list("tags"), ["자연"]);
        assert_eq!(Params::parse(query).text("query"), None);
    }

    #[test]
    fn a_blank_text_is_absent() {
        assert_eq!(Params::parse("query=%20%20").text("query"), None);
        assert_eq!(Params::parse("query=+a+b+").text("query").as_deref(), Some("a b"));
    }

    #[test]
    fn an_invalid_number_is_refused_by_name() {
        let error = Params::parse("k=many").one::<u32>("k").unwrap_err();
        assert_eq!(error.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(error.body().message, "k must be a whole number from 0 on");
        let error = Params::parse("k=99999999999").one::<u32>("k").unwrap_err();
        assert_eq!(error.body().message, "k is too large a number");
        let error = Params::parse("lat=north").one::<f64>("lat").unwrap_err();
        assert_eq!(error.body().message, "lat must be a number such as 37.56");
        assert!(Params::parse("k=1&k=2").one::<u32>("k").is_err());
        assert_eq!(Params::parse("k=7").one::<u32>("k").unwrap(), Some(7));
    }
}
