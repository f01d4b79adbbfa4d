//! The gateway's own refusals, in the language that the request prefers.

use crate::harness::{Mesh, Response, raw};

#[track_caller]
fn says(answer: &Response, language: &str, message: &str) {
    assert_eq!(answer.body["message"], message, "{answer:?}");
    assert_eq!(answer.header("content-language"), Some(language));
    assert!(answer.varies_by("accept-language"), "{answer:?}");
}

#[tokio::test]
async fn refusals_are_in_the_readers_language() {
    let (mesh, core, gateway) = Mesh::complete().await;
    for (method, path, status, error, korean, english) in [
        (
            "GET",
            "/api/auth/me",
            401,
            "unauthenticated",
            "로그인이 필요합니다. 먼저 로그인해 주십시오.",
            "this call needs a session: log in first",
        ),
        ("GET", "/nowhere", 404, "not_found", "요청하신 경로를 찾을 수 없습니다.", "no such path"),
        (
            "PATCH",
            "/api/users",
            405,
            "method_not_allowed",
            "이 경로에서 사용할 수 없는 메서드입니다. 사용할 수 있는 메서드는 Allow 헤더에 있습니다.",
            "the path is known; see Allow for its methods",
        ),
    ] {
        for (languages, language, message) in [
            ("ko-KR,ko;q=0.9,en-US;q=0.8", "ko", korean),
            ("en-US,en;q=0.9,ko;q=0.8", "en", english),
            ("fr", "en", english),
            ("ko;q=0", "en", english),
        ] {
            let answer = gateway.call(method, path, &[("accept-language", languages)]).await;
            answer.assert_refused(status, error);
            says(&answer, language, message);
        }
    }
    assert_eq!(core.calls(), 0);
    drop((mesh, core));
}

#[tokio::test]
async fn a_list_over_several_lines_is_one_list() {
    let (_mesh, _core, gateway) = Mesh::complete().await;
    let ask = "GET /nowhere HTTP/1.1\r\nHost: h\r\nAccept-Language: en;q=0.5\r\n\
               Accept-Language: \u{fffd}, ko\r\nConnection: close\r\n\r\n";
    let answer = raw(gateway.addr, ask).await;
    answer.assert_refused(404, "not_found");
    assert_eq!(answer.body["message"], "요청하신 경로를 찾을 수 없습니다.");
}

#[tokio::test]
async fn malformed_requests_are_answered_in_the_default_language() {
    let (_mesh, _core, gateway) = Mesh::complete().await;
    let answer = raw(gateway.addr, "what?\r\nAccept-Language: ko\r\n\r\n").await;
    answer.assert_refused(400, "malformed");
    assert!(answer.head.to_lowercase().contains("content-language: en"), "{answer:?}");
}

#[tokio::test]
async fn services_are_asked_in_the_clients_language() {
    let (_mesh, _core, gateway) = Mesh::complete().await;
    let answer = gateway.call("GET", "/api/users", &[("accept-language", "ko-KR,ko;q=0.9")]).await;
    assert_eq!(answer.asked()["headers"]["accept-language"], "ko-KR,ko;q=0.9");
    assert_eq!(answer.header("content-language"), None);
}
