//! Bodies that are JSON objects.

use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tourin_chassis::http::{ApiError, Json, read_value};
use tourin_chassis::text;

/// Passwords, which are not normalised here: older hashes are of the text as typed, see
/// [`crate::app::passwords`].
const AS_TYPED: [&str; 3] = ["password", "oldPassword", "newPassword"];

/// Extracts a JSON object as `T`, its texts in Unicode NFC. Rejects like [`Json`].
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Object<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let Json(object) = Json::<Map<String, Value>>::from_request(request, state).await?;
        read(object).map(Self)
    }
}

/// An object's fields as `T`, their texts in Unicode NFC. Only this function normalises bodies; the
/// extractors normalise paths and queries.
pub(super) fn read<T: DeserializeOwned>(mut object: Map<String, Value>) -> Result<T, ApiError> {
    for (name, value) in &mut object {
        if !AS_TYPED.contains(&name.as_str()) {
            compose(value);
        }
    }
    read_value(Value::Object(object)).map_err(ApiError::invalid)
}

fn compose(value: &mut Value) {
    match value {
        Value::String(text) => *text = text::nfc(std::mem::take(text)).into_owned(),
        Value::Array(items) => items.iter_mut().for_each(compose),
        Value::Object(fields) => fields.values_mut().for_each(compose),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
