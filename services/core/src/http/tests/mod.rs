//! Calls of accounts and members, and their refusals.

mod account;
mod bookmarks;
mod content_document;
mod document;
mod guessing;
mod internal;
mod languages;
mod members;
mod reviews;
mod sessions;
mod signals;
mod sliding;
mod spots;
mod text;

use http::StatusCode;
use serde_json::Value;

use crate::testing::Answer;

/// Asserts the contract's error body: the status, the kind, and a part of the message.
#[track_caller]
fn refused(answer: &Answer, status: u16, kind: &str, says: &str) {
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    let body = answer.json();
    assert_eq!(body["error"], kind, "{answer:?}");
    let message = body["message"].as_str().unwrap();
    assert!(message.contains(says), "{message:?} does not say {says:?}");
    let trace = answer.headers["x-request-id"].to_str().unwrap();
    assert_eq!(body["traceId"], trace, "{answer:?}");
    assert_eq!(body.as_object().unwrap().len(), 3, "{answer:?}");
}

#[track_caller]
fn answered(answer: &Answer, status: StatusCode, body: &Value) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(&answer.json(), body, "{answer:?}");
}

#[track_caller]
fn no_content(answer: &Answer) {
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::NO_CONTENT, ""), "{answer:?}");
}
