//! Sessions that are carried by cookies: renewed while they are used, and never once they have ended.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tourin_chassis::telemetry::ZipkinSpan;
use tourin_chassis::telemetry::testing::all_spans;
use tourin_testbed::{eventually, free_address};

use crate::harness::{Mesh, Response, Service, TestGateway};

const ME: &str = "/api/auth/me";

/// A mesh whose gateway allows no difference of clocks.
async fn exact() -> (Mesh, Service, TestGateway) {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|settings| settings.token_leeway_s = 0).await;
    (mesh, core, gateway)
}

#[track_caller]
fn is_member(answer: &Response) {
    assert_eq!(answer.asked()["subject"]["id"], "member01", "{answer:?}");
}

#[tokio::test]
async fn a_cookie_client_that_is_active_stays_logged_in() {
    let (_mesh, core, gateway) = exact().await;
    core.set_token_life_s(2);
    let mut token = core.issuer.aged("s1", 0, 2);
    let mut seen = BTreeSet::from([token.clone()]);
    let began = Instant::now();
    let mut clicks = tokio::time::interval(Duration::from_millis(100));
    while began.elapsed() < Duration::from_secs(7) {
        clicks.tick().await;
        let answer = gateway.call_by_cookie(&token, "GET", ME).await;
        is_member(&answer);
        if let [new] = &answer.set_tokens()[..] {
            token.clone_from(new);
            seen.insert(token.clone());
        }
    }
    assert!(seen.len() > 3, "three lifetimes need three new tokens: {}", seen.len());
    assert!(core.renewals() <= 8, "{} renewals in seven half-lives", core.renewals());
}

#[tokio::test]
async fn many_calls_at_once_with_an_expired_cookie_are_one_renewal() {
    let (_mesh, core, gateway) = exact().await;
    let expired = core.issuer.aged("s1", 700, 600);
    core.hold_renewals(true);
    let calls = join_all((0..8).map(|_| gateway.call_by_cookie(&expired, "GET", ME)));
    let renewing = async {
        eventually("core is asked", || async { core.renewals() > 0 }).await;
        core.hold_renewals(false);
    };
    let (answers, ()) = tokio::join!(calls, renewing);
    let token = &answers[0].set_tokens()[0];
    for answer in &answers {
        is_member(answer);
        assert_eq!(answer.set_tokens(), [token.as_str()]);
        assert_eq!(answer.header("cache-control"), Some("private, no-store"));
    }
    // A late call with the old cookie gets the same token. The new token is not due.
    let late = gateway.call_by_cookie(&expired, "POST", "/api/auth/update-profile").await;
    is_member(&late);
    assert_eq!(late.set_tokens(), [token.as_str()]);
    let next = gateway.call_by_cookie(token, "GET", ME).await;
    is_member(&next);
    assert_eq!(next.set_tokens(), Vec::<String>::new());
    assert_eq!(core.renewals(), 1);
}

#[tokio::test]
async fn many_calls_over_the_moment_of_expiry_are_all_answered() {
    let (_mesh, core, gateway) = exact().await;
    // A token that is about to expire: for some of the calls it is still valid.
    let token = core.issuer.aged("s1", 9, 10);
    let began = Instant::now();
    let mut calls = 0;
    while began.elapsed() < Duration::from_millis(1_500) {
        let answers = join_all((0..8).map(|_| gateway.call_by_cookie(&token, "GET", ME))).await;
        answers.iter().for_each(is_member);
        calls += answers.len();
    }
    assert!(calls >= 8);
    assert_eq!(core.renewals(), 1);
}

#[tokio::test]
async fn a_token_that_is_good_is_used_while_its_successor_is_on_its_way() {
    let (_mesh, core, gateway) = exact().await;
    let fresh = core.issuer.aged("s1", 200, 600);
    is_member(&gateway.call_by_cookie(&fresh, "GET", ME).await);
    assert_eq!(core.renewals(), 0, "not yet half its life");
    let due = core.issuer.aged("s1", 310, 600);
    core.hold_renewals(true);
    for _ in 0..3 {
        let answer = gateway.call_by_cookie(&due, "GET", ME).await;
        is_member(&answer);
        assert_eq!(answer.set_tokens(), Vec::<String>::new());
    }
    eventually("core is asked", || async { core.renewals() > 0 }).await;
    core.hold_renewals(false);
    eventually("an answer takes the new token along", || async {
        let answer = gateway.call_by_cookie(&due, "GET", ME).await;
        is_member(&answer);
        !answer.set_tokens().is_empty()
    })
    .await;
    assert_eq!(core.renewals(), 1);
}

#[tokio::test]
async fn calls_that_anyone_may_make_keep_a_session_alive_too() {
    let (_mesh, core, gateway) = exact().await;
    for (session, path) in [("s1", "/api/tour-spots"), ("s2", "/api/tour-spots/1/similar")] {
        let expired = core.issuer.aged(session, 700, 600);
        // Such a call waits a moment for the renewal, and is a visitor's if that takes longer.
        eventually("it is renewed", || async {
            let answer = gateway.call_by_cookie(&expired, "GET", path).await;
            let tokens = answer.set_tokens().len();
            let kind = &answer.asked()["subject"]["kind"];
            assert_eq!(tokens == 1, kind == "member", "{answer:?}");
            tokens == 1
        })
        .await;
    }
}

#[tokio::test]
async fn a_bearers_token_is_its_own_to_renew() {
    let (_mesh, core, gateway) = exact().await;
    let (due, expired) = (core.issuer.aged("s1", 310, 600), core.issuer.aged("s1", 700, 600));
    let cookie = format!("access_token={expired}");
    for also in [&[][..], &[("cookie", cookie.as_str())]] {
        for (token, status) in [(&due, 200), (&expired, 401)] {
            let bearer = format!("Bearer {token}");
            let headers: Vec<_> = [("authorization", bearer.as_str())]
                .into_iter()
                .chain(also.iter().copied())
                .collect();
            let answer = gateway.call("GET", ME, &headers).await;
            assert_eq!(answer.status, status, "{answer:?}");
            assert!(answer.header("set-cookie").is_none());
        }
    }
    assert_eq!(core.renewals(), 0);
}

#[tokio::test]
async fn a_token_expired_for_too_long_is_not_renewed() {
    let (mesh, core, gateway) = exact().await;
    let longest = 600 + 1_800;
    let too_old = core.issuer.aged("s1", longest + 1, 600);
    gateway.call_by_cookie(&too_old, "GET", ME).await.assert_refused(401, "unauthenticated");
    let visitor = gateway.call_by_cookie(&too_old, "GET", "/api/users").await;
    assert_eq!(visitor.asked()["subject"]["kind"], "visitor");
    let forged = crate::harness::Issuer::new(9, "key-1").aged("s1", 700, 600);
    gateway.call_by_cookie(&forged, "GET", ME).await.assert_refused(401, "unauthenticated");
    assert_eq!(core.renewals(), 0);
    let in_time = core.issuer.aged("s1", longest - 60, 600);
    is_member(&gateway.call_by_cookie(&in_time, "GET", ME).await);

    let strict = mesh
        .gateway(|settings| (settings.token_leeway_s, settings.session_cookie_idle_s) = (0, 0))
        .await;
    let expired = core.issuer.aged("s2", 601, 600);
    strict.call_by_cookie(&expired, "GET", ME).await.assert_refused(401, "unauthenticated");
    let due = core.issuer.aged("s2", 590, 600);
    eventually("a good one slides all the same", || async {
        !strict.call_by_cookie(&due, "GET", ME).await.set_tokens().is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_ended_session_is_not_renewed() {
    let (_mesh, core, gateway) = exact().await;
    let (good, expired) = (core.issuer.token("member01", "s1"), core.issuer.aged("s1", 700, 600));
    let knows = async |session: &str| {
        let good = core.issuer.token("member01", session);
        eventually("the gateway knows", || async {
            gateway.call_as(&good, "GET", ME).await.status == 401
        })
        .await;
    };
    core.end_session("s1");
    knows("s1").await;
    for token in [&good, &expired] {
        let answer = gateway.call_by_cookie(token, "GET", ME).await;
        answer.assert_refused(401, "unauthenticated");
        assert!(answer.header("set-cookie").is_none());
    }
    assert_eq!(core.renewals(), 0, "the gateway knows by itself");

    // It ends while core is asked: after core has answered, and before the gateway has the answer.
    core.hold_renewals(true);
    let expired = core.issuer.aged("s2", 700, 600);
    let ending = async {
        eventually("core is asked", || async { core.renewals() == 1 }).await;
        core.end_session("s2");
        knows("s2").await;
        core.hold_renewals(false);
    };
    let (answer, ()) = tokio::join!(gateway.call_by_cookie(&expired, "GET", ME), ending);
    answer.assert_refused(401, "unauthenticated");
    assert!(answer.header("set-cookie").is_none());

    // It ends while the call is with its service, with a token that is good and due.
    let due = core.issuer.aged("s3", 310, 600);
    let held = format!("{ME}?hold");
    let ending = async {
        eventually("the call and the renewal are there", || async {
            core.held() == 1 && core.renewals() == 2
        })
        .await;
        core.end_session("s3");
        knows("s3").await;
        core.release();
    };
    let (answer, ()) = tokio::join!(gateway.call_by_cookie(&due, "GET", &held), ending);
    is_member(&answer);
    assert!(answer.header("set-cookie").is_none());
}

#[tokio::test]
async fn cores_word_that_a_session_is_over_counts_before_the_log_has_it() {
    let (mesh, core, _) = exact().await;
    let gateway = mesh
        .gateway(|settings| {
            (settings.token_leeway_s, settings.revocation_stale_ms) = (0, 100);
        })
        .await;
    core.withhold_ended_sessions();
    core.end_session("s1");
    let (expired, other) = (core.issuer.aged("s1", 700, 600), core.issuer.aged("s2", 700, 600));
    eventually("sessions are judged by what is known", || async {
        gateway.call_by_cookie(&other, "GET", ME).await.status == 200
    })
    .await;
    for _ in 0..2 {
        let answer = gateway.call_by_cookie(&expired, "GET", ME).await;
        answer.assert_refused(401, "unauthenticated");
    }
    assert_eq!(core.renewals(), 2, "one for each session");
}

#[tokio::test]
async fn a_response_that_sets_the_cookie_itself_keeps_its_value() {
    let (_mesh, core, gateway) = exact().await;
    let expired = core.issuer.aged("s1", 700, 600);
    let removed = gateway.call_by_cookie(&expired, "GET", &format!("{ME}?removes")).await;
    is_member(&removed);
    assert_eq!(removed.set_tokens(), [""]);
    let themed = gateway.call_by_cookie(&expired, "GET", &format!("{ME}?theme")).await;
    assert_eq!(themed.set_tokens().len(), 1, "another cookie's name only ends like it");
    assert_eq!(themed.headers.get_all("set-cookie").iter().count(), 2);
    let cacheable = gateway.call_by_cookie(&expired, "GET", &format!("{ME}?cacheable")).await;
    assert_eq!(cacheable.set_tokens().len(), 1);
    assert_eq!(cacheable.header("cache-control"), Some("private, no-store"));
    let cookie = cacheable.header("set-cookie").unwrap();
    assert!(cookie.ends_with("; Path=/; Max-Age=9; HttpOnly; Core=Own"), "core's words: {cookie}");
}

#[tokio::test]
async fn while_core_is_down_no_request_is_answered_401() {
    let (_mesh, core, gateway) = exact().await;
    let (due, expired) = (core.issuer.aged("s1", 310, 600), core.issuer.aged("s1", 700, 600));
    let trend = "/api/recommendations/trend";
    core.stop.begin();
    eventually("core is away", || async { gateway.get("/api/users").await.status >= 500 }).await;
    for _ in 0..2 {
        is_member(&gateway.call_by_cookie(&due, "GET", trend).await);
        let refused = gateway.call_by_cookie(&expired, "GET", trend).await;
        refused.assert_refused(503, "unavailable");
        assert!(refused.header("retry-after").is_some());
    }
    let public = gateway.call_by_cookie(&expired, "GET", "/api/tour-spots/1/similar").await;
    assert_eq!(public.asked()["subject"]["kind"], "visitor");
}

#[tokio::test]
async fn a_renewal_tries_another_core_and_recovers_at_once() {
    let (mesh, core, gateway) = exact().await;
    mesh.register("core", "core-dead", free_address()).await;
    for number in 0..6 {
        let expired = core.issuer.aged(&format!("s{number}"), 700, 600);
        is_member(&gateway.call_by_cookie(&expired, "GET", "/api/recommendations/trend").await);
    }
}

#[tokio::test]
async fn a_renewal_is_in_the_trace_and_in_the_metrics_and_its_token_in_neither() {
    all_spans();
    let (_mesh, core, gateway) = exact().await;
    let expired = core.issuer.aged("s1", 700, 600);
    let answer = gateway.call_by_cookie(&expired, "GET", ME).await;
    let token = &answer.set_tokens()[0];
    let trace = answer.header("traceresponse").unwrap().split('-').nth(1).unwrap().to_owned();
    let spans = eventually("the spans are there", || async {
        let found = all_spans().trace(&trace).unwrap_or_default();
        let is_server = |span: &ZipkinSpan| span.kind.as_deref() == Some("SERVER");
        if found.len() >= 3 && found.iter().any(is_server) { Ok(found) } else { Err(found) }
    })
    .await;
    let server = spans.iter().find(|span| span.kind.as_deref() == Some("SERVER")).unwrap();
    let renewal = spans
        .iter()
        .find(|span| span.name.as_deref() == Some("post /internal/access-tokens"))
        .unwrap_or_else(|| panic!("{spans:#?}"));
    assert_eq!(renewal.kind.as_deref(), Some("CLIENT"));
    assert_eq!(renewal.parent_id.as_ref(), Some(&server.id));
    assert_eq!(renewal.tags["http.response.status_code"], "200");
    let shown = format!("{spans:?}");
    assert!(!shown.contains(token.as_str()) && !shown.contains(&expired));
    let metrics =
        gateway.http.get(format!("http://{}/metrics", gateway.admin)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let count = "tourin_gateway_session_renewals_total{outcome=\"renewed\"} 1";
    assert!(metrics.contains(count), "{metrics}");
}
