//! Which headers of requests and responses pass the gateway.

use tourin_gateway::client_address::ForwardingHeader;

use crate::harness::{Mesh, raw};

#[tokio::test]
async fn an_identity_header_cannot_be_forged() {
    let (_mesh, _core, gateway) = Mesh::complete().await;
    let answer = gateway
        .call(
            "GET",
            "/api/users",
            &[
                ("x-tourin-identity", "forged"),
                ("x-user-id", "admin"),
                ("x-forwarded-user", "admin"),
                ("x-forwarded-for", "10.0.0.1"),
                ("forwarded", "for=10.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("x-http-method-override", "DELETE"),
                ("connection", "x-secret-hop"),
                ("x-secret-hop", "1"),
                ("accept-language", "ko"),
            ],
        )
        .await;
    let asked = answer.asked();
    assert_eq!(asked["subject"]["kind"], "visitor");
    let headers = asked["headers"].as_object().unwrap();
    for gone in ["x-user-id", "x-forwarded-user", "x-http-method-override", "x-secret-hop"] {
        assert!(!headers.contains_key(gone), "{gone}: {headers:?}");
    }
    assert_ne!(headers["x-tourin-identity"], "forged");
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-forwarded-host"], gateway.addr.to_string());
    assert_eq!(headers["forwarded"], format!("for=127.0.0.1;proto=http;host=\"{}\"", gateway.addr));
    assert_eq!(headers["accept-language"], "ko");

    for inner in ["server", "x-tourin-internal"] {
        assert!(answer.header(inner).is_none(), "{inner}");
    }
    assert_eq!(answer.header("x-request-id").unwrap(), headers["x-request-id"].as_str().unwrap());
    let named = gateway.call("GET", "/api/users", &[("x-request-id", "mine-1")]).await;
    assert_eq!(named.header("x-request-id"), Some("mine-1"));
    assert_eq!(named.asked()["headers"]["x-request-id"], "mine-1");
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh
        .gateway(|settings| settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()])
        .await;
    let said = [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-proto", "https")];
    let answer = gateway.call("GET", "/api/users", &said).await;
    assert_eq!(answer.asked()["headers"]["x-forwarded-for"], "203.0.113.9, 127.0.0.1");
    assert_eq!(answer.asked()["headers"]["x-forwarded-proto"], "https");
    // A client's own `Forwarded`, which the proxy passed on, changes nothing.
    let forwarded = "for=6.6.6.6, for=203.0.113.9;proto=https;host=tourin.example";
    let own = [("forwarded", forwarded), ("x-forwarded-for", "198.51.100.7")];
    let answer = gateway.call("GET", "/api/users", &own).await;
    assert_eq!(answer.asked()["headers"]["x-forwarded-for"], "198.51.100.7, 127.0.0.1");
    assert_eq!(answer.asked()["headers"]["x-forwarded-proto"], "http");

    let gateway = mesh
        .gateway(|settings| {
            settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
            settings.forwarding_header = ForwardingHeader::Forwarded;
        })
        .await;
    let said = [("forwarded", forwarded), ("x-forwarded-for", "6.6.6.6")];
    let answer = gateway.call("GET", "/api/users", &said).await;
    assert_eq!(answer.asked()["headers"]["x-forwarded-for"], "203.0.113.9, 127.0.0.1");
    assert_eq!(answer.asked()["headers"]["x-forwarded-proto"], "https");
    assert_eq!(answer.asked()["headers"]["x-forwarded-host"], "tourin.example");
}

#[tokio::test]
async fn access_is_decided_by_the_path_that_the_service_reads() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let ask =
        |target: &str| format!("GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    for target in [
        "/api/users/../../internal/revocations",
        "/api/%2e%2e/internal/revocations",
        "/api/users/..%2f..%2finternal/revocations",
        "/api/users/..%5c..%5cinternal",
        "//internal/revocations",
        "/api//auth/me",
        "/api/./auth/me",
        "/internal/revocations",
        "/%69nternal/revocations",
        "/INTERNAL/revocations",
        "http://h/internal/revocations",
        "/internal/../internal/revocations",
    ] {
        raw(gateway.addr, ask(target)).await.assert_refused(404, "not_found");
    }
    for target in ["/api/users/%zz", "/api/users/%", "*"] {
        raw(gateway.addr, ask(target)).await.assert_refused(400, "malformed");
    }
    // Other spellings of a path have the access rules of that path.
    for target in ["/api/auth/%6De", "http://h/api/auth/me"] {
        raw(gateway.addr, ask(target)).await.assert_refused(401, "unauthenticated");
    }
    assert_eq!(core.calls(), 0);
    let answer = raw(gateway.addr, ask("/api/%75sers/%ec%84%9c?query=%20a")).await;
    assert_eq!(answer.body["path"], "/api/users/%EC%84%9C");
    assert_eq!(answer.body["query"], "query=%20a");
}

#[tokio::test]
async fn requests_with_two_possible_ends_are_refused() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let ask = |fields: &str, body: &str| {
        format!(
            "POST /api/auth/login HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{fields}\r\n{body}"
        )
    };
    for (fields, body) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        ("Content-Length: 2\r\nContent-Length: 2\r\n", "{}"),
        ("Content-Length: 2\r\nContent-Length: 3\r\n", "{}"),
        ("Content-Length: +2\r\n", "{}"),
        ("Content-Length: 2, 2\r\n", "{}"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"),
        ("Host: other\r\n", ""),
        ("Connection: x-forwarded-for\r\nContent-Length: 0\r\n", ""),
    ] {
        raw(gateway.addr, ask(fields, body)).await.assert_refused(400, "malformed");
    }
    // The framing is unambiguous, but gzip is not supported.
    let zipped = ask("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n");
    raw(gateway.addr, zipped).await.assert_refused(501, "unsupported");
    raw(gateway.addr, "GET /api/users HTTP/1.1\r\nConnection: close\r\n\r\n")
        .await
        .assert_refused(400, "malformed");
    raw(gateway.addr, "what?\r\n\r\n").await.assert_refused(400, "malformed");
    raw(gateway.addr, "GET /api/users HTTP/1.1\r\nHost h\r\n\r\n")
        .await
        .assert_refused(400, "malformed");
    let connect = raw(gateway.addr, "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n").await;
    connect.assert_refused(405, "method_not_allowed");
    let allow = connect.head.lines().find(|line| line.to_lowercase().starts_with("allow: "));
    assert!(allow.is_some_and(|line| line.contains("GET")), "{connect:?}");
    assert_eq!(core.calls(), 0);

    let chunked = ask("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert_eq!(raw(gateway.addr, chunked).await.body["body"], 5);
}

#[tokio::test]
async fn nothing_switches_protocols() {
    let (_mesh, _core, gateway) = Mesh::complete().await;
    let ask = "GET /api/users HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n";
    let answer = raw(gateway.addr, ask).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body["headers"].get("upgrade").is_none());
}

#[tokio::test]
async fn one_invalid_element_of_a_list_affects_no_other() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh
        .gateway(|settings| settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()])
        .await;
    let token = core.issuer.token("member01", "s1");
    let ask = |fields: &str| {
        format!("GET /api/auth/me HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n")
    };
    for fields in [
        format!("Cookie: ad=광고; access_token={token}; theme=dark\r\n"),
        format!("Cookie: ad=광고\r\nCookie: access_token={token}\r\n"),
        // Of two with one name a browser sends the one with the longer path first.
        format!("Cookie: access_token=stale; access_token={token}\r\n"),
        format!("Cookie: access_token=\u{e9}; access_token=\"{token}\"\r\n"),
        format!("Authorization: Basic \u{e9}\r\nAuthorization: Bearer {token}\r\n"),
    ] {
        let answer = raw(gateway.addr, ask(&fields)).await;
        assert_eq!(answer.status, 200, "{fields}: {answer:?}");
        assert_eq!(answer.body["subject"]["id"], "member01", "{fields}");
        let cookies = answer.body["headers"].get("cookie").map(ToString::to_string);
        assert!(!cookies.unwrap_or_default().contains(&token), "{fields}");
    }
    // The address that the proxy appended counts, whatever the client sent.
    for fields in [
        "X-Forwarded-For: \u{e9}\", 203.0.113.9\r\n",
        "X-Forwarded-For: what?\r\nX-Forwarded-For: 203.0.113.9\r\n",
    ] {
        let request = ask(fields).replace("/api/auth/me", "/api/users");
        let answer = raw(gateway.addr, request).await;
        assert_eq!(answer.body["headers"]["x-forwarded-for"], "203.0.113.9, 127.0.0.1", "{fields}");
    }
    let by_forwarded = mesh
        .gateway(|settings| {
            settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
            settings.forwarding_header = ForwardingHeader::Forwarded;
        })
        .await;
    let fields = "Forwarded: for=\u{e9}, for=203.0.113.9;proto=https\r\n";
    let request = ask(fields).replace("/api/auth/me", "/api/users");
    let answer = raw(by_forwarded.addr, request).await;
    assert_eq!(answer.body["headers"]["x-forwarded-for"], "203.0.113.9, 127.0.0.1", "{answer:?}");
    let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    let states = "tracestate: a=1,\u{e9}=2\r\ntracestate: bad one,b=3\r\n";
    let request = ask(&format!("{trace}{states}")).replace("/api/auth/me", "/api/users");
    let answer = raw(gateway.addr, request).await;
    assert_eq!(answer.body["headers"]["tracestate"], "a=1,b=3", "{answer:?}");
}

#[tokio::test]
async fn personal_answers_are_for_no_cache_and_types_are_not_guessed() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let token = core.issuer.token("member01", "s1");
    let personal = Some("private, no-store");
    for (token, method, path, cache_control) in [
        (Some(&token), "GET", "/api/auth/me", personal),
        (Some(&token), "GET", "/api/recommendations/trend", personal),
        (Some(&token), "GET", "/api/tour-spots", personal),
        (None, "POST", "/api/auth/login", personal),
        (None, "POST", "/api/auth/logout", personal),
        (None, "GET", "/api/tour-spots", None),
        (None, "GET", "/api/users", None),
        (None, "GET", "/api/auth/me", Some("no-store")),
        (None, "GET", "/nowhere", Some("no-store")),
        (None, "GET", "/readyz", Some("no-store")),
    ] {
        let answer = match token {
            Some(token) => gateway.call_as(token, method, path).await,
            None => gateway.call(method, path, &[]).await,
        };
        assert_eq!(answer.header("cache-control"), cache_control, "{method} {path}: {answer:?}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{method} {path}");
    }
    let unreadable = raw(gateway.addr, "GET / HTTP/1.1\r\nHost: h\r\nbad line\r\n\r\n").await;
    assert_eq!(unreadable.header("x-content-type-options"), Some("nosniff"), "{unreadable:?}");
}

#[tokio::test]
async fn operators_pages_answer_to_their_own_names() {
    let (_mesh, _core, gateway) = Mesh::complete().await;
    for (host, status) in [("evil.example", 403), ("localhost", 200), ("127.0.0.1", 200)] {
        let request = gateway.http.get(format!("http://{}/metrics", gateway.admin));
        let answer = request.header("host", host).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{host}");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff", "{host}");
    }
}
