//! Bodies that are JSON objects.

use axum::extract::{FromRequest, Request};
use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tourin_chassis::http::{ApiError, Json};

/// A JSON object as `T`. Not JSON at all is 400; another shape is 422.
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

/// An object's fields as `T`.
pub(super) fn read<T: DeserializeOwned>(object: Map<String, Value>) -> Result<T, ApiError> {
    // Its words begin with the field's name, unless that is missing.
    serde_path_to_error::deserialize(Value::Object(object))
        .map_err(|error| ApiError::invalid(error.to_string()))
}

/// The refusal of JSON that is no object.
pub(super) fn not_an_object() -> ApiError {
    ApiError::invalid("the body must be a JSON object")
}
