//! The gateway's own messages, besides those that services have too
//! ([`tourin_chassis::http::messages`]).

tourin_chassis::messages! {
    // Requests that HTTP does not allow.
    pub(crate) fn unreadable_request() {
        en: "this is not an HTTP/1.1 request that can be read: expected a line such as \
             `GET /path HTTP/1.1`, then lines of the form `Name: value`, then an empty line, all in \
             plain text; one Host, at most one Content-Length in digits, and no Transfer-Encoding \
             but chunked",
        ko: "HTTP/1.1 요청으로 읽을 수 없습니다. `GET /path HTTP/1.1`과 같은 첫 줄, `Name: value` 형식의 \
             헤더, 빈 줄을 차례로 보내 주십시오.",
    }
    pub(crate) fn unreadable_body() {
        en: "the request's body is not valid HTTP: expected as many bytes as Content-Length says, \
             or chunks that each begin with their length in hexadecimal digits",
        ko: "요청 본문이 HTTP 형식에 맞지 않습니다. Content-Length에 적힌 길이만큼 보내거나, 16진수 길이로 \
             시작하는 청크로 보내야 합니다.",
    }
    pub(crate) fn tunnels_are_not_served() {
        en: "this is no proxy: CONNECT is not served, for no path",
        ko: "이 서버는 프록시가 아니므로 CONNECT 메서드를 지원하지 않습니다.",
    }
    pub(crate) fn invalid_transfer_encoding() {
        en: "Transfer-Encoding must end with chunked, and name it once",
        ko: "Transfer-Encoding 헤더는 chunked로 끝나야 하며 chunked를 한 번만 쓸 수 있습니다.",
    }
    pub(crate) fn unknown_transfer_encoding() {
        en: "the only Transfer-Encoding taken is chunked: send the body as it is",
        ko: "Transfer-Encoding 헤더에는 chunked만 쓸 수 있습니다. 본문을 압축하지 말고 보내 주십시오.",
    }
    pub(crate) fn length_and_transfer_encoding() {
        en: "Content-Length and Transfer-Encoding exclude each other",
        ko: "Content-Length와 Transfer-Encoding 헤더는 함께 쓸 수 없습니다.",
    }
    pub(crate) fn invalid_length() {
        en: "Content-Length must be one whole number, once",
        ko: "Content-Length 헤더는 정수 하나를 한 번만 보내야 합니다.",
    }
    pub(crate) fn missing_host() {
        en: "Host is missing",
        ko: "Host 헤더가 없습니다.",
    }
    pub(crate) fn several_hosts() {
        en: "Host is there more than once",
        ko: "Host 헤더는 한 번만 보내야 합니다.",
    }
    pub(crate) fn unknown_scheme() {
        en: "the target's scheme must be http or https",
        ko: "요청 주소의 스킴은 http 또는 https여야 합니다.",
    }
    pub(crate) fn unknown_version() {
        en: "HTTP/1.1 is spoken here, and HTTP/1.0",
        ko: "HTTP/1.1과 HTTP/1.0만 지원합니다.",
    }
    pub(crate) fn invalid_authority(what: &str) {
        en: "{what} must be a host, or host:port",
        ko: "{what}: host 또는 host:port 형식으로 써야 합니다.",
    }
    pub(crate) fn host_not_ascii() {
        en: "a host's name is ASCII: an international one begins with xn--",
        ko: "국제화 도메인 이름은 xn--... 형식의 ASCII로 써 주십시오.",
    }
    pub(crate) fn host_with_user() {
        en: "a host has no user's name before it",
        ko: "호스트 앞에는 사용자 이름을 쓸 수 없습니다.",
    }
    pub(crate) fn ipv6_without_end() {
        en: "an IPv6 address ends with ]",
        ko: "IPv6 주소는 ]로 끝나야 합니다.",
    }
    pub(crate) fn ipv6_with_more() {
        en: "only a port follows an IPv6 address",
        ko: "IPv6 주소 뒤에는 포트만 쓸 수 있습니다.",
    }
    pub(crate) fn port_too_large() {
        en: "a port is at most 65535",
        ko: "포트는 65535를 넘을 수 없습니다.",
    }
    pub(crate) fn port_not_digits() {
        en: "a port is digits",
        ko: "포트는 숫자로만 써야 합니다.",
    }
    pub(crate) fn host_empty() {
        en: "the host is missing",
        ko: "호스트가 비어 있습니다.",
    }
    pub(crate) fn ipv6_invalid() {
        en: "what stands in brackets is an IPv6 address",
        ko: "대괄호 안에는 IPv6 주소를 써야 합니다.",
    }
    pub(crate) fn percent_without_digits() {
        en: "two hexadecimal digits follow a %",
        ko: "% 뒤에는 16진수 두 자리를 써야 합니다.",
    }
    pub(crate) fn host_with_stray_character() {
        en: "there is a character in it that no host has",
        ko: "호스트에 쓸 수 없는 문자가 있습니다.",
    }
    pub(crate) fn invalid_path() {
        en: "the request's path must begin with /, and have % only before two hexadecimal digits and \
             no control characters",
        ko: "요청 경로는 /로 시작해야 합니다. % 뒤에는 16진수 두 자리가 와야 하며 제어 문자는 쓸 수 없습니다.",
    }
    pub(crate) fn invalid_query() {
        en: "the request's query has characters that must be percent-encoded",
        ko: "요청 쿼리에 퍼센트 인코딩해야 하는 문자가 있습니다.",
    }

    // Limits.
    pub(crate) fn request_too_slow() {
        en: "the request took too long to arrive",
        ko: "요청이 제때 도착하지 않았습니다.",
    }
    pub(crate) fn target_too_long(limit_bytes: usize) {
        en: "the request's target is over the limit of {limit_bytes} bytes",
        ko: "요청 주소는 {limit_bytes}바이트를 넘을 수 없습니다.",
    }
    pub(crate) fn head_too_large(limit_bytes: usize) {
        en: "the request's header is over the limit of {limit_bytes} bytes",
        ko: "요청 헤더는 {limit_bytes}바이트를 넘을 수 없습니다.",
    }
    pub(crate) fn too_many_fields(limit: usize) {
        en: "the request's header is over the limit of {limit} fields",
        ko: "요청 헤더는 {limit}개를 넘을 수 없습니다.",
    }
    pub(crate) fn too_many_calls() {
        en: "too many calls of this kind from your address; see Retry-After",
        ko: "같은 주소에서 온 요청이 너무 많습니다. Retry-After 헤더의 시간이 지난 뒤 다시 시도해 주십시오.",
    }
    pub(crate) fn too_many_calls_of_yours() {
        en: "too many calls of this kind with your account; see Retry-After",
        ko: "같은 계정으로 보낸 요청이 너무 많습니다. Retry-After 헤더의 시간이 지난 뒤 다시 시도해 주십시오.",
    }
    pub(crate) fn too_many_calls_of_all() {
        en: "too many calls of this kind just now; see Retry-After",
        ko: "지금은 이 요청이 너무 많습니다. Retry-After 헤더의 시간이 지난 뒤 다시 시도해 주십시오.",
    }
    pub(crate) fn too_many_of_your_requests_at_once() {
        en: "too many requests from your network are under way: wait for some to end",
        ko: "같은 네트워크에서 처리 중인 요청이 너무 많습니다. 앞의 요청이 끝난 뒤 다시 시도해 주십시오.",
    }
    pub(crate) fn body_not_expected(method: &str) {
        en: "a {method} takes no body: send it without Content-Length and Transfer-Encoding",
        ko: "{method} 요청에는 본문을 보낼 수 없습니다. Content-Length와 Transfer-Encoding 없이 보내 주십시오.",
    }
    pub(crate) fn too_many_requests_at_once() {
        en: "the gateway is at its limit of concurrent requests; try again",
        ko: "지금은 요청이 너무 많습니다. 잠시 후 다시 시도해 주십시오.",
    }

    // Who is calling.
    pub(crate) fn role_needed(role: &str) {
        en: "this call needs the role \"{role}\"",
        ko: "이 요청에는 \"{role}\" 권한이 필요합니다.",
    }
    pub(crate) fn invalid_token() {
        en: "the access token is not valid: log in again",
        ko: "접근 토큰이 올바르지 않습니다. 다시 로그인해 주십시오.",
    }
    pub(crate) fn several_bearer_tokens() {
        en: "Authorization with a bearer token is there more than once: send one token",
        ko: "Authorization 헤더의 접근 토큰은 하나만 보내야 합니다.",
    }
    pub(crate) fn expired_token() {
        en: "the access token has expired: have it reissued",
        ko: "접근 토큰이 만료되었습니다. 토큰을 갱신해 주십시오.",
    }
    pub(crate) fn session_has_ended() {
        en: "this session has ended: log in again",
        ko: "세션이 종료되었습니다. 다시 로그인해 주십시오.",
    }
    pub(crate) fn tokens_cannot_be_checked() {
        en: "tokens cannot be checked just now; try again",
        ko: "지금은 로그인 상태를 확인할 수 없습니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(crate) fn sessions_are_loading() {
        en: "the gateway is still loading the ended sessions; try again",
        ko: "로그인 상태를 확인할 준비를 하는 중입니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(crate) fn sessions_cannot_be_checked() {
        en: "sessions cannot be checked just now; try again",
        ko: "지금은 세션을 확인할 수 없습니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(crate) fn session_cannot_be_renewed() {
        en: "the session cannot be renewed just now; try again",
        ko: "지금은 로그인 상태를 연장할 수 없습니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(crate) fn another_sites_page() {
        en: "cookies do not authorise calls from another site's pages",
        ko: "다른 사이트의 페이지에서는 쿠키로 이 요청을 보낼 수 없습니다.",
    }
    pub(crate) fn origin_not_allowed() {
        en: "this origin is not allowed to call from a browser",
        ko: "브라우저에서 이 출처의 요청은 허용되지 않습니다.",
    }

    // Versions.
    pub(crate) fn invalid_version() {
        en: "X-Tourin-Version must be one version, in letters, digits, dots, hyphens and underscores",
        ko: "X-Tourin-Version 헤더에는 영문자, 숫자, 점, 하이픈, 밑줄로 된 버전 하나만 쓸 수 있습니다.",
    }

    // Streams.
    pub(crate) fn websocket_needed() {
        en: "this path is for WebSockets: expected a GET request in HTTP/1.1 with `Connection: Upgrade` and \
             `Upgrade: websocket`",
        ko: "WebSocket 전용 경로입니다. HTTP/1.1 GET 요청에 `Connection: Upgrade`와 `Upgrade: websocket` 헤더를 \
             넣어 주십시오.",
    }
    pub(crate) fn websocket_version() {
        en: "the only version of WebSockets spoken here is 13",
        ko: "WebSocket 버전은 13만 지원합니다.",
    }
    pub(crate) fn websocket_key() {
        en: "Sec-WebSocket-Key must be 16 bytes in base64, once",
        ko: "Sec-WebSocket-Key 헤더는 base64로 인코딩한 16바이트 값을 한 번만 보내야 합니다.",
    }
    pub(crate) fn too_many_streams() {
        en: "too many streams are open; try again",
        ko: "지금은 열린 연결이 너무 많습니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(crate) fn too_many_of_your_streams() {
        en: "too many of your streams are open: close one first",
        ko: "열어 둔 연결이 너무 많습니다. 기존 연결을 닫고 다시 시도해 주십시오.",
    }

    // Services that do not answer.
    pub(crate) fn no_instance_is_up(service: &str) {
        en: "no instance of {service} is up; try again",
        ko: "지금은 {service} 서비스를 이용할 수 없습니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(crate) fn service_is_failing(service: &str) {
        en: "most calls of {service} have failed or taken too long just now, so it is spared for a moment; try again",
        ko: "지금은 {service} 서비스에 오류나 지연이 많습니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(crate) fn service_at_its_limit(service: &str) {
        en: "{service} has as many requests as it can serve; see Retry-After",
        ko: "지금은 {service} 서비스에 요청이 너무 많습니다. Retry-After 헤더의 시간이 지난 뒤 다시 시도해 주십시오.",
    }
    pub(crate) fn service_failed() {
        en: "the service failed; try again",
        ko: "서비스에서 오류가 발생했습니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(crate) fn service_unreachable() {
        en: "no instance of the service can be reached; try again",
        ko: "지금은 서비스에 연결할 수 없습니다. 잠시 후 다시 시도해 주십시오.",
    }
    pub(crate) fn service_broke_off() {
        en: "the service broke off its answer; whether the call took effect is unknown",
        ko: "서비스의 응답이 중간에 끊겼습니다. 요청이 처리되었는지는 알 수 없습니다.",
    }
    pub(crate) fn service_too_slow() {
        en: "the service did not answer in time; whether the call took effect is unknown",
        ko: "서비스가 제때 응답하지 않았습니다. 요청이 처리되었는지는 알 수 없습니다.",
    }
    pub(crate) fn no_description_yet() {
        en: "no service has described its calls yet; try again",
        ko: "아직 API 설명이 준비되지 않았습니다. 잠시 후 다시 시도해 주십시오.",
    }
}
