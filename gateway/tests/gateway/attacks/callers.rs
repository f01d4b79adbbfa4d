//! Who a caller is, to the gateway and to the services behind it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{OWN, assert_each_opens_nothing, assert_opens, claims, header, mesh, part};
use crate::harness::raw;

#[tokio::test]
async fn two_authorizations_are_refused_and_a_header_wins_over_a_cookie() {
    let (_mesh, core, gateway) = mesh().await;
    let one = core.issuer.token("member01", "s1");
    let other = core.issuer.token("member02", "s2");
    let calls = core.calls();
    for path in [OWN, "/api/users", "/api/tour-spots", "/api/auth/logout"] {
        let method = if path.ends_with("logout") { "POST" } else { "GET" };
        for (first, second) in [(&one, &other), (&one, &one)] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 0\r\n\
                 Authorization: Bearer {first}\r\nauthorization: bearer {second}\r\n\r\n"
            );
            raw(gateway.addr, request).await.assert_refused(400, "malformed");
        }
    }
    assert_eq!(core.calls(), calls, "none of them reached a service");
    // Two in one line are one that is no token.
    let joined = format!("{one}, Bearer {other}");
    gateway.call_as(&joined, "GET", OWN).await.assert_refused(401, "unauthenticated");

    let cookie = format!("access_token={other}");
    let bearer = format!("Bearer {one}");
    let both = [("cookie", cookie.as_str()), ("authorization", bearer.as_str())];
    let answer = gateway.call("GET", OWN, &both).await;
    assert_eq!(answer.asked()["subject"]["id"], "member01");
    for inside in ["authorization", "cookie"] {
        assert!(answer.asked()["headers"].get(inside).is_none(), "{inside} goes to no service");
    }
    let both = [("cookie", cookie.as_str()), ("authorization", "Bearer nonsense")];
    gateway.call("GET", OWN, &both).await.assert_refused(401, "unauthenticated");
}

#[tokio::test]
async fn no_spelling_of_an_identity_header_reaches_a_service() {
    let (_mesh, core, gateway) = mesh().await;
    let member = core.issuer.token("member01", "s1");
    // A member's real identity, as a service saw it: replayed by a client it is worth nothing.
    let seen = gateway.call_as(&member, "GET", OWN).await;
    let captured = seen.asked()["headers"]["x-tourin-identity"].as_str().unwrap().to_owned();
    let ask = |fields: &str| {
        format!("GET /api/users HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{fields}\r\n\r\n")
    };
    for name in [
        "x-tourin-identity",
        "X-TOURIN-IDENTITY",
        "x-ToUrIn-IdEnTiTy",
        "X_Tourin_Identity",
        "x_tourin-identity",
        "X-Tourin_Identity",
        "x-tourin-session-cookies",
        "X-User-Id",
        "x_user_id",
        "X-Auth-Request-User",
        "X-Authenticated-Userid",
        "Remote-User",
        "remote_user",
        "X-Forwarded-User",
        "X_Forwarded_User",
        "X-Roles",
        "X-Session-Id",
    ] {
        let once = format!("{name}: {captured}");
        for fields in [once.clone(), format!("{once}\r\n{once}"), format!("{name}:\t {captured} ")]
        {
            let answer = raw(gateway.addr, ask(&fields)).await;
            assert_eq!(answer.status, 200, "{fields}: {answer:?}");
            assert_eq!(answer.body["subject"]["kind"], "visitor", "{fields}");
            let headers = answer.body["headers"].as_object().unwrap();
            let forged: Vec<_> =
                headers.iter().filter(|(_, value)| **value == captured.as_str()).collect();
            assert!(forged.is_empty(), "{fields}: {forged:?}");
        }
    }
    let calls = core.calls();
    // Spellings that one reader takes for the name and another does not.
    for fields in [
        format!("x-tourin-identity : {captured}"),
        format!("x-tourin-identity\t: {captured}"),
        format!("Accept: */*\r\n x-tourin-identity: {captured}"),
        format!("x-tourin-identity\u{0}: {captured}"),
        format!("x-tourin-identity: {captured}\rx-tourin-identity: {captured}"),
        format!(": {captured}"),
    ] {
        let answer = raw(gateway.addr, ask(&fields)).await;
        assert_eq!(answer.status, 400, "{fields:?}: {answer:?}");
    }
    assert_eq!(core.calls(), calls);
    // A client cannot have the gateway's own header taken off on the way.
    let answer = raw(gateway.addr, ask("Connection: x-tourin-identity")).await;
    assert_eq!(answer.body["subject"]["kind"], "visitor", "{answer:?}");
    // In a trailer it is no header.
    let chunked = format!(
        "POST /api/auth/login HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTrailer: x-tourin-identity\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\nx-tourin-identity: {captured}\r\n\r\n"
    );
    let answer = raw(gateway.addr, chunked).await;
    assert!(answer.status == 400 || answer.body["subject"]["kind"] == "visitor", "{answer:?}");
}

#[tokio::test]
async fn a_token_in_a_url_opens_nothing() {
    let (_mesh, core, gateway) = mesh().await;
    let token = core.issuer.token("member01", "s1");
    for name in ["access_token", "token", "authorization", "Authorization"] {
        for value in [token.clone(), format!("Bearer%20{token}")] {
            let answer = gateway.get(&format!("{OWN}?{name}={value}")).await;
            answer.assert_refused(401, "unauthenticated");
            let public = gateway.get(&format!("/api/users?{name}={value}")).await;
            assert_eq!(public.asked()["subject"]["kind"], "visitor");
        }
    }
}

#[tokio::test]
async fn claims_in_another_encoding_than_utf_8_are_refused() {
    let (_mesh, core, gateway) = mesh().await;
    let text = claims().to_string();
    let utf_16 = text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let latin_1 = text.replace("member01", "membre\u{e9}").chars().map(|c| c as u8).collect();
    let marked = ["\u{feff}", &text].concat().into_bytes();
    let sign = |claims: &[u8]| {
        let message = format!("{}.{}", part(&header()), URL_SAFE_NO_PAD.encode(claims));
        let signature = core.issuer.signature(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    };
    assert_opens(&gateway, "UTF-8", &sign(text.as_bytes())).await;
    let others: [(&str, Vec<u8>); 3] =
        [("UTF-16", utf_16), ("Latin-1", latin_1), ("a byte order mark", marked)];
    let others = others.map(|(what, claims)| (what.to_owned(), sign(&claims)));
    assert_each_opens_nothing(&gateway, others).await;
}
