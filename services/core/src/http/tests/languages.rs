//! Refusals in the language that the request prefers.

use axum::body::Body;
use http::{Request, StatusCode};
use serde_json::{Value, json};

use crate::testing::{Answer, TestCore};

async fn log_in(core: &TestCore, languages: &str, body: &Value) -> Answer {
    let request = Request::post("/api/auth/login")
        .header("content-type", "application/json")
        .header("accept-language", languages)
        .body(Body::from(body.to_string()))
        .unwrap();
    core.send(request).await
}

async fn get(core: &TestCore, languages: &str, path: &str) -> Answer {
    let request = Request::get(path).header("accept-language", languages);
    core.send(request.body(Body::empty()).unwrap()).await
}

#[track_caller]
fn assert_message(answer: &Answer, language: &str, status: u16, kind: &str, message: &str) {
    let body = answer.json();
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    assert_eq!((&body["error"], &body["message"]), (&json!(kind), &json!(message)));
    assert_eq!(answer.header("content-language"), language, "{answer:?}");
    assert_eq!(answer.header("vary"), "accept-language", "{answer:?}");
}

#[tokio::test]
async fn a_korean_reader_reads_korean() {
    let core = TestCore::start().await;
    let wrong = json!({"id": "hana12345", "password": "no"});
    let answer = log_in(&core, "ko-KR,ko;q=0.9,en;q=0.8", &wrong).await;
    assert_message(&answer, "ko", 401, "unauthenticated", "아이디 또는 비밀번호가 맞지 않습니다.");
    assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"tourin\"");
    let answer = log_in(&core, "ko", &json!({"id": "hana12345"})).await;
    assert_message(&answer, "ko", 422, "invalid", "password 값이 없습니다.");
    let answer = get(&core, "ko", "/api/tour-spots?pageNo=0").await;
    let message = "pageNo 값은 1부터 9223372036854775807까지의 정수여야 합니다.";
    assert_message(&answer, "ko", 422, "invalid", message);
    let answer = get(&core, "ko", "/api/tour-spots/7").await;
    assert_message(&answer, "ko", 404, "not_found", "해당 관광지를 찾을 수 없습니다.");
}

#[tokio::test]
async fn everybody_else_reads_english() {
    let core = TestCore::start().await;
    for languages in ["", "fr-FR", "*", "en, ko", "ko;q=0", "ko;q=0.1, en;q=0.2"] {
        let answer = get(&core, languages, "/api/tour-spots/7").await;
        assert_message(&answer, "en", 404, "not_found", "no such tour spot");
    }
}

#[tokio::test]
async fn several_reasons_are_one_message_in_either_language() {
    let core = TestCore::start().await;
    let nothing = json!({"id": "", "password": "s3cret", "name": "", "email": ""});
    for (languages, reasons) in [
        ("ko", ["아이디(id)는", "비밀번호(password)는", "이름(name)은", "이메일(email)은"]),
        ("en", ["`id` must", "`password` must", "`name` must", "`email` must"]),
    ] {
        let request = Request::post("/api/auth/signup")
            .header("content-type", "application/json")
            .header("accept-language", languages)
            .body(Body::from(nothing.to_string()))
            .unwrap();
        let answer = core.send(request).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        let body = answer.json();
        let message = body["message"].as_str().unwrap();
        assert!(reasons.iter().all(|reason| message.contains(reason)), "{message}");
        assert!(!message.contains("s3cret"), "{message}");
    }
}
