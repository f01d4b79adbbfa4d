//! Extractors whose refusals are the contract's error body.

use std::error::Error;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};
use std::str::{FromStr, ParseBoolError};

use axum::body::HttpBody as _;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ApiError, fields};
use crate::text;

/// A JSON body. Not JSON at all is 400, JSON of another shape is 422.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(mut request: Request, state: &S) -> Result<Self, Self::Rejection> {
        if fields::has_media_type(request.headers(), "application/json") {
            // axum does not know the type where it cannot read a parameter; JSON has none that matters.
            let plain = HeaderValue::from_static("application/json");
            request.headers_mut().insert(CONTENT_TYPE, plain);
        }
        let is_empty = request.body().is_end_stream();
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(JsonRejection::JsonDataError(error)) => Err(ApiError::invalid(cause(&error))),
            Err(JsonRejection::JsonSyntaxError(_)) if is_empty => {
                Err(ApiError::malformed("the body is empty: expected JSON"))
            }
            Err(JsonRejection::JsonSyntaxError(error)) => {
                Err(ApiError::malformed(format!("the body is not JSON: {}", cause(&error))))
            }
            Err(JsonRejection::MissingJsonContentType(_)) => Err(ApiError::malformed(
                "the body must be JSON, sent with the header Content-Type: application/json",
            )),
            Err(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::too_large("the body is larger than this call accepts"))
            }
            Err(error) => Err(ApiError::malformed(cause(&error))),
        }
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// serde's words, which name the field and the place, without axum's preamble. The next cause below
/// would be without the field.
fn cause(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// What was expected, where the error of a standard type says only what was found.
fn in_words(error: &(dyn Error + 'static)) -> String {
    if let Some(number) = error.downcast_ref::<ParseIntError>() {
        return match number.kind() {
            IntErrorKind::PosOverflow => "the number is too large".to_owned(),
            _ => "expected a whole number from 0 on".to_owned(),
        };
    }
    if error.is::<ParseFloatError>() {
        return "expected a number such as 37.56".to_owned();
    }
    if error.is::<ParseBoolError>() {
        return "expected true or false".to_owned();
    }
    error.to_string()
}

/// What the segments of a path are read into.
pub trait Segments: DeserializeOwned + Send {
    /// The same in Unicode NFC.
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

/// Path segments, in Unicode NFC. One that does not parse names nothing that exists: 404.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

impl<T: Segments, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value.nfc())),
            Err(_) => Err(ApiError::not_found("no such thing")),
        }
    }
}

/// The query string, decoded; each value without invisible characters, in Unicode NFC, its spaces plain ([`text::line`]).
/// Parameters that nobody asks for are ignored.
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

    /// One value, parsed; `None` when absent.
    ///
    /// # Errors
    /// 422 when it does not parse or is given more than once.
    pub fn one<T>(&self, name: &str) -> Result<Option<T>, ApiError>
    where
        T: FromStr,
        T::Err: Error + 'static,
    {
        let mut values = self.values(name);
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(ApiError::invalid(format!("{name} is given more than once")));
        }
        value.parse().map(Some).map_err(|error| {
            ApiError::invalid(format!("{name} is not valid: {}", in_words(&error)))
        })
    }

    /// A text, trimmed; `None` when absent or blank.
    pub fn text(&self, name: &str) -> Option<String> {
        self.values(name).map(str::trim).find(|value| !value.is_empty()).map(ToOwned::to_owned)
    }

    /// A list that repeats (`a=1&a=2`) or is separated by commas (`a=1,2`); blanks are left out.
    pub fn list(&self, name: &str) -> Vec<String> {
        self.values(name)
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|value| !value.is_empty())
            .map(ToOwned::to_owned)
            .collect()
    }

    /// Whether the parameter is there at all.
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
    fn a_blank_text_is_none() {
        assert_eq!(Params::parse("query=%20%20").text("query"), None);
        assert_eq!(Params::parse("query=+a+b+").text("query").as_deref(), Some("a b"));
    }

    #[test]
    fn a_number_that_is_none_is_refused_by_name() {
        let error = Params::parse("k=many").one::<u32>("k").unwrap_err();
        assert_eq!(error.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(error.body().message, "k is not valid: expected a whole number from 0 on");
        let error = Params::parse("k=99999999999").one::<u32>("k").unwrap_err();
        assert_eq!(error.body().message, "k is not valid: the number is too large");
        let error = Params::parse("lat=north").one::<f64>("lat").unwrap_err();
        assert_eq!(error.body().message, "lat is not valid: expected a number such as 37.56");
        assert!(Params::parse("k=1&k=2").one::<u32>("k").is_err());
        assert_eq!(Params::parse("k=7").one::<u32>("k").unwrap(), Some(7));
    }
}
