//! Bodies that are JSON objects.

use axum::extract::{FromRequest, Request};
use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tourin_chassis::http::{ApiError, Json};
use tourin_chassis::text;

/// What is hashed, and so read as it was typed too: see [`crate::app::passwords`].
const AS_TYPED: [&str; 3] = ["password", "oldPassword", "newPassword"];

/// A JSON object as `T`, its texts in Unicode NFC. Not JSON at all is 400; another shape is 422.
///
/// Unlike [`Json`] it refuses an array of the fields' values, which serde takes for a struct, and
/// does not quote a body of another shape: there may be a password in it.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Object<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let Json(object) =
            Json::<Map<String, Value>>::from_request(request, state).await.map_err(|error| {
                match error.status() {
                    StatusCode::UNPROCESSABLE_ENTITY => not_an_object(),
                    _ => error,
                }
            })?;
        read(object).map(Self)
    }
}

/// An object's fields as `T`, their texts in Unicode NFC: the one place where a body's are brought
/// to it, as the extractors do for a path's and a query's.
pub(super) fn read<T: DeserializeOwned>(mut object: Map<String, Value>) -> Result<T, ApiError> {
    for (name, value) in &mut object {
        if !AS_TYPED.contains(&name.as_str()) {
            compose(value);
        }
    }
    // Its words begin with the field's name, unless that is missing.
    serde_path_to_error::deserialize(Value::Object(object))
        .map_err(|error| ApiError::invalid(error.to_string()))
}

fn compose(value: &mut Value) {
    match value {
        Value::String(text) => *text = text::nfc(std::mem::take(text)).into_owned(),
        Value::Array(items) => items.iter_mut().for_each(compose),
        Value::Object(fields) => fields.values_mut().for_each(compose),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The refusal of JSON that is no object.
pub(super) fn not_an_object() -> ApiError {
    ApiError::invalid("the body must be a JSON object")
}
