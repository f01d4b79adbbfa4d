//! A browser that only sends cookies, and outlives its access tokens. The services are separate processes
//! with an operator's flags.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::Method;
use serde_json::json;
use tourin_testbed::eventually;

use crate::separate_process_scenarios::{Flags, Services};
use crate::world::{PASSWORD, Response, World};

/// The life of an access token: the shortest that core accepts.
const TOKEN: Duration = Duration::from_secs(5);
const ME: &str = "/api/auth/me";

/// The cookies of a browser. They have paths; their ages do not matter here.
#[derive(Default)]
struct Browser {
    cookies: BTreeMap<String, String>,
    /// All access tokens so far.
    tokens: BTreeSet<String>,
}

impl Browser {
    async fn log_in(world: &World, id: &str) -> Self {
        let mut browser = Self::default();
        let body = json!({"id": id, "password": PASSWORD});
        let answer = world.post("/api/auth/login", body).await;
        browser.keep(&answer);
        answer.expect(200);
        browser
    }

    fn keep(&mut self, answer: &Response) {
        for cookie in answer.cookies() {
            let (pair, attributes) = cookie.split_once(';').expect("attributes");
            let (name, value) = pair.split_once('=').expect("a name");
            if attributes.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
            if name == "access_token" && !value.is_empty() {
                self.tokens.insert(value.to_owned());
            }
        }
    }

    fn request(&self, world: &World, method: Method, path: &str) -> reqwest::RequestBuilder {
        let sent = self
            .cookies
            .iter()
            .filter(|(name, _)| path.starts_with("/api/auth") || name.as_str() != "refresh_token");
        let cookies: Vec<_> = sent.map(|(name, value)| format!("{name}={value}")).collect();
        world.request(method, path).header("cookie", cookies.join("; "))
    }

    /// Makes calls at once, with the current cookies.
    async fn look(&mut self, world: &World, calls: usize) -> Vec<Response> {
        let request = || world.send(self.request(world, Method::GET, ME));
        let answers = join_all((0..calls).map(|_| request())).await;
        answers.iter().for_each(|answer| self.keep(answer));
        answers
    }
}

/// Waits until a token has expired. Sent as a bearer token, it is not renewed.
async fn expired(world: &World, token: &str) {
    eventually("the access token has expired", || async {
        let answer = world.send(world.request(Method::GET, ME).bearer_auth(token)).await;
        if answer.status == 401 { Ok(()) } else { Err(answer) }
    })
    .await;
}

async fn start() -> (World, Services) {
    let seconds = TOKEN.as_secs().to_string();
    let core = ["--access-token-s", seconds.as_str()];
    let flags = Flags { gateway: &["--token-leeway-s", "0"], core: &core, ..Flags::default() };
    Services::start_with(1, flags).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_is_active_stays_logged_in() {
    let (world, _services) = start().await;
    world.member("traveller1").await;
    let mut browser = Browser::log_in(&world, "traveller1").await;
    let refresh = browser.cookies["refresh_token"].clone();
    let began = Instant::now();
    let mut clicks = tokio::time::interval(Duration::from_millis(300));
    while began.elapsed() < 3 * TOKEN {
        clicks.tick().await;
        for answer in browser.look(&world, 1).await {
            answer.expect(200);
        }
    }
    let renewed = browser.tokens.len();
    assert!((4..=10).contains(&renewed), "{renewed} tokens in three lifetimes");
    assert_eq!(browser.cookies["refresh_token"], refresh, "nothing was used up");

    // A pause until the token has expired, then eight calls at once.
    expired(&world, &browser.cookies["access_token"]).await;
    let answers = browser.look(&world, 8).await;
    let given: BTreeSet<_> = answers.iter().flat_map(Response::cookies).collect();
    for answer in answers {
        answer.expect(200);
    }
    assert_eq!(given.len(), 1, "one renewal for all: {given:?}");
    let left = browser.cookies["access_token"].clone();

    // Logging out is final, whatever is still in flight.
    let out = world.send(browser.request(&world, Method::POST, "/api/auth/logout")).await;
    browser.keep(&out);
    out.expect(204);
    // The device stays known.
    assert_eq!(browser.cookies.keys().collect::<Vec<_>>(), ["device"]);
    let late = world.request(Method::GET, ME).header("cookie", format!("access_token={left}"));
    let answer = world.send(late).await;
    assert_eq!(answer.cookies(), Vec::<String>::new());
    answer.expect_error(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_still_logs_out() {
    let (world, _services) = start().await;
    let (by_header, by_cookie) =
        (world.member("traveller1").await, world.member("traveller2").await);
    let elsewhere = world.login("traveller2", PASSWORD).await;
    expired(&world, &elsewhere.access).await;
    for _ in 0..2 {
        world.post_as(&by_header, "/api/auth/logout", json!({})).await.expect(204);
    }
    let path = "/api/auth/logout?everywhere=true";
    let request = world.request(Method::POST, path).header("cookie", by_cookie.cookie());
    world.send(request).await.expect(204);
    for ended in [&by_header, &by_cookie, &elsewhere] {
        let body = json!({"refreshToken": ended.refresh});
        world.post("/api/auth/reissue", body).await.expect_error(401);
        let come_back = world.request(Method::GET, ME).header("cookie", ended.cookie());
        world.send(come_back).await.expect_error(401);
    }
}
