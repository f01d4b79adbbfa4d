//! The suite over MySQL and Redis, on real servers, and scenarios where the two stores disagree.

mod shared;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, TestRunner};
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tourin_chassis::clock::ManualClock;
use tourin_chassis::redis::RedisUrl;
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::mysql::PoolSizes;
use tourin_shared_events::mysql::testing::TestDatabase;
use tourin_shared_events::outbox::Wake;
use tourin_testbed::{Server, User, free_address, given, given_to};

use super::*;
use super::{accounts, clocks, races, rotation, sessions};
use crate::app::accounts::{Changed, PasswordChange};
use crate::app::session_store::Rotation;
use crate::domain::session::SessionTimes;
use crate::domain::token::Salt;
use crate::store::Store;
use crate::store::redis::{PendingRevocations, RedisSessions};

/// A test's own database and prefix, and a connection to Redis that can be cut. The store has the rights of core's
/// user at Redis; what is done behind its back has all rights.
struct TestStores {
    database: TestDatabase,
    url: String,
    server: String,
    prefix: String,
    behind: MultiplexedConnection,
    way: Option<(SocketAddr, Option<JoinHandle<()>>)>,
}

impl TestStores {
    async fn new() -> Self {
        let url = given_to(User::Core, Server::Redis);
        let client = redis::Client::open(given(Server::Redis)).unwrap();
        Self {
            database: TestDatabase::create().await,
            server: client.get_connection_info().addr().to_string(),
            url,
            prefix: format!("test-{}", uuid::Uuid::new_v4().simple()),
            behind: client.get_multiplexed_async_connection().await.unwrap(),
            way: None,
        }
    }

    /// With a proxy in front of Redis, which is open.
    async fn with_proxy() -> Self {
        let mut home = Self::new().await;
        home.way = Some((free_address(), None));
        home.open().await;
        home
    }

    async fn open(&mut self) {
        let server = self.server.clone();
        let (way, open) = self.way.as_mut().unwrap();
        let listener = TcpListener::bind(*way).await.unwrap();
        *open = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                let server = server.clone();
                connections.spawn(async move {
                    let mut to = TcpStream::connect(server).await.unwrap();
                    drop(copy_bidirectional(&mut from, &mut to).await);
                });
            }
        }));
    }

    async fn cut(&mut self) {
        let open = self.way.as_mut().unwrap().1.take().unwrap();
        open.abort();
        assert!(open.await.unwrap_err().is_cancelled());
    }

    fn redis_url(&self) -> RedisUrl {
        match &self.way {
            Some((way, _)) => self.url.replacen(&self.server, &way.to_string(), 1),
            None => self.url.clone(),
        }
        .parse()
        .unwrap()
    }

    async fn store(&self) -> MysqlRedisStore {
        let sizes = PoolSizes::default();
        let mysql = MysqlStore::open(self.database.url(), sizes, Wake::new()).await.unwrap();
        let redis = RedisSessions::new(&self.redis_url(), &self.prefix).unwrap();
        redis.wait().await.unwrap();
        MysqlRedisStore::new(mysql, redis, Arc::new(ManualClock::new(at(0))))
    }

    /// The keys without the prefix and its hash tag.
    async fn keys(&mut self, middle: &str) -> Vec<String> {
        let base = format!("{{{}}}:", self.prefix);
        let mut keys = Vec::new();
        let pattern = format!("{base}{middle}*");
        let mut found = self.behind.scan_match::<_, Vec<u8>>(pattern).await.unwrap();
        while let Some(key) = found.next_item().await {
            let key = String::from_utf8_lossy(&key.unwrap()).into_owned();
            keys.push(key.strip_prefix(&base).unwrap().to_owned());
        }
        keys.sort();
        keys.dedup();
        keys
    }

    fn key(&self, name: &str) -> String {
        format!("{{{}}}:{name}", self.prefix)
    }

    async fn remove(mut self) {
        let pattern = self.key("*");
        let mut found = self.behind.scan_match::<_, Vec<u8>>(pattern).await.unwrap();
        let mut keys = Vec::new();
        while let Some(key) = found.next_item().await {
            keys.push(key.unwrap());
        }
        drop(found);
        for key in keys {
            self.behind.del::<_, ()>(key).await.unwrap();
        }
        self.database.remove().await;
    }
}

macro_rules! suite {
    ($($part:ident :: $scenario:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $scenario() {
            let home = TestStores::new().await;
            $part::$scenario(home.store().await).await;
            home.remove().await;
        }
    )*};
}

every_scenario!(suite);

#[test]
fn tokens_rotate_as_the_model_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let home = runtime.block_on(TestStores::new());
    let store = runtime.block_on(home.store());
    let case = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 32, ..Config::default() });
    runner
        .run(&rotation::steps(), |steps| {
            // Each case, and each shrunk one, has its own member.
            case.set(case.get() + 1);
            let member = format!("member{:06}", case.get());
            runtime.block_on(rotation::answers_as_the_model_does(&store, &member, &steps));
            Ok(())
        })
        .unwrap();
    runtime.block_on(home.remove());
}

fn change(of: &Credentials, hash: &str, keep: SessionId) -> PasswordChange {
    PasswordChange {
        member: of.account.id.clone(),
        verified: of.hash.clone(),
        replacement: PasswordHash(hash.to_owned()),
        keep,
        token: RefreshToken::random().unwrap().hash(),
        revoked_until: at(1_000),
        now: at(10),
    }
}

#[tokio::test]
async fn a_crash_between_the_commit_and_redis_is_repaired() {
    let home = TestStores::new().await;
    let store = home.store().await;
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let here = log_in(&store, &hana, &policy, at(1)).await;
    let there = log_in(&store, &hana, &policy, at(2)).await;
    // Committed, but not settled in Redis.
    let successor = RefreshToken::random().unwrap();
    let change = PasswordChange { token: successor.hash(), ..change(&hana, "new", here.id) };
    let noted = store.mysql().change_password_and_note(&change).await;
    assert!(noted.unwrap().is_some());
    assert!(is_open(&store, &hana.account.id, there.id, at(11)).await);

    // Two settle concurrently; the session ends once.
    let (one, other) = tokio::join!(store.settle_pending(), store.settle_pending());
    assert!(one.unwrap() + other.unwrap() >= 1);
    assert!(!is_open(&store, &hana.account.id, there.id, at(11)).await);
    assert!(is_open(&store, &hana.account.id, here.id, at(11)).await);
    assert_eq!(revoked(&store, at(11)).await, [there.id]);
    assert_eq!(store.settle_pending().await.unwrap(), 0);
    let rotation = sessions::rotate(&store, &there.token, &policy, at(12)).await;
    assert_eq!(rotation, Rotation::Unknown);
    let rotation = sessions::rotate(&store, &here.token, &policy, at(12)).await;
    assert_eq!(rotation, Rotation::Unknown);
    let rotation = sessions::rotate(&store, &successor, &policy, at(12)).await;
    assert!(matches!(rotation, Rotation::Rotated { .. }), "{rotation:?}");
    home.remove().await;
}

#[tokio::test]
async fn endings_settled_in_any_order_end_the_same() {
    let home = TestStores::new().await;
    let store = home.store().await;
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let first = log_in(&store, &hana, &policy, at(1)).await;
    let noted = store.mysql().change_password_and_note(&change(&hana, "two", first.id)).await;
    assert!(noted.unwrap().is_some());
    let hana = Credentials { hash: PasswordHash("two".to_owned()), ..hana };
    let second = log_in(&store, &hana, &policy, at(2)).await;
    // The later change reaches Redis before the earlier one.
    let changed = store.change_password(change(&hana, "three", second.id)).await.unwrap();
    assert_eq!(changed, Changed::Changed { ended: vec![first.id] });
    assert_eq!(store.settle_pending().await.unwrap(), 1);
    assert!(is_open(&store, &hana.account.id, second.id, at(3)).await);
    assert!(!is_open(&store, &hana.account.id, first.id, at(3)).await);
    assert_eq!(revoked(&store, at(3)).await, [first.id]);
    home.remove().await;
}

/// The port returns `Unavailable`, not that the session does not exist.
#[track_caller]
fn assert_unavailable<T: std::fmt::Debug>(answer: Result<T, crate::app::StoreError>) {
    assert!(matches!(answer, Err(crate::app::StoreError::Unavailable(_))), "{answer:?}");
}

#[tokio::test]
async fn while_redis_is_down_nothing_is_lost_and_nothing_is_answered_401() {
    let mut home = TestStores::with_proxy().await;
    let store = home.store().await;
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let here = log_in(&store, &hana, &policy, at(1)).await;
    let there = log_in(&store, &hana, &policy, at(2)).await;
    let stop = Shutdown::new();
    let endings = tokio::spawn(PendingRevocations::new(store.clone()).run(stop.clone()));

    home.cut().await;
    let salt = Salt::random().unwrap();
    let next = here.token.successor(&salt).hash();
    assert_unavailable(store.rotate(&here.token.hash(), &salt, &next, &policy, at(3)).await);
    assert_unavailable(store.account(&hana.account.id, here.id, &policy, at(3)).await);
    assert_unavailable(store.end(&hana.account.id, here.id, true, at(1_000)).await);
    assert_unavailable(store.page_after(0, 10, at(3)).await);
    let open = OpenSession {
        member: hana.account.id.clone(),
        session: SessionId::new(),
        token: RefreshToken::random().unwrap().hash(),
        verified: hana.hash.clone(),
        rehashed: None,
        now: at(3),
    };
    assert_unavailable(store.open(open, &policy).await);
    assert!(store.sessions().write_probe().await.is_err());
    // The password changes without Redis; the sessions end when Redis is back.
    let changed = store.change_password(change(&hana, "new", here.id)).await.unwrap();
    assert_eq!(changed, Changed::Changed { ended: vec![] });

    home.open().await;
    let back = Instant::now();
    loop {
        let open = store.account(&hana.account.id, there.id, &policy, at(11)).await;
        if matches!(open, Ok(None)) {
            break;
        }
        assert!(back.elapsed() < Duration::from_secs(40), "{open:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_open(&store, &hana.account.id, here.id, at(11)).await);
    assert_eq!(revoked(&store, at(11)).await, [there.id]);
    assert!(store.sessions().write_probe().await.is_ok());
    // A connection that broke between two requests causes no error.
    home.cut().await;
    home.open().await;
    assert!(is_open(&store, &hana.account.id, here.id, at(11)).await);
    stop.begin();
    endings.await.unwrap();
    home.remove().await;
}

#[tokio::test]
async fn every_key_is_of_one_slot_goes_away_by_itself_and_holds_no_token() {
    let mut home = TestStores::new().await;
    let store = home.store().await;
    let policy = SessionPolicy { remembered_tokens: 3, ..SessionPolicy::default() };
    let hana = sign_up(&store, "hana12345").await;
    let session = log_in(&store, &hana, &policy, at(0)).await;
    let mut token = session.token.clone();
    for n in 0..10 {
        let salt = Salt::random().unwrap();
        let next = token.successor(&salt);
        store.rotate(&token.hash(), &salt, &next.hash(), &policy, at(n)).await.unwrap();
        token = next;
    }
    let count = async |home: &mut TestStores, kind: &str| home.keys(kind).await.len();
    assert_eq!(count(&mut home, "token:").await, 4, "the current one and those remembered");
    let successor = RefreshToken::random().unwrap();
    let change = PasswordChange { token: successor.hash(), ..change(&hana, "new", session.id) };
    store.change_password(change).await.unwrap();
    assert_eq!(count(&mut home, "token:").await, 1, "the new one");
    assert_eq!(count(&mut home, "").await, 1 + 4, "session, family, member, epoch");

    let pattern = home.key("*");
    let mut all = Vec::new();
    let mut found = home.behind.scan_match::<_, Vec<u8>>(pattern).await.unwrap();
    while let Some(key) = found.next_item().await {
        all.push(key.unwrap());
    }
    drop(found);
    let day_ms = 24 * 3_600 * 1_000;
    for key in &all {
        let ttl: i64 = home.behind.pttl(key).await.unwrap();
        assert!((1..=30 * day_ms).contains(&ttl), "{ttl}: {}", String::from_utf8_lossy(key));
        let value: Vec<u8> =
            redis::cmd("DUMP").arg(key).query_async(&mut home.behind).await.unwrap();
        for secret in [&session.token, &token, &successor] {
            let text = secret.expose();
            let raw =
                base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, &text)
                    .unwrap();
            for needle in [text.as_bytes(), &raw] {
                assert!(!value.windows(needle.len()).any(|window| window == needle));
                assert!(!key.windows(needle.len()).any(|window| window == needle));
            }
        }
    }
    // Of an ended session, only what gateways need remains.
    store.end(&hana.account.id, session.id, true, at(1_000)).await.unwrap();
    assert_eq!(home.keys("").await, ["epoch:hana12345", "log", "revocations"]);
    home.remove().await;
}

#[tokio::test]
async fn a_session_below_the_members_epoch_is_never_renewed() {
    let mut home = TestStores::new().await;
    let store = home.store().await;
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let session = log_in(&store, &hana, &policy, at(0)).await;
    let epoch = home.key("epoch:hana12345");
    home.behind.set::<_, _, ()>(epoch, 7).await.unwrap();
    let rotation = sessions::rotate(&store, &session.token, &policy, at(1)).await;
    assert_eq!(rotation, Rotation::Unknown);
    assert_eq!(revoked(&store, at(1)).await, [session.id]);
    // The account still has the same password: it adopts the epoch.
    let next = log_in(&store, &hana, &policy, at(2)).await;
    assert!(is_open(&store, &hana.account.id, next.id, at(3)).await);
    home.remove().await;
}

#[tokio::test]
async fn a_repeated_opening_ends_sessions_once() {
    let home = TestStores::new().await;
    let store = home.store().await;
    let policy = SessionPolicy { per_member: 2, ..SessionPolicy::default() };
    let hana = sign_up(&store, "hana12345").await;
    let first = log_in(&store, &hana, &policy, at(0)).await;
    let open = OpenSession {
        member: hana.account.id.clone(),
        session: SessionId::new(),
        token: RefreshToken::random().unwrap().hash(),
        verified: hana.hash.clone(),
        rehashed: None,
        now: at(1),
    };
    for _ in 0..2 {
        let opened = store.open(open.clone(), &policy).await.unwrap();
        assert_eq!(opened, Opened::Open { ended: vec![] });
    }
    assert!(is_open(&store, &hana.account.id, first.id, at(2)).await);
    assert!(is_open(&store, &hana.account.id, open.session, at(2)).await);
    home.remove().await;
}

#[tokio::test]
async fn a_repeated_rotation_is_not_a_reuse_even_without_a_grace() {
    let home = TestStores::new().await;
    let store = home.store().await;
    let policy = SessionPolicy { grace: TimeDelta::zero(), ..SessionPolicy::default() };
    let hana = sign_up(&store, "hana12345").await;
    let session = log_in(&store, &hana, &policy, at(0)).await;
    let salt = Salt::random().unwrap();
    let next = session.token.successor(&salt);
    for time in ["first", "again"] {
        let (presented, next) = (session.token.hash(), next.hash());
        let rotation = store.rotate(&presented, &salt, &next, &policy, at(1)).await.unwrap();
        let times = SessionTimes { started_at: at(0), renewed_at: at(1) };
        let member = hana.account.id.clone();
        assert_eq!(rotation, Rotation::Rotated { member, session: session.id, times }, "{time}");
    }
    assert!(matches!(
        sessions::rotate(&store, &next, &policy, at(2)).await,
        Rotation::Rotated { .. }
    ));
    // Another client with the same token is refused.
    let stolen = sessions::rotate(&store, &next, &policy, at(2)).await;
    assert_eq!(stolen, Rotation::Reused { session: session.id });
    home.remove().await;
}

#[tokio::test]
async fn the_search_index_is_kept_in_memory_beside_redis_too() {
    let home = TestStores::new().await;
    let store = home.store().await;
    let stop = Shutdown::new();
    let keeping = tokio::spawn(Store::MysqlRedis(store.clone()).keep_search_index(stop.clone()));
    let read = async {
        while store.mysql().search_index().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(40), read).await.expect("it is never read");
    assert_eq!(store.mysql().search_index().map(|(spots, _)| spots), Some(0));
    stop.begin();
    keeping.await.unwrap();
    home.remove().await;
}

#[tokio::test]
async fn an_unreachable_redis_does_not_expose_its_password() {
    let url: RedisUrl = "redis://user:hunter2@127.0.0.1:1".parse().unwrap();
    let redis = RedisSessions::new(&url, "test").unwrap();
    assert_eq!(redis.address(), "127.0.0.1:1");
    let error = redis.write_probe().await.unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"));
    let error = RedisSessions::new(&url, "a{b}").err().unwrap();
    let error = format!("{error:#} {error:?}");
    assert!(error.contains("--session-redis-prefix") && !error.contains("hunter2"), "{error}");
}
