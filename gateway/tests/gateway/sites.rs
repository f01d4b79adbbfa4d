//! Other sites' pages.

use crate::harness::{Mesh, TestGateway};

async fn gateway(mesh: &Mesh) -> (TestGateway, String) {
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh
        .gateway(|settings| settings.allowed_origins = vec!["https://app.example".parse().unwrap()])
        .await;
    (gateway, core.issuer.token("member01", "s1"))
}

#[tokio::test]
async fn another_sites_page_cannot_write_with_the_members_cookies() {
    let mesh = Mesh::start().await;
    let (gateway, token) = gateway(&mesh).await;
    let cookie = format!("access_token={token}");
    let own = gateway.url.clone();
    let bearer = format!("Bearer {token}");
    for (headers, status) in [
        (vec![("cookie", cookie.as_str())], 200),
        (vec![("cookie", &cookie), ("origin", &own)], 200),
        (vec![("cookie", &cookie), ("origin", "https://app.example")], 200),
        (vec![("cookie", &cookie), ("origin", "https://evil.example")], 403),
        (vec![("cookie", &cookie), ("origin", "null")], 403),
        (vec![("cookie", &cookie), ("referer", "https://evil.example/page")], 403),
        (vec![("cookie", &cookie), ("sec-fetch-site", "cross-site")], 403),
        (vec![("cookie", &cookie), ("sec-fetch-site", "same-origin")], 200),
        // A proxy has rewritten Host; the browser says that the page is this host's own.
        (
            vec![
                ("cookie", &cookie),
                ("sec-fetch-site", "same-origin"),
                ("origin", "https://tourin.example"),
            ],
            200,
        ),
        (vec![("cookie", &cookie), ("origin", "https://tourin.example")], 403),
        (
            vec![
                ("cookie", &cookie),
                ("authorization", &bearer),
                ("origin", "https://evil.example"),
            ],
            200,
        ),
        (vec![("authorization", &bearer), ("origin", "https://evil.example")], 200),
    ] {
        let answer = gateway.call("PUT", "/api/tour-spot-reviews/1/likes", &headers).await;
        assert_eq!(answer.status, status, "{headers:?}");
    }
    // The refresh cookie alone authorises a call, too.
    let stolen = [("cookie", "refresh_token=r"), ("origin", "https://evil.example")];
    gateway.call("POST", "/api/auth/reissue", &stolen).await.assert_refused(403, "forbidden");
    // Log-in and sign-up use no cookie, so a stale one makes no difference.
    for path in ["/api/auth/login", "/api/auth/signup"] {
        for left in ["refresh_token=r", cookie.as_str(), "access_token=x; refresh_token=r"] {
            let headers = [("cookie", left), ("origin", "https://tourin.example")];
            let answer = gateway.call("POST", path, &headers).await;
            assert_eq!(answer.asked()["subject"]["kind"], "visitor", "{path} {left}");
        }
    }
    // A read is allowed.
    let read = [("cookie", cookie.as_str()), ("origin", "https://evil.example")];
    assert_eq!(gateway.call("GET", "/api/auth/me", &read).await.status, 200);
}

#[tokio::test]
async fn an_allowed_page_may_call_with_credentials() {
    let mesh = Mesh::start().await;
    let (gateway, _) = gateway(&mesh).await;
    let preflight =
        |origin: &'static str| [("origin", origin), ("access-control-request-method", "POST")];
    let allowed =
        gateway.call("OPTIONS", "/api/users/u/bookmarks", &preflight("https://app.example")).await;
    assert_eq!((allowed.status, allowed.body.is_null()), (204, true));
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(allowed.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(allowed.header("access-control-allow-methods"), Some("GET, HEAD, POST"));
    let refused = gateway.call("OPTIONS", "/api/users", &preflight("https://evil.example")).await;
    refused.assert_refused(403, "forbidden");
    assert!(refused.header("access-control-allow-origin").is_none());

    for path in ["/api/users", "/nothing"] {
        let answer = gateway.call("GET", path, &[("origin", "https://app.example")]).await;
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some("https://app.example"),
            "{path}"
        );
        assert!(
            answer
                .header("access-control-expose-headers")
                .unwrap()
                .contains("x-pagination-total-item")
        );
        assert!(answer.varies_by("origin"), "{path}");
        let answer = gateway.call("GET", path, &[("origin", "https://evil.example")]).await;
        assert!(answer.header("access-control-allow-origin").is_none(), "{path}");
        assert!(answer.varies_by("origin"), "{path}");
        assert!(gateway.get(path).await.varies_by("origin"), "{path}");
    }
    for (method, path) in [
        ("GET", "/readyz"),
        ("GET", "/api/openapi.json"),
        ("PUT", "/api/users"),
        ("POST", "/api/users/u/bookmarks"),
        ("GET", "/api/users/%zz"),
        ("OPTIONS", "/api/users"),
    ] {
        let answer = gateway.call(method, path, &[]).await;
        assert!(answer.varies_by("origin"), "{method} {path}");
    }
    assert!(refused.varies_by("origin"));
    let answer = gateway.get("/api/users?vary").await;
    assert_eq!(answer.header("vary"), Some("Accept-Language, cookie, origin"));
    let answer = gateway.call("GET", "/", &[("accept", "text/plain")]).await;
    assert!(["accept", "accept-language", "origin"].iter().all(|name| answer.varies_by(name)));
    gateway.call("OPTIONS", "/api/users", &[]).await.assert_refused(405, "method_not_allowed");
}
