//! Compression of responses.

use bytes::Bytes;
use http::HeaderMap;
use pingora::protocols::http::compression::Algorithm;

use crate::harness::{Http2, Mesh, Site, TestGateway, ask, raw};

const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// A call whose response is long enough.
async fn call(
    gateway: &TestGateway,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (HeaderMap, Bytes) {
    let url = format!("{}{path}?query={}", gateway.url, "a".repeat(2_000));
    let mut request = gateway.http.request(method.parse().unwrap(), url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    (response.headers().clone(), response.bytes().await.unwrap())
}

fn decoded(algorithm: Algorithm, body: &[u8]) -> serde_json::Value {
    let body = algorithm.decompressor(true).unwrap().encode(body, true).unwrap();
    serde_json::from_slice(&body).unwrap()
}

fn coding(headers: &HeaderMap) -> Option<&str> {
    headers.get("content-encoding").map(|coding| coding.to_str().unwrap())
}

#[tokio::test]
async fn public_responses_are_compressed_as_the_client_likes() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let path = "/api/tour-spots";
    for (accepted, algorithm) in [
        ("gzip", Algorithm::Gzip),
        ("gzip, deflate, br;q=0.9", Algorithm::Gzip),
        ("gzip;q=0, br", Algorithm::Brotli),
    ] {
        let (headers, body) = call(&gateway, "GET", path, &[("accept-encoding", accepted)]).await;
        assert_eq!(coding(&headers), Some(algorithm.as_str()), "{accepted}");
        assert!(body.len() < 1_000 && headers.get("content-length").is_none(), "{headers:?}");
        assert_eq!(headers["vary"], "accept-encoding");
        assert_eq!(decoded(algorithm, &body)["path"], path);
    }
    let all = [("accept-encoding", "gzip, deflate, br, zstd")];
    let (headers, body) = call(&gateway, "GET", path, &all).await;
    assert_eq!(coding(&headers), Some("zstd"));
    assert!(body.starts_with(ZSTD_MAGIC) && body.len() < 1_000, "{body:?}");

    // A cache must not give that to a client that takes none of them.
    for accepted in [&[][..], &[("accept-encoding", "gzip;q=0, identity")]] {
        let (headers, body) = call(&gateway, "GET", path, accepted).await;
        assert_eq!(coding(&headers), None);
        assert_eq!(headers["vary"], "accept-encoding");
        assert_eq!(headers["content-length"], body.len().to_string());
    }

    // The route does not ask for it, or it is a short response.
    assert_eq!(coding(&call(&gateway, "GET", "/api/users", &all).await.0), None);
    let short = gateway.call("GET", path, &[("accept-encoding", "identity")]).await;
    assert_eq!(short.header("content-encoding"), None);

    // A response for one caller is never compressed: its length could give a secret away.
    let bearer = format!("Bearer {}", core.issuer.token("member01", "s1"));
    let personal = [all[0], ("authorization", bearer.as_str())];
    let (headers, _) = call(&gateway, "GET", path, &personal).await;
    assert_eq!((coding(&headers), headers.get("vary")), (None, None));
    assert_eq!(headers["cache-control"], "private, no-store");
    let by_cookie = [all[0], ("cookie", &format!("access_token={}", &bearer[7..]))];
    assert_eq!(coding(&call(&gateway, "GET", path, &by_cookie).await.0), None);
    for (method, path) in [("POST", "/api/auth/login"), ("POST", "/api/auth/reissue")] {
        assert_eq!(coding(&call(&gateway, method, path, &all).await.0), None, "{path}");
    }
    assert_eq!(coding(&call(&gateway, "HEAD", path, &all).await.0), None);

    // HTTP/1.0 has no chunked coding.
    let old = format!(
        "GET {path}?query={} HTTP/1.0\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n",
        "a".repeat(2_000)
    );
    let answer = raw(gateway.addr, old).await;
    assert_eq!(answer.header("content-encoding"), None, "{answer:?}");
    assert_eq!(answer.body["path"], path);
}

#[tokio::test]
async fn compressed_responses_go_over_http2_too() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let site = Site::new(&["tourin.example"]);
    let gateway = mesh.tls_gateway(&site, |_| {}).await;
    let client = Http2::open(&site, gateway.addr).await;
    let path = format!("/api/tour-spots?query={}", "a".repeat(2_000));
    let mut ready = client.requests.clone().ready().await.unwrap();
    let request = ask("GET", &path, &[("accept-encoding", "gzip")]);
    let (head, mut body) = ready.send_request(request, true).unwrap().0.await.unwrap().into_parts();
    assert_eq!(coding(&head.headers), Some("gzip"));
    let mut whole = Vec::new();
    while let Some(part) = body.data().await {
        whole.extend_from_slice(&part.unwrap());
    }
    assert_eq!(decoded(Algorithm::Gzip, &whole)["path"], "/api/tour-spots");
}
