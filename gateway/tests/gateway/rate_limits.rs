//! Rate limits, at one gateway and over several through a real Redis.

use std::time::Duration;

use tempfile::TempDir;
use tourin_testbed::{Proxy, Server, User, eventually, given_to};

use crate::harness::{Mesh, TestGateway};

const TABLE: &str = r#"
[[route]]
path = "/api/users"
service = "core"
methods = { GET = "public" }

[[route.rate_limit]]
by = "address"
per_minute = 1
burst = 6
shared = true

[[route]]
path = "/api/auth/me"
service = "core"
methods = { GET = "session" }
rate_per_minute = 100

[[route.rate_limit]]
by = "member"
per_minute = 1
burst = 2
shared = true

# Wakes the counting.
[[route]]
path = "/api/tour-spots"
service = "core"
methods = { GET = "public" }

[[route.rate_limit]]
by = "route"
per_minute = 1000000
shared = true
"#;

/// Gateways that share the counts under one prefix of the test bed's Redis, each behind the same proxy.
struct Shared {
    redis: Proxy,
    url: String,
    prefix: String,
    routes: TempDir,
}

impl Shared {
    async fn new() -> Self {
        let url = given_to(User::Gateway, Server::Redis);
        let routes = tempfile::tempdir().unwrap();
        std::fs::write(routes.path().join("routes.toml"), TABLE).unwrap();
        let prefix = format!("test-{}", uuid::Uuid::new_v4().simple());
        Self { redis: Proxy::open_to_url(&url).await, url, prefix, routes }
    }

    async fn gateway(&self, mesh: &Mesh) -> TestGateway {
        let gateway = mesh
            .gateway(|settings| {
                settings.routes = Some(self.routes.path().join("routes.toml"));
                settings.sessions.redis_url = Some(self.redis.url(&self.url).parse().unwrap());
                settings.sessions.session_redis_prefix.clone_from(&self.prefix);
                // A call that Redis answers later than that is counted by one gateway alone.
                settings.shared_limit_timeout = Duration::from_secs(5);
            })
            .await;
        until_shared(&gateway).await;
        gateway
    }
}

async fn is_shared(gateway: &TestGateway) -> bool {
    assert_eq!(gateway.get("/api/tour-spots").await.status, 200);
    gateway.metrics().await.contains("tourin_gateway_shared_rate_limits 1")
}

async fn until_shared(gateway: &TestGateway) {
    eventually("counts are shared", || async { is_shared(gateway).await }).await;
}

#[tokio::test]
async fn two_gateways_count_a_client_together() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let shared = Shared::new().await;
    let gateways = [shared.gateway(&mesh).await, shared.gateway(&mesh).await];

    let mut left = Vec::new();
    for call in 0..12 {
        let answer = gateways[call % 2].get("/api/users").await;
        assert_eq!(answer.header("ratelimit-policy"), Some("\"address\";q=1;w=60"));
        let state = answer.header("ratelimit").unwrap();
        let (count, reset) =
            state.strip_prefix("\"address\";r=").unwrap().split_once(";t=").unwrap();
        left.push((answer.status, count.parse::<u32>().unwrap()));
        assert!((1..=360).contains(&reset.parse::<u32>().unwrap()), "{state}");
        if answer.status == 429 {
            answer.assert_refused(429, "rate_limited");
            let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=60).contains(&wait), "{wait}");
        }
    }
    let expected: Vec<_> = (0..6).rev().map(|left| (200, left)).chain([(429, 0); 6]).collect();
    assert_eq!(left, expected);

    // A member is one caller at both, and another member another one.
    let me = |gateway: usize, member: &str| {
        let token = core.issuer.token(member, "s1");
        let gateway = &gateways[gateway];
        async move { gateway.call_as(&token, "GET", "/api/auth/me").await.status }
    };
    assert_eq!([me(0, "member01").await, me(1, "member01").await], [200, 200]);
    assert_eq!([me(0, "member01").await, me(1, "member01").await], [429, 429]);
    assert_eq!(me(1, "member02").await, 200);
    // Who has no session is refused for that.
    gateways[0].get("/api/auth/me").await.assert_refused(401, "unauthenticated");
}

#[tokio::test]
async fn without_redis_each_gateway_counts_alone_until_it_is_back() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    let shared = Shared::new().await;
    let gateways = [shared.gateway(&mesh).await, shared.gateway(&mesh).await];

    shared.redis.close().await;
    for gateway in &gateways {
        eventually("it notices", || async { !is_shared(gateway).await }).await;
        let mut allowed = 0;
        for _ in 0..8 {
            let status = gateway.get("/api/users").await.status;
            assert!([200, 429].contains(&status), "{status}");
            allowed += usize::from(status == 200);
        }
        assert_eq!(allowed, 6, "the whole limit at each");
    }
    shared.redis.open().await;
    for gateway in &gateways {
        until_shared(gateway).await;
    }
}
