//! What a call makes of the registry's response.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use reqwest::{Body, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{ClientError, MAX_RESPONSE_BYTES};

const MAX_MESSAGE_CHARS: usize = 200;

pub(super) async fn decode<T: DeserializeOwned>(response: Response) -> Result<T, ClientError> {
    let body = bounded_body(response).await?;
    serde_json::from_slice(&body).map_err(|e| ClientError::Malformed(e.to_string()))
}

/// The body of a refusal.
#[derive(Default, Deserialize)]
pub(super) struct Refusal {
    pub error: String,
    pub message: String,
}

pub(super) async fn refusal(response: Response) -> Refusal {
    let said: Refusal = match bounded_body(response).await {
        Ok(body) => serde_json::from_slice(&body).unwrap_or_default(),
        Err(_) => Refusal::default(),
    };
    let shown =
        |text: String| text.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect();
    Refusal { error: shown(said.error), message: shown(said.message) }
}

async fn bounded_body(response: Response) -> Result<Bytes, ClientError> {
    match Limited::new(Body::from(response), MAX_RESPONSE_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast_ref() {
            Some(error) => unreachable_because(error),
            None => ClientError::Malformed(format!("more than {MAX_RESPONSE_BYTES} bytes")),
        }),
    }
}

/// The innermost cause ("connection refused") says more than the outermost ("error sending request").
pub(super) fn unreachable_because(error: &reqwest::Error) -> ClientError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    ClientError::Unreachable(cause.to_string())
}
