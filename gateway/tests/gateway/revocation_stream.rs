//! Ended sessions from core's stream in a real Redis.

use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;

use crate::harness::{Mesh, Service, TestGateway};
use tourin_gateway::{Settings, StalePolicy};
use tourin_testbed::{Proxy, Server, User, eventually, given, given_to};

/// A test's own keys in the test bed's Redis, written as core does, behind a proxy that can be cut.
struct Redis {
    url: String,
    prefix: String,
    connection: MultiplexedConnection,
    way: Proxy,
}

impl Redis {
    /// Behind a closed proxy.
    async fn unreachable() -> Self {
        let url = given_to(User::Gateway, Server::Redis);
        let client = redis::Client::open(given(Server::Redis)).unwrap();
        Self {
            way: Proxy::closed_to_url(&url),
            url,
            prefix: format!("test-{}", uuid::Uuid::new_v4().simple()),
            connection: client.get_multiplexed_async_connection().await.unwrap(),
        }
    }

    async fn within_reach() -> Self {
        let redis = Self::unreachable().await;
        redis.way.open().await;
        redis
    }

    fn key(&self, name: &str) -> String {
        format!("{{{}}}:{name}", self.prefix)
    }

    /// Appends as core does.
    async fn end_session(&mut self, session: &str) {
        self.append("log-a", "*", session).await;
    }

    async fn append(&mut self, log: &str, id: &str, session: &str) {
        let until = (Utc::now() + TimeDelta::minutes(10)).timestamp_micros();
        let (stream, key) = (self.key("revocations"), self.key("log"));
        let mut both = redis::pipe();
        both.atomic().cmd("SET").arg(key).arg(log).ignore();
        both.cmd("XADD").arg(stream).arg(id).arg("session").arg(session);
        both.arg("until").arg(until).ignore();
        both.query_async::<()>(&mut self.connection).await.unwrap();
    }

    /// Settings with this Redis, through the proxy.
    fn settle(&self, settings: &mut Settings) {
        settings.sessions.redis_url = Some(self.way.url(&self.url).parse().unwrap());
        settings.sessions.session_redis_prefix.clone_from(&self.prefix);
        settings.revocation_stale_ms = 3_000;
    }

    async fn empty(&mut self) {
        let keys = [self.key("revocations"), self.key("log")];
        self.connection.del::<_, ()>(&keys).await.unwrap();
    }
}

async fn status(gateway: &TestGateway, core: &Service, session: &str) -> u16 {
    let token = core.issuer.token("member01", session);
    let answer = gateway.call_as(&token, "GET", "/api/auth/me").await;
    if answer.status == 503 {
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
    answer.status
}

async fn until_refused(gateway: &TestGateway, core: &Service, session: &str) {
    eventually(session, || async { status(gateway, core, session).await == 401 }).await;
}

async fn mesh() -> (Mesh, Service) {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    // Gateways that read the stream do not ask core.
    core.withhold_ended_sessions();
    (mesh, core)
}

#[tokio::test]
async fn an_ended_session_is_soon_refused_by_every_gateway() {
    let mut redis = Redis::within_reach().await;
    let (mesh, core) = mesh().await;
    redis.end_session("before").await;
    let one = mesh.gateway(|settings| redis.settle(settings)).await;
    let other = mesh.gateway(|settings| redis.settle(settings)).await;
    for gateway in [&one, &other] {
        assert_eq!(status(gateway, &core, "before").await, 401, "read from the beginning");
        assert_eq!(status(gateway, &core, "s1").await, 200);
    }
    let ended = Instant::now();
    redis.end_session("s1").await;
    tokio::join!(until_refused(&one, &core, "s1"), until_refused(&other, &core, "s1"));
    // Milliseconds as a rule; a busy machine must not fail it.
    assert!(ended.elapsed() < Duration::from_secs(10), "{:?}", ended.elapsed());

    // Entries that cannot be read are skipped.
    let mut odd = redis::cmd("XADD");
    odd.arg(redis.key("revocations")).arg("*").arg("session").arg("s3").arg("until").arg("soon");
    odd.query_async::<()>(&mut redis.connection).await.unwrap();
    redis.end_session("s2").await;
    until_refused(&one, &core, "s2").await;
    assert_eq!(status(&one, &core, "s3").await, 200);
    redis.empty().await;
}

#[tokio::test]
async fn revocations_during_a_disconnection_are_read_after_it() {
    let mut redis = Redis::within_reach().await;
    let (mesh, core) = mesh().await;
    let serving = mesh.gateway(|settings| redis.settle(settings)).await;
    let denying = mesh
        .gateway(|settings| {
            redis.settle(settings);
            settings.revocation_when_stale = StalePolicy::Deny;
        })
        .await;
    redis.end_session("s0").await;
    for gateway in [&serving, &denying] {
        until_refused(gateway, &core, "s0").await;
    }
    for round in 0..3 {
        redis.way.close().await;
        let ended: Vec<_> = (0..20).map(|n| format!("s-{round}-{n}")).collect();
        for session in &ended {
            redis.end_session(session).await;
        }
        eventually("the list is stale", || async { status(&denying, &core, "open").await == 503 })
            .await;
        // Known sessions stay known: no request is answered 401.
        assert_eq!(status(&serving, &core, "open").await, 200);
        assert_eq!(status(&serving, &core, "s0").await, 401);
        assert_eq!(status(&serving, &core, &ended[0]).await, 200, "not heard of yet");
        redis.way.open().await;
        for session in &ended {
            until_refused(&serving, &core, session).await;
            until_refused(&denying, &core, session).await;
        }
        assert_eq!(status(&serving, &core, "open").await, 200);
        assert_eq!(status(&denying, &core, "open").await, 200);
    }
    redis.empty().await;
}

/// The connection stays open and nothing comes over it, as when the machine of Redis is gone.
#[tokio::test]
async fn a_redis_that_falls_silent_is_noticed_and_nothing_is_missed() {
    let mut redis = Redis::within_reach().await;
    let (mesh, core) = mesh().await;
    let denying = mesh
        .gateway(|settings| {
            redis.settle(settings);
            settings.revocation_when_stale = StalePolicy::Deny;
        })
        .await;
    let serving = mesh.gateway(|settings| redis.settle(settings)).await;
    assert_eq!(status(&denying, &core, "open").await, 200);
    redis.way.drop_responses();
    redis.end_session("s1").await;
    eventually("the list is stale", || async { status(&denying, &core, "open").await == 503 })
        .await;
    assert_eq!(status(&serving, &core, "open").await, 200);
    redis.way.cut().await;
    for gateway in [&denying, &serving] {
        until_refused(gateway, &core, "s1").await;
        assert_eq!(status(gateway, &core, "open").await, 200);
    }
    redis.empty().await;
}

#[tokio::test]
async fn a_gateway_that_starts_without_redis_waits_and_answers_no_401() {
    let mut redis = Redis::unreachable().await;
    let (mesh, core) = mesh().await;
    redis.end_session("s1").await;
    let gateway = mesh
        .starting_gateway(|settings| {
            redis.settle(settings);
            settings.revocation_stale_ms = 60_000;
        })
        .await;
    eventually("all but the sessions is there", || async {
        let unready = gateway.get("/readyz").await.body["unready"].clone();
        unready.get("sessions").is_some() && unready.as_object().unwrap().len() == 1
    })
    .await;
    assert_eq!(gateway.get("/readyz").await.status, 503);
    assert_eq!(status(&gateway, &core, "open").await, 503);
    assert_eq!(status(&gateway, &core, "s1").await, 503);
    assert_eq!(gateway.get("/api/users").await.status, 200);
    redis.way.open().await;
    eventually("the gateway is ready", || async { gateway.get("/readyz").await.status == 200 })
        .await;
    assert_eq!(status(&gateway, &core, "open").await, 200);
    assert_eq!(status(&gateway, &core, "s1").await, 401);
    redis.empty().await;
}

#[tokio::test]
async fn a_stream_that_was_lost_is_read_anew_and_what_had_ended_stays_ended() {
    let mut redis = Redis::within_reach().await;
    let (mesh, core) = mesh().await;
    let gateway = mesh.gateway(|settings| redis.settle(settings)).await;
    redis.end_session("s1").await;
    until_refused(&gateway, &core, "s1").await;
    // Emptied, and its clock is behind: the new entries' ids are below the old ones.
    redis.empty().await;
    redis.append("log-b", "5-0", "s2").await;
    until_refused(&gateway, &core, "s2").await;
    redis.append("log-b", "5-1", "s3").await;
    until_refused(&gateway, &core, "s3").await;
    // The same stream, shorter, as after a fail-over to a replica that lagged behind.
    let stream = redis.key("revocations");
    redis.connection.del::<_, ()>(&stream).await.unwrap();
    redis.append("log-b", "3-0", "s4").await;
    until_refused(&gateway, &core, "s4").await;
    // A new stream whose ids are above all of the old one's.
    redis.empty().await;
    redis.append("log-c", "4-0", "s5").await;
    redis.append("log-c", "9-0", "s6").await;
    until_refused(&gateway, &core, "s5").await;
    until_refused(&gateway, &core, "s6").await;
    assert_eq!(status(&gateway, &core, "s1").await, 401);
    assert_eq!(status(&gateway, &core, "open").await, 200);
    redis.empty().await;
}

#[tokio::test]
async fn a_long_stream_is_read_to_its_end_before_anybody_is_let_in() {
    let mut redis = Redis::within_reach().await;
    let (mesh, core) = mesh().await;
    let (stream, until) = (redis.key("revocations"), Utc::now() + TimeDelta::minutes(10));
    let mut many = redis::pipe();
    for n in 0..2_500 {
        many.cmd("XADD").arg(&stream).arg("*").arg("session").arg(format!("s{n}"));
        many.arg("until").arg(until.timestamp_micros()).ignore();
    }
    many.query_async::<()>(&mut redis.connection).await.unwrap();
    let gateway = mesh.gateway(|settings| redis.settle(settings)).await;
    for session in ["s0", "s999", "s1000", "s2499"] {
        assert_eq!(status(&gateway, &core, session).await, 401, "{session}");
    }
    assert_eq!(status(&gateway, &core, "open").await, 200);
    redis.empty().await;
}
