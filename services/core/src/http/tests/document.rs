//! The OpenAPI part and the key set.

use http::StatusCode;
use serde_json::{Value, json};

use super::refused;
use crate::domain::account::{Email, MemberId, Name};
use crate::domain::password::Password;
use crate::testing::{TestCore, claims};

async fn document(core: &TestCore) -> Value {
    let answer = core.call("GET", "/internal/openapi.json", None, None).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn the_document_is_for_services_and_leaves_internal_calls_out() {
    let core = TestCore::start().await;
    let stranger = core.get_as("recommendation", "/internal/openapi.json").await;
    refused(&stranger, 403, "forbidden", "");
    let document = document(&core).await;
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.keys().all(|path| !path.starts_with("/internal")), "{paths:?}");
}

#[tokio::test]
async fn every_call_of_accounts_and_members_is_described_with_its_statuses() {
    let core = TestCore::start().await;
    let document = document(&core).await;
    for (path, method, statuses) in [
        ("/api/auth/signup", "post", "201 400 413 415 422 503"),
        ("/api/auth/login", "post", "200 400 401 413 415 422 429 503"),
        ("/api/auth/reissue", "post", "200 400 401 413 415 422 503"),
        ("/api/auth/logout", "post", "204 422 503"),
        ("/api/auth/me", "get", "200 401 503"),
        ("/api/auth/delete-account", "post", "204 400 401 413 415 422 429 503"),
        ("/api/auth/update-profile", "post", "200 400 401 413 415 422 429 503"),
        ("/api/auth/update-password", "post", "204 400 401 413 415 422 429 503"),
        ("/.well-known/jwks.json", "get", "200 503"),
        ("/api/users", "get", "200 422 503"),
        ("/api/users/{userId}", "get", "200 404 503"),
    ] {
        let responses = document["paths"][path][method]["responses"].as_object();
        let responses = responses.unwrap_or_else(|| panic!("{method} {path} is not described"));
        let described: Vec<_> = responses.keys().map(String::as_str).collect();
        assert_eq!(described.join(" "), statuses, "{method} {path}");
    }
    let session = json!([{"bearer": []}, {"cookie": []}]);
    assert_eq!(document["paths"]["/api/auth/me"]["get"]["security"], session);
    assert_eq!(document["paths"]["/api/auth/login"]["post"]["security"], Value::Null);
}

#[tokio::test]
async fn the_document_states_the_rules_that_the_parsers_apply() {
    let core = TestCore::start().await;
    let document = document(&core).await;
    let fields = &document["components"]["schemas"]["SignUp"]["properties"];
    for (field, pattern, min, max) in [
        ("id", MemberId::PATTERN, MemberId::MIN_CHARS, MemberId::MAX_CHARS),
        ("password", Password::PATTERN, Password::MIN_CHARS, Password::MAX_CHARS),
        ("name", Name::PATTERN, Name::MIN_CHARS, Name::MAX_CHARS),
        ("email", Email::PATTERN, Email::MIN_CHARS, Email::MAX_CHARS),
    ] {
        let schema = &fields[field];
        assert_eq!(schema["pattern"], pattern, "{field}");
        assert_eq!((&schema["minLength"], &schema["maxLength"]), (&json!(min), &json!(max)));
    }
    let required = &document["components"]["schemas"]["UpdateProfile"]["required"];
    assert_eq!(*required, Value::Null, "every field of a profile may be left out");
}

#[tokio::test]
async fn no_two_calls_have_the_same_operation_id() {
    let core = TestCore::start().await;
    let document = document(&core).await;
    let mut seen = std::collections::BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(seen.insert(id), "{method} {path} is called {id} like another call");
        }
    }
}

#[tokio::test]
async fn every_schema_that_is_referred_to_is_there() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    match (key.as_str(), value) {
                        ("$ref", Value::String(target)) => found.push(target),
                        _ => references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let core = TestCore::start().await;
    let document = document(&core).await;
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for target in found {
        let pointer = target.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{target} is not there");
    }
}

#[tokio::test]
async fn the_key_set_verifies_access_tokens() {
    let core = TestCore::start().await;
    let (answer, _) = core.member("hana12345").await;
    let token = answer.json()["accessToken"].as_str().unwrap().to_owned();
    let keys = core.call("GET", "/.well-known/jwks.json", None, None).await;
    assert_eq!(keys.status, StatusCode::OK);
    assert_eq!(keys.header("cache-control"), "public, max-age=60");
    let header = jsonwebtoken::decode_header(&token).unwrap();
    let set: jsonwebtoken::jwk::JwkSet = serde_json::from_str(&keys.text).unwrap();
    let key = set.find(header.kid.as_deref().unwrap()).expect("the token's key is published");
    let mut expected = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::EdDSA);
    expected.set_audience(&["tourin"]);
    expected.validate_exp = false;
    let decoding = jsonwebtoken::DecodingKey::from_jwk(key).unwrap();
    let read: crate::domain::token::Claims =
        jsonwebtoken::decode(&token, &decoding, &expected).unwrap().claims;
    assert_eq!(read, claims(&token));
    assert!(!keys.text.contains("\"d\""), "no private part");
}
