//! Authentication.

use serde_json::json;
use tourin_testbed::eventually;

use crate::harness::{Issuer, Mesh, TestGateway, raw};
use tourin_gateway::StalePolicy;

#[tokio::test]
async fn a_session_is_known_by_header_or_cookie() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let token = core.issuer.token("member01", "s1");
    let expected = json!({"kind": "member", "id": "member01", "session": "s1", "roles": []});
    let by_header = gateway.call_as(&token, "GET", "/api/auth/me").await;
    assert_eq!(by_header.asked()["subject"], expected);
    let cookies = format!("theme=dark; access_token={token}; refresh_token=r");
    let by_cookie = gateway.call("GET", "/api/auth/me", &[("cookie", &cookies)]).await;
    assert_eq!(by_cookie.asked()["subject"], expected);
    // A service gets no access token. Core needs the refresh token.
    let headers = &by_cookie.asked()["headers"];
    assert_eq!(headers["cookie"], "theme=dark; refresh_token=r");
    assert!(by_header.asked()["headers"].get("authorization").is_none());
    // The header wins, also when it is the invalid one.
    let both = [("cookie", cookies.as_str()), ("authorization", "Bearer nonsense")];
    gateway.call("GET", "/api/auth/me", &both).await.assert_refused(401, "unauthenticated");
    // Recommendation gets an identity that is signed for it.
    let trend = gateway.call_as(&token, "GET", "/api/recommendations/trend").await;
    assert_eq!(trend.asked()["subject"], expected);
}

#[tokio::test]
async fn without_a_good_token_there_is_no_session() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let bare = gateway.get("/api/auth/me").await;
    bare.assert_refused(401, "unauthenticated");
    assert_eq!(bare.header("www-authenticate"), Some("Bearer realm=\"tourin\""));

    let claims = Issuer::claims("member01", "s1");
    let with = |name: &str, value| {
        let mut claims = claims.clone();
        claims[name] = value;
        core.issuer.sign(&claims)
    };
    let now = chrono::Utc::now().timestamp();
    let good = core.issuer.sign(&claims);
    for (what, token) in [
        ("nonsense", "nonsense".to_owned()),
        (
            "alg none",
            format!("eyJhbGciOiJub25lIiwia2lkIjoia2V5LTEifQ.{}.", good.split('.').nth(1).unwrap()),
        ),
        ("tampered", good.replace('.', ".A")),
        ("expired", with("exp", json!(now - 60))),
        ("not yet valid", with("nbf", json!(now + 60))),
        ("another issuer", with("iss", json!("evil"))),
        ("another audience", with("aud", json!("evil"))),
        ("another key of the same name", Issuer::new(9, "key-1").token("member01", "s1")),
        ("a key that is not core's", Issuer::new(9, "key-9").token("member01", "s1")),
    ] {
        let answer = gateway.call_as(&token, "GET", "/api/auth/me").await;
        answer.assert_refused(401, "unauthenticated");
        assert!(answer.header("www-authenticate").unwrap().contains("invalid_token"), "{what}");
        // Where no session is needed, an invalid token is ignored.
        let public = gateway.call_as(&token, "GET", "/api/users").await;
        assert_eq!(public.asked()["subject"]["kind"], "visitor", "{what}");
    }
    assert_eq!(gateway.call_as(&good, "GET", "/api/auth/me").await.status, 200);
}

#[tokio::test]
async fn a_visitor_has_a_pseudonym_and_no_address() {
    let (mesh, _core, gateway) = Mesh::complete().await;
    let other = mesh.gateway(|_| {}).await;
    let name = |answer: &crate::harness::Response| {
        answer.asked()["subject"]["pseudonym"].as_str().unwrap().to_owned()
    };
    let agent = [("user-agent", "browser")];
    let first = name(&gateway.call("GET", "/api/users", &agent).await);
    assert!(first.starts_with("anon:") && first.len() == "anon:".len() + 26, "{first}");
    assert_eq!(
        first,
        name(&other.call("GET", "/api/tour-spots/1", &agent).await),
        "the same at every gateway"
    );
    let another = [("user-agent", "another")];
    assert_eq!(
        first,
        name(&gateway.call("GET", "/api/users", &another).await),
        "the User-Agent makes no difference"
    );
}

#[tokio::test]
async fn a_role_is_asked_for_where_the_table_says() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let folder = tempfile::tempdir().unwrap();
    let routes = folder.path().join("routes.toml");
    std::fs::write(
        &routes,
        "[[route]]\npath = \"/admin/{*rest}\"\nservice = \"core\"\nmethods = { GET = \"role:admin\" }\n",
    )
    .unwrap();
    let gateway = mesh.gateway(|settings| settings.routes = Some(routes)).await;
    let mut claims = Issuer::claims("member01", "s1");
    let plain = core.issuer.sign(&claims);
    claims["roles"] = json!(["admin"]);
    let admin = core.issuer.sign(&claims);
    gateway.get("/admin/x/y").await.assert_refused(401, "unauthenticated");
    gateway.call_as(&plain, "GET", "/admin/x/y").await.assert_refused(403, "forbidden");
    assert_eq!(gateway.call_as(&admin, "GET", "/admin/x/y").await.status, 200);
}

#[tokio::test]
async fn a_new_key_works_the_moment_it_is_used_and_a_withdrawn_one_no_longer() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let old = core.issuer.token("member01", "s1");
    assert_eq!(gateway.call_as(&old, "GET", "/api/auth/me").await.status, 200);
    let new = Issuer::new(8, "key-2");
    core.publish(vec![new.jwk()]);
    // At most one fetch a second: right after a fetch it may take that long.
    let token = new.token("member01", "s1");
    eventually("the new key is known", || async {
        gateway.call_as(&token, "GET", "/api/auth/me").await.status == 200
    })
    .await;
    gateway.call_as(&old, "GET", "/api/auth/me").await.assert_refused(401, "unauthenticated");
}

#[tokio::test]
async fn a_logout_counts_at_once_here_and_soon_everywhere() {
    let (mesh, core, gateway) = Mesh::complete().await;
    let other = mesh.gateway(|_| {}).await;
    let token = core.issuer.token("member01", "s1");
    let bystander = core.issuer.token("member02", "s2");
    for gateway in [&gateway, &other] {
        assert_eq!(gateway.call_as(&token, "GET", "/api/auth/me").await.status, 200);
    }
    let logout = gateway.call_as(&token, "POST", "/api/auth/logout").await;
    assert_eq!(logout.status, 200);
    assert!(logout.header("x-tourin-session-ended").is_none());
    gateway.call_as(&token, "GET", "/api/auth/me").await.assert_refused(401, "unauthenticated");

    core.end_session("s1");
    eventually("the other gateway knows", || async {
        other.call_as(&token, "GET", "/api/auth/me").await.status == 401
    })
    .await;
    let public = other.call_as(&token, "GET", "/api/users").await;
    assert_eq!(public.asked()["subject"]["kind"], "visitor");
    assert_eq!(other.call_as(&bystander, "GET", "/api/auth/me").await.status, 200);

    // A gateway that starts later reads the log from its start.
    let late = mesh.gateway(|_| {}).await;
    late.call_as(&token, "GET", "/api/auth/me").await.assert_refused(401, "unauthenticated");
}

#[tokio::test]
async fn a_call_that_ends_a_session_needs_no_live_token() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let logout = "/api/auth/logout";
    let expired = core.issuer.aged("s1", 90_000, 600);
    let forged = Issuer::new(9, "key-1").token("member01", "s1");
    for token in [forged.as_str(), "rubbish"] {
        let by_header = gateway.call_as(token, "POST", logout).await;
        let by_cookie = gateway.call_by_cookie(token, "POST", logout).await;
        for answer in [by_header, by_cookie] {
            assert_eq!(answer.asked()["subject"]["kind"], "visitor", "{token}");
        }
    }
    let by_header = gateway.call_as(&expired, "POST", logout).await;
    assert_eq!(by_header.asked()["subject"]["session"], "s1");
    let named = core.issuer.aged("s2", 90_000, 600);
    let first = gateway.call_by_cookie(&named, "POST", logout).await;
    assert_eq!(first.asked()["subject"]["session"], "s2");
    let second = gateway.call_by_cookie(&named, "POST", logout).await;
    assert_eq!(second.asked()["subject"]["kind"], "visitor");
    assert_eq!(gateway.call("POST", logout, &[]).await.asked()["subject"]["kind"], "visitor");
    assert_eq!(core.renewals(), 0, "what is to end is not renewed");

    // Another site's page ends no session, with or without the browser's cookies.
    for cookie in [&[][..], &[("cookie", "refresh_token=r")]] {
        for from in [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")] {
            let headers: Vec<_> = cookie.iter().copied().chain([from]).collect();
            gateway.call("POST", logout, &headers).await.assert_refused(403, "forbidden");
        }
    }
}

#[tokio::test]
async fn when_core_is_silent_sessions_are_served_or_denied_as_configured() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let serving = mesh.gateway(|settings| settings.revocation_stale_ms = 2_000).await;
    let denying = mesh
        .gateway(|settings| {
            settings.revocation_stale_ms = 2_000;
            settings.revocation_when_stale = StalePolicy::Deny;
        })
        .await;
    let token = core.issuer.token("member01", "s1");
    for gateway in [&serving, &denying] {
        assert_eq!(gateway.call_as(&token, "GET", "/api/recommendations/trend").await.status, 200);
    }
    core.stop.begin();
    eventually("the list is stale", || async {
        denying.call_as(&token, "GET", "/api/recommendations/trend").await.status == 503
    })
    .await;
    let denied = denying.call_as(&token, "GET", "/api/recommendations/trend").await;
    denied.assert_refused(503, "unavailable");
    assert!(denied.header("retry-after").is_some());
    let public = denying.call_as(&token, "GET", "/api/tour-spots/1/similar").await;
    assert_eq!(public.asked()["subject"]["kind"], "visitor", "a token that cannot be judged");
    for lists in ["/api/tour-spots", "/api/tour-spots/map"] {
        let refused = denying.call_as(&token, "GET", lists).await;
        refused.assert_refused(503, "unavailable");
        assert!(refused.header("retry-after").is_some());
    }
    assert_eq!(serving.call_as(&token, "GET", "/api/recommendations/trend").await.status, 200);
    // While core is unreachable a token with an unknown key is answered 503, not 401.
    let unknown = Issuer::new(9, "key-9").token("member01", "s1");
    eventually("core is known to be unreachable", || async {
        serving.call_as(&unknown, "GET", "/api/recommendations/trend").await.status == 503
    })
    .await;
}

#[tokio::test]
async fn before_the_first_load_no_request_is_answered_401() {
    let mesh = Mesh::start().await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.starting_gateway(|_| {}).await;
    eventually("recommendation is known", || async {
        gateway.get("/api/tour-spots/1/similar").await.status == 200
    })
    .await;
    let token = Issuer::new(7, "key-1").token("member01", "s1");
    let answer = gateway.call_as(&token, "GET", "/api/recommendations/trend").await;
    answer.assert_refused(503, "unavailable");
    let list = gateway.call_as(&token, "GET", "/api/tour-spots").await;
    list.assert_refused(503, "unavailable");
    assert!(list.body["message"].as_str().unwrap().contains("tokens"), "{list:?}");
    mesh.service("core", "core-1").await;
    eventually("core is there", || async {
        gateway.call_as(&token, "GET", "/api/recommendations/trend").await.status == 200
    })
    .await;
}

#[tokio::test]
async fn where_a_session_is_optional_a_token_is_believed_or_not_but_never_unchecked() {
    let (mesh, core, gateway) = Mesh::complete().await;
    let token = core.issuer.token("member01", "s1");
    for path in ["/api/tour-spots", "/api/tour-spots/map"] {
        let kind = async |token: Option<&str>| {
            let answer = match token {
                Some(token) => gateway.call_as(token, "GET", path).await,
                None => gateway.get(path).await,
            };
            answer.asked()["subject"]["kind"].as_str().unwrap().to_owned()
        };
        assert_eq!(kind(Some(&token)).await, "member");
        assert_eq!(kind(Some("nonsense")).await, "visitor");
        assert_eq!(kind(None).await, "visitor");
    }
    // Core gives its keys but not yet its ended sessions: the token may be one of a session that
    // has ended.
    core.withhold_ended_sessions();
    let starting = mesh.starting_gateway(|_| {}).await;
    eventually("the keys are there", || async {
        let unready = starting.get("/readyz").await.body["unready"].clone();
        unready.get("sessions").is_some() && unready.as_object().unwrap().len() == 1
    })
    .await;
    let refused = starting.call_as(&token, "GET", "/api/tour-spots?customFilters=bookmarked").await;
    refused.assert_refused(503, "unavailable");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(starting.get("/api/tour-spots").await.asked()["subject"]["kind"], "visitor");
    let public = starting.call_as(&token, "GET", "/api/tour-spots/1").await;
    assert_eq!(public.asked()["subject"]["kind"], "visitor", "not checked, so not believed");
}

#[tokio::test]
async fn a_new_keys_token_is_good_right_after_somebody_made_a_key_up() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let made_up = Issuer::new(9, "key-9").token("member01", "s1");
    gateway.call_as(&made_up, "GET", "/api/auth/me").await.assert_refused(401, "unauthenticated");
    let new = Issuer::new(8, "key-2");
    core.publish(vec![core.issuer.jwk(), new.jwk()]);
    let answer = gateway.call_as(&new.token("member01", "s1"), "GET", "/api/auth/me").await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn off_the_local_machine_only_cookies_with_the_prefix_open_a_session() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let token = core.issuer.token("member01", "s1");
    let ask = |host: &str, cookies: String| {
        format!(
            "GET /api/auth/me HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nCookie: {cookies}\r\n\r\n"
        )
    };
    let plain = format!("access_token={token}; refresh_token=r");
    let prefixed = format!("__Host-access_token={token}; __Host-refresh_token=r");
    for (host, cookies, is_member) in [
        ("tourin.example", &plain, false),
        ("tourin.example", &prefixed, true),
        ("localhost", &plain, true),
        ("localhost", &prefixed, false),
    ] {
        let answer = raw(gateway.addr, ask(host, cookies.clone())).await;
        assert_eq!(
            answer.status,
            if is_member { 200 } else { 401 },
            "{host} {cookies}: {answer:?}"
        );
        if is_member {
            let headers = &answer.body["headers"];
            let names = if host == "localhost" { "plain" } else { "host-prefixed" };
            assert_eq!(headers["x-tourin-session-cookies"], format!("{names}, sent"));
            assert!(!headers["cookie"].as_str().unwrap().contains(&token), "{headers}");
        }
    }
    // The refresh token goes to the calls that take it, and to no other service or call.
    let request = ask("tourin.example", prefixed).replace("/api/auth/me", "/api/users");
    let answer = raw(gateway.addr, request).await;
    assert!(answer.body["headers"].get("cookie").is_none(), "{answer:?}");
    // A client's own header is replaced.
    let forged = ask("tourin.example", "x=1\r\nX-Tourin-Session-Cookies: plain, sent".to_owned())
        .replace("/api/auth/me", "/api/users");
    let answer = raw(gateway.addr, forged).await;
    assert_eq!(answer.body["headers"]["x-tourin-session-cookies"], "host-prefixed");
}

#[tokio::test]
async fn each_gateway_measures_how_soon_it_learns_of_an_end() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|settings| settings.canary.revocation_canary_ms = 20).await;
    let off = mesh.gateway(|settings| settings.canary.revocation_canary_ms = 0).await;
    let metrics = async |gateway: &TestGateway| {
        let url = format!("http://{}/metrics", gateway.admin);
        gateway.http.get(url).send().await.unwrap().text().await.unwrap()
    };
    let value = async |name: &str| {
        let text = metrics(&gateway).await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        line.map_or(0.0, |value| value.trim().parse::<f64>().unwrap())
    };
    let seen = r#"tourin_gateway_revocation_canaries_total{outcome="seen"}"#;
    eventually("several have been seen", || async { value(seen).await >= 3.0 }).await;
    assert!(value("tourin_gateway_revocation_lag_seconds_count").await >= 3.0);
    let age = value("tourin_gateway_revocation_canary_age_seconds").await;
    assert!((0.0..10.0).contains(&age), "{age}");
    assert_eq!(value("tourin_gateway_revoked_sessions").await, 0.0, "canaries are not kept");
    let without = metrics(&off).await;
    assert!(!without.contains(seen), "{without}");
    // Core says that it has written them, and they do not come: the age shows it.
    core.lose_canaries();
    let before = value(seen).await;
    eventually("the age grows", || async {
        value("tourin_gateway_revocation_canary_age_seconds").await > 1.0
    })
    .await;
    assert!(value(seen).await <= before + 1.0);
}
