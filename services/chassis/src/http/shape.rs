//! Reads JSON into Rust types. The errors name the wrong field and what it must be.
//!
//! serde's own errors speak of Rust's types and quote the input, which may be a password. This
//! deserializer has errors written for clients.

use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

use super::{Message, messages};

/// Longest path to a field in a message, in characters. The client chooses the keys of a map.
const MAX_PATH_CHARS: usize = 80;

/// Reads a JSON value as `T`.
///
/// # Errors
/// The message names the wrong field and what it must be. It does not quote the input.
pub fn read_value<T: DeserializeOwned>(value: Value) -> Result<T, Message> {
    serde_path_to_error::deserialize(Node(value)).map_err(|error| {
        let path: String = error.path().to_string().chars().take(MAX_PATH_CHARS).collect();
        // serde_path_to_error writes the root as ".".
        let path = if path == "." { "" } else { path.as_str() };
        error.into_inner().at(path)
    })
}

/// Why a value is refused.
#[derive(Debug)]
enum Problem {
    Missing(&'static str),
    NotA(Kind),
    NotOneOf(&'static [&'static str]),
    /// A field that is not one of these.
    Unknown(&'static [&'static str]),
    NotAllowed,
}

/// What a value must be.
#[derive(Debug, Clone, Copy)]
enum Kind {
    String,
    TrueOrFalse,
    WholeNumber,
    Number,
    List,
    Object,
}

impl Problem {
    fn at(&self, path: &str) -> Message {
        match self {
            Self::Missing(field) if path.is_empty() => messages::missing(field),
            Self::Missing(field) => messages::missing(&format!("{path}.{field}")),
            Self::NotA(Kind::Object) if path.is_empty() => messages::body_not_an_object(),
            Self::Unknown(known) => messages::unknown_field(&known.join(", ")),
            _ if path.is_empty() => messages::body_not_allowed(),
            Self::NotA(Kind::String) => messages::not_a_string(path),
            Self::NotA(Kind::TrueOrFalse) => messages::not_true_or_false(path),
            Self::NotA(Kind::WholeNumber) => messages::not_a_whole_number(path),
            Self::NotA(Kind::Number) => messages::not_a_number(path),
            Self::NotA(Kind::List) => messages::not_a_list(path),
            Self::NotA(Kind::Object) => messages::not_an_object(path),
            Self::NotOneOf(known) => messages::not_one_of(path, &known.join(", ")),
            Self::NotAllowed => messages::not_allowed(path),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.at("the value").fmt(f)
    }
}

impl std::error::Error for Problem {}

impl Error for Problem {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::NotAllowed
    }

    fn invalid_type(_: Unexpected<'_>, _: &dyn serde::de::Expected) -> Self {
        Self::NotAllowed
    }

    fn unknown_variant(_: &str, known: &'static [&'static str]) -> Self {
        Self::NotOneOf(known)
    }

    fn unknown_field(_: &str, known: &'static [&'static str]) -> Self {
        Self::Unknown(known)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }
}

/// A value that is a deserializer.
struct Node(Value);

impl Node {
    /// For a type that accepts only values of this kind.
    fn only<'de, V: Visitor<'de>>(self, kind: Kind, visitor: V) -> Result<V::Value, Problem> {
        let is_of_kind = match kind {
            Kind::String => self.0.is_string(),
            Kind::TrueOrFalse => self.0.is_boolean(),
            Kind::WholeNumber => self.0.is_u64(),
            Kind::Number => self.0.is_number(),
            Kind::List => self.0.is_array(),
            Kind::Object => self.0.is_object(),
        };
        if is_of_kind { self.deserialize_any(visitor) } else { Err(Problem::NotA(kind)) }
    }
}

impl IntoDeserializer<'_, Problem> for Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! only {
    ($($method:ident $kind:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
            self.only(Kind::$kind, visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Node {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (None, Some(number)) => visitor.visit_i64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_string(text),
            Value::Array(items) => {
                visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Node)))
            }
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| (name, Node(value)));
                visitor.visit_map(MapDeserializer::new(fields))
            }
        }
    }

    only! {
        deserialize_bool TrueOrFalse;
        deserialize_u8 WholeNumber;
        deserialize_u16 WholeNumber;
        deserialize_u32 WholeNumber;
        deserialize_u64 WholeNumber;
        deserialize_f32 Number;
        deserialize_f64 Number;
        deserialize_char String;
        deserialize_str String;
        deserialize_string String;
        deserialize_seq List;
        deserialize_map Object;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    /// serde would also accept a list of the fields' values.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        self.only(Kind::Object, visitor)
    }

    /// Accepts only a variant's name: no type that is read here has other enums.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match self.0 {
            Value::String(name) => visitor.visit_enum(name.into_deserializer()),
            _ => Err(Problem::NotOneOf(variants)),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use serde::Deserialize;
    use serde_json::json;

    use super::super::Language;
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase")]
    struct Visit {
        user_id: String,
        liked: bool,
        #[serde(default)]
        count: u32,
        note: Option<String>,
        #[serde(default)]
        how: How,
        #[serde(default)]
        stops: Vec<Stop>,
        address: Option<SocketAddr>,
        #[serde(default)]
        extra: BTreeMap<String, String>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum How {
        #[default]
        Foot,
        Bus,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Stop {
        lat: f64,
    }

    fn refusal(value: Value) -> String {
        read_value::<Visit>(value).unwrap_err().text(Language::English).to_owned()
    }

    #[test]
    fn a_value_of_the_right_form_is_read() {
        let value = json!({
            "userId": "hana12345", "liked": true, "count": 3, "note": null, "how": "bus",
            "stops": [{"lat": 37}], "address": "127.0.0.1:80", "extra": {"a": "b"}, "other": [1],
        });
        let visit: Visit = read_value(value).unwrap();
        assert_eq!((visit.count, visit.note, visit.how), (3, None, How::Bus));
        assert_eq!(visit.stops, [Stop { lat: 37.0 }]);
        assert_eq!(visit.extra["a"], "b");
    }

    #[test]
    fn a_wrong_field_is_named_with_what_it_must_be() {
        let with = |name: &str, value: Value| {
            let mut visit = json!({"userId": "hana12345", "liked": true});
            visit[name] = value;
            refusal(visit)
        };
        assert_eq!(refusal(json!({"liked": true})), "userId is missing");
        assert_eq!(with("userId", json!(["s3cret"])), "userId must be a string");
        assert_eq!(with("userId", Value::Null), "userId must be a string");
        assert_eq!(with("liked", json!("yes")), "liked must be true or false");
        for count in [json!("3"), json!(-3), json!(1.5), Value::Null] {
            assert_eq!(with("count", count), "count must be a whole number from 0 on");
        }
        let many = u64::from(u32::MAX) + 1;
        assert_eq!(with("count", json!(many)), "count has a value that is not allowed");
        assert_eq!(with("note", json!(1)), "note must be a string");
        assert_eq!(with("how", json!("rail")), "how must be one of foot, bus");
        assert_eq!(with("how", json!(1)), "how must be one of foot, bus");
        assert_eq!(with("stops", json!({})), "stops must be a list");
        assert_eq!(with("stops", json!([[37.5]])), "stops[0] must be a JSON object");
        assert_eq!(with("stops", json!([{"lat": 1}, {}])), "stops[1].lat is missing");
        assert_eq!(
            with("stops", json!([{"lat": "x"}])),
            "stops[0].lat must be a number such as 37.56"
        );
        assert_eq!(with("address", json!("here")), "address has a value that is not allowed");
        let more = with("stops", json!([{"lat": 1, "s3cret": 2}]));
        assert_eq!(more, "only these fields are accepted here: lat");
        let long = with("extra", json!({"k".repeat(10_000): 1}));
        assert!(long.chars().count() < 200 && long.ends_with("k must be a string"), "{long}");
    }

    #[test]
    fn a_body_that_is_not_an_object_is_refused() {
        for value in [json!(null), json!("s3cret"), json!(["hana12345", true]), json!(1)] {
            assert_eq!(refusal(value), "the body must be a JSON object");
        }
        let list = read_value::<Vec<u64>>(json!({})).unwrap_err();
        assert_eq!(
            list.text(Language::English),
            "the body is JSON, but not of the form that this call accepts"
        );
    }
}
