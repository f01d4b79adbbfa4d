//! Outcomes of server replies.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use mongodb::bson::{Document, deserialize_from_document, doc};

use super::{PortError, Reply};

fn outcome(reply: Document) -> Result<(u64, Vec<usize>), PortError> {
    deserialize_from_document::<Reply>(reply).unwrap().outcome()
}

fn refusal(code: i32) -> Document {
    doc! { "index": 1, "code": code, "errmsg": "no" }
}

#[test]
fn an_existing_document_is_not_a_failure() {
    let reply = doc! { "ok": 1.0, "n": 1, "writeErrors": [refusal(11_000)] };
    assert_eq!(outcome(reply).unwrap(), (1, vec![1]));
}

#[test]
fn a_write_without_confirmation_by_a_majority_is_an_outage() {
    let reply = doc! {
        "ok": 1.0,
        "n": 1,
        "writeConcernError": { "code": 64, "codeName": "WriteConcernTimeout", "errmsg": "no" },
    };
    assert!(matches!(outcome(reply), Err(PortError::Unavailable(_))));
}

#[test]
fn a_write_refused_by_an_outage_may_be_retried() {
    for code in [91, 189, 10_107, 11_600, 11_602] {
        let reply = doc! { "ok": 1.0, "n": 0, "writeErrors": [refusal(code)] };
        assert!(matches!(outcome(reply), Err(PortError::Unavailable(_))), "{code}");
    }
    let reply = doc! { "ok": 1.0, "n": 0, "writeErrors": [refusal(121)] };
    assert!(matches!(outcome(reply), Err(PortError::Failed(_))));
}
