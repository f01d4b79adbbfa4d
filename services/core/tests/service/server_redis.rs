//! The service with sessions on a Redis that starts late, becomes unreachable and recovers.

use redis::AsyncCommands as _;
use tokio::time::timeout;
use tourin_shared_events::mysql::testing::TestDatabase;
use tourin_testbed::{
    Proxy, Server, User, contains, eventually_within, free_address, given, given_to,
};

use super::*;

/// A test's own database and prefix, and a proxy to Redis.
struct TestServers {
    database: TestDatabase,
    prefix: String,
    url: String,
    way: Proxy,
}

impl TestServers {
    async fn new() -> Self {
        let url = given_to(User::Core, Server::Redis);
        let way = Proxy::closed_to_url(&url);
        let prefix = format!("test-{}", uuid::Uuid::new_v4().simple());
        Self { database: TestDatabase::create().await, prefix, url, way }
    }

    /// Settings of a service on both. Keep the folder.
    fn settings(&self) -> (Settings, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path(), &["--no-demo"]);
        settings.database.server.mysql_url = Some(self.database.url().clone().into());
        settings.database.sessions.redis_url = Some(self.way.url(&self.url).parse().unwrap());
        settings.database.sessions.session_redis_prefix.clone_from(&self.prefix);
        (settings, dir)
    }

    async fn remove(self) {
        let client = redis::Client::open(given(Server::Redis)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut found =
            connection.scan_match::<_, Vec<u8>>(format!("{{{}}}:*", self.prefix)).await.unwrap();
        let mut keys = Vec::new();
        while let Some(key) = found.next_item().await {
            keys.push(key.unwrap());
        }
        drop(found);
        for key in keys {
            connection.del::<_, ()>(key).await.unwrap();
        }
        self.database.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_redis_and_an_outage_ends_no_session() {
    let home = TestServers::new().await;
    let (mut settings, _dir) = home.settings();
    settings.listen = free_address();
    let ready = format!("http://{}/readyz", settings.listen);
    let named = format!("redis at {}", home.way.address);
    let starting = tokio::spawn(Running::start(settings));
    let client = tourin_chassis::http_client::client(None).unwrap();
    eventually_within(RECOVERY, "it says that it waits for redis", async || {
        let answer = client.get(&ready).send().await.map_err(|error| error.to_string())?;
        let (_, body) = read(answer).await;
        contains(body["unready"]["database"].to_string(), &named)
    })
    .await;
    assert!(!starting.is_finished(), "it waits");
    home.way.open().await;
    let core = timeout(RECOVERY, starting).await.unwrap().unwrap();
    assert_eq!(core.get("/readyz").await.0, 200);
    assert_eq!(core.post("/api/auth/signup", hana()).await.0, 201);
    let credentials = json!({"id": "hana12345", "password": "sea-breeze1!"});
    let (status, tokens) = core.post("/api/auth/login", credentials.clone()).await;
    assert_eq!(status, 200, "{tokens}");
    let refresh = json!({"refreshToken": tokens["refreshToken"]});

    home.way.close().await;
    let unready = core.until_status("/readyz", 503).await;
    assert!(unready["unready"]["redis"].is_string(), "{unready}");
    for (path, body) in
        [("/api/auth/login", credentials.clone()), ("/api/auth/reissue", refresh.clone())]
    {
        let answer = core.client.post(core.url(path)).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 503, "{path}");
        assert!(answer.headers().contains_key("retry-after"), "{path}");
    }
    // Calls without a session still work.
    assert_eq!(core.get("/api/users/hana12345").await.0, 200);
    assert_eq!(core.get("/api/tour-spots").await.0, 200);

    home.way.open().await;
    core.until_status("/readyz", 200).await;
    let (status, renewed) = core.post("/api/auth/reissue", refresh).await;
    assert_eq!(status, 200, "the session was only unreachable: {renewed}");
    assert_eq!(core.post("/api/auth/login", credentials).await.0, 200);
    assert!(core.stop().await < Duration::from_secs(12));
    home.remove().await;
}

#[tokio::test]
async fn redis_without_a_database_on_a_server_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path(), &[]);
    settings.database.sessions.redis_url = Some("redis://user:hunter2@127.0.0.1".parse().unwrap());
    let error = Core::build(settings, alone()).await.err().unwrap();
    let error = format!("{error:#} {error:?}");
    assert!(error.contains("--redis-url needs --mysql-url"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}
