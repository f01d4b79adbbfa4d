//! New access tokens of open sessions, for gateways.

use chrono::TimeDelta;
use http::StatusCode;
use http::header::SET_COOKIE;
use serde_json::{Value, json};
use tourin_chassis::identity::Subject;

use super::sessions::{refresh_token, reissue};
use super::{no_content, refused};
use crate::testing::{Answer, TestCore, claims, session};

async fn slide(core: &TestCore, of: &Subject) -> Answer {
    let Subject::Member { id, session, .. } = of else { panic!("{of:?} has no session") };
    let body = json!({"member": id, "session": session, "cookies": "plain"});
    core.call("POST", "/internal/access-tokens", None, Some(body)).await
}

#[tokio::test]
async fn a_gateway_gets_a_new_access_token_of_an_open_session() {
    let core = TestCore::with(&["--session-cookie-idle-s", "60"]).await;
    let (first, hana) = core.member("hana12345").await;
    let body = json!({"member": "hana12345", "session": session(&hana)});
    let answer = core.call("POST", "/internal/access-tokens", Some(&hana), Some(body)).await;
    refused(&answer, 403, "forbidden", "services");
    let answer = core.get_as("recommendation", "/internal/access-tokens").await;
    refused(&answer, 403, "forbidden", "may not call");
    core.clock.advance(TimeDelta::minutes(20));
    let slid = slide(&core, &hana).await;
    assert_eq!(slid.status, StatusCode::OK, "{slid:?}");
    assert_eq!(slid.header("cache-control"), "private, no-store");
    assert_eq!(slid.headers.get(SET_COOKIE), None, "the browser's cookie is not the gateway's");
    let token = slid.json()["accessToken"].as_str().unwrap().to_owned();
    let (old, new) = (claims(first.json()["accessToken"].as_str().unwrap()), claims(&token));
    assert_eq!((new.sub, new.sid), (old.sub, old.sid));
    assert_eq!((new.iat, new.exp), (1_800_001_200, 1_800_001_800));
    let cookie = format!("access_token={token}; Path=/; Max-Age=660; HttpOnly; SameSite=Lax");
    assert_eq!(slid.json()["setCookie"], cookie);
    // Cookies have the prefix unless the gateway asks for others.
    let Subject::Member { id, session, .. } = &hana else { panic!("{hana:?}") };
    let body = json!({"member": id, "session": session});
    let prefixed = core.call("POST", "/internal/access-tokens", None, Some(body)).await;
    let set = prefixed.json()["setCookie"].as_str().unwrap().to_owned();
    assert!(set.starts_with("__Host-access_token=") && set.ends_with("; Secure"), "{set}");
    // The call can be repeated and does not use the refresh token.
    assert_eq!(slide(&core, &hana).await.status, StatusCode::OK);
    assert_eq!(reissue(&core, &refresh_token(&first)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn using_a_session_keeps_it_open_and_its_end_is_final() {
    let core = TestCore::start().await;
    let (first, hana) = core.member("hana12345").await;
    for _ in 0..2 {
        core.clock.advance(TimeDelta::days(13));
        assert!(slide(&core, &hana).await.json()["accessToken"].is_string());
    }
    // The session's absolute end is nearer than the token's.
    core.clock.advance(TimeDelta::days(4) - TimeDelta::seconds(10));
    let last = slide(&core, &hana).await.json();
    let last = claims(last["accessToken"].as_str().unwrap());
    assert_eq!(last.exp - last.iat, 10);
    core.clock.advance(TimeDelta::seconds(10));
    assert_eq!(slide(&core, &hana).await.json(), Value::Null);
    refused(&reissue(&core, &refresh_token(&first)).await, 401, "unauthenticated", "");

    let (_, again) = core.log_in("hana12345").await;
    no_content(&core.call("POST", "/api/auth/logout", Some(&again), None).await);
    assert_eq!(slide(&core, &again).await.json(), Value::Null);
    let (_, idle) = core.log_in("hana12345").await;
    core.clock.advance(TimeDelta::days(14));
    assert_eq!(slide(&core, &idle).await.json(), Value::Null);
    for (member, of) in [("minsu1234", session(&idle)), ("hana12345", "x".to_owned())] {
        let other = Subject::Member { id: member.to_owned(), session: of, roles: vec![] };
        assert_eq!(slide(&core, &other).await.json(), Value::Null);
    }
    core.store.close().await;
    refused(&slide(&core, &idle).await, 503, "unavailable", "the store cannot be reached");
}
