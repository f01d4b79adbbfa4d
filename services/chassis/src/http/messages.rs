//! The messages of every service and of the gateway.

crate::messages! {
    pub fn no_such_path() {
        en: "no such path",
        ko: "요청하신 경로를 찾을 수 없습니다.",
    }
    pub fn method_not_allowed() {
        en: "the path is known; see Allow for its methods",
        ko: "이 경로에서 사용할 수 없는 메서드입니다. 사용할 수 있는 메서드는 Allow 헤더에 있습니다.",
    }
    pub fn session_needed() {
        en: "this call needs a session: log in first",
        ko: "로그인이 필요합니다. 먼저 로그인해 주십시오.",
    }
    pub fn internal() {
        en: "something went wrong on our side; the fault is logged under this request's id",
        ko: "서버에 문제가 생겼습니다. 오류는 이 요청의 ID로 기록되었습니다.",
    }
    pub fn body_too_large(limit_bytes: u64) {
        en: "the request's body is over the limit of {limit_bytes} bytes",
        ko: "요청 본문은 {limit_bytes}바이트를 넘을 수 없습니다.",
    }
    pub fn no_such_thing() {
        en: "there is no such item",
        ko: "찾으시는 항목이 없습니다.",
    }
    pub fn busy() {
        en: "this instance is at its limit of concurrent requests; try again",
        ko: "지금은 요청이 너무 많습니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(super) fn took_too_long() {
        en: "the request took longer than this service allows; try again",
        ko: "요청을 처리하는 데 시간이 너무 오래 걸렸습니다. 다시 시도해 주십시오.",
    }
    pub(super) fn body_too_slow() {
        en: "the request's body took too long to arrive",
        ko: "요청 본문이 제때 도착하지 않았습니다.",
    }
    pub(super) fn body_broke_off() {
        en: "the body ended too early, or does not match its headers",
        ko: "요청 본문이 중간에 끊겼거나 헤더의 내용과 다릅니다.",
    }
    pub(super) fn body_larger_than_the_call_accepts() {
        en: "the body is larger than this call accepts",
        ko: "요청 본문이 너무 큽니다.",
    }
    pub(super) fn body_empty() {
        en: "the body is empty: expected JSON",
        ko: "요청 본문이 비어 있습니다. JSON을 보내 주십시오.",
    }
    pub(super) fn body_not_json(line: usize, column: usize) {
        en: "the body is not JSON: look at line {line}, column {column}",
        ko: "요청 본문이 올바른 JSON이 아닙니다. {line}행 {column}열을 확인해 주십시오.",
    }
    pub(super) fn content_type_not_json() {
        en: "the body must be JSON, sent with the header Content-Type: application/json",
        ko: "요청 본문은 JSON이어야 하며 Content-Type: application/json 헤더와 함께 보내야 합니다.",
    }
    pub(super) fn content_is_encoded() {
        en: "the body must be sent as it is, without a Content-Encoding",
        ko: "요청 본문은 압축하지 말고 Content-Encoding 헤더 없이 보내야 합니다.",
    }
    pub(super) fn body_not_an_object() {
        en: "the body must be a JSON object",
        ko: "요청 본문은 JSON 객체여야 합니다.",
    }
    pub(super) fn body_not_allowed() {
        en: "the body is JSON, but not of the form that this call accepts",
        ko: "요청 본문의 JSON 형식이 이 요청에 맞지 않습니다.",
    }
    pub(super) fn missing(name: &str) {
        en: "{name} is missing",
        ko: "{name} 값이 없습니다.",
    }
    pub(super) fn given_more_than_once(name: &str) {
        en: "{name} is given more than once",
        ko: "{name} 값은 한 번만 보내야 합니다.",
    }
    pub(super) fn not_a_whole_number(name: &str) {
        en: "{name} must be a whole number from 0 on",
        ko: "{name} 값은 0 이상의 정수여야 합니다.",
    }
    pub(super) fn too_large_a_number(name: &str) {
        en: "{name} is too large a number",
        ko: "{name} 값이 너무 큽니다.",
    }
    pub(super) fn not_a_number(name: &str) {
        en: "{name} must be a number such as 37.56",
        ko: "{name} 값은 37.56처럼 숫자여야 합니다.",
    }
    pub(super) fn not_true_or_false(name: &str) {
        en: "{name} must be true or false",
        ko: "{name} 값은 true 또는 false여야 합니다.",
    }
    pub(super) fn not_a_string(name: &str) {
        en: "{name} must be a string",
        ko: "{name} 값은 문자열이어야 합니다.",
    }
    pub(super) fn not_a_list(name: &str) {
        en: "{name} must be a list",
        ko: "{name} 값은 배열이어야 합니다.",
    }
    pub(super) fn not_an_object(name: &str) {
        en: "{name} must be a JSON object",
        ko: "{name} 값은 JSON 객체여야 합니다.",
    }
    pub(super) fn not_one_of(name: &str, known: &str) {
        en: "{name} must be one of {known}",
        ko: "{name} 값은 다음 중 하나여야 합니다: {known}",
    }
    pub(super) fn unknown_field(known: &str) {
        en: "only these fields are accepted here: {known}",
        ko: "다음 항목만 보낼 수 있습니다: {known}",
    }
    pub(super) fn not_allowed(name: &str) {
        en: "{name} has a value that is not allowed",
        ko: "{name} 값은 여기에 쓸 수 없습니다.",
    }
}
