//! The service on a database server that starts late, becomes unreachable and recovers.

use std::time::Instant;

use sqlx::Connection as _;
use tokio::time::{sleep, timeout};
use tourin_core::MysqlUrl;
use tourin_registry::testing::{gateway_client, url};
use tourin_shared_events::events::{BookmarkTourspot, Event as _};
use tourin_shared_events::mysql::testing::TestDatabase;
use tourin_testbed::{Cut, Proxy, eventually_within, free_address};

use super::*;

/// Settings with the database behind the proxy. Keep the folder.
fn settings_by(way: &Proxy, home: &TestDatabase) -> (Settings, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path(), &["--no-demo"]);
    settings.database.server.mysql_url = Some(home.url_through(&way.address.to_string()).into());
    (settings, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_the_database_and_an_outage_is_survived() {
    let home = TestDatabase::create().await;
    let way = Proxy::closed_to(TestDatabase::authority());
    let (mut settings, _dir) = settings_by(&way, &home);
    let shown = settings.database.mysql().unwrap().to_string();
    settings.listen = free_address();
    let address = settings.listen;
    let starting = tokio::spawn(Running::start(settings));

    let client = tourin_chassis::http_client::client(None).unwrap();
    let ask = async |path: &str| client.get(format!("http://{address}{path}")).send().await;
    eventually_within(RECOVERY, "it answers", async || ask("/healthz").await).await;
    assert_eq!(read(ask("/healthz").await.unwrap()).await.0, 200, "the process is well");
    let (status, unready) = read(ask("/readyz").await.unwrap()).await;
    let reason = unready["unready"]["database"].as_str().unwrap();
    assert_eq!(status, 503);
    assert_eq!(reason, format!("waiting for mysql at {shown}"), "what for, and no password");
    let gateway = gateway_client("core");
    let early = gateway.get(url(address, "/api/tour-spots")).send().await.unwrap();
    assert_eq!(early.status(), 503);
    assert!(early.headers().contains_key("retry-after"));
    assert!(!starting.is_finished(), "it waits");

    way.open().await;
    let core = timeout(RECOVERY, starting).await.unwrap().unwrap();
    assert_eq!(core.get("/readyz").await.0, 200);
    assert_eq!(core.post("/api/auth/signup", hana()).await.0, 201);

    way.close().await;
    let unready = core.until_status("/readyz", 503).await;
    assert!(unready.to_string().contains("database"), "{unready}");
    let answer = core.client.get(core.url("/api/tour-spots")).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(core.post("/api/auth/signup", hana()).await.0, 503);
    assert_eq!(core.get("/healthz").await.0, 200, "the process is well");

    way.open().await;
    core.until_status("/readyz", 200).await;
    core.until_status("/api/tour-spots", 200).await;
    let credentials = json!({"id": "hana12345", "password": "sea-breeze1!"});
    assert_eq!(core.post("/api/auth/login", credentials).await.0, 200);
    assert!(core.stop().await < Duration::from_secs(12));
    home.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closed_between_requests_is_not_an_error() {
    let home = TestDatabase::create().await;
    let way = Proxy::open_to(TestDatabase::authority()).await;
    let (settings, _dir) = settings_by(&way, &home);
    let core = Running::start(settings).await;
    assert_eq!(core.post("/api/auth/signup", hana()).await.0, 201);
    way.cut().await;
    // Longer than a connection is used without a check.
    sleep(Duration::from_millis(1_200)).await;
    let credentials = json!({"id": "hana12345", "password": "sea-breeze1!"});
    assert_eq!(core.post("/api/auth/login", credentials).await.0, 200);
    assert_eq!(core.get("/api/users/hana12345").await.0, 200);
    core.stop().await;
    home.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_on_one_database_are_one_service() {
    let home = TestDatabase::create().await;
    let way = Proxy::open_to(TestDatabase::authority()).await;
    let (mut with_catalogue, _one) = settings_by(&way, &home);
    with_catalogue.no_demo = false;
    let mut other = with_catalogue.clone();
    let two = tempfile::tempdir().unwrap();
    other.data_dir = two.path().to_owned();
    let (one, other) = tokio::join!(Running::start(with_catalogue), Running::start(other));
    assert_eq!(one.post("/api/auth/signup", hana()).await.0, 201);
    let credentials = json!({"id": "hana12345", "password": "sea-breeze1!"});
    assert_eq!(other.post("/api/auth/login", credentials).await.0, 200);
    let spots = one.get("/api/tour-spots?query=%EA%B2%BD%EB%B3%B5%EA%B6%81").await.1;
    assert!(!spots.as_array().unwrap().is_empty());
    assert_eq!(other.get("/api/tour-spots?query=%EA%B2%BD%EB%B3%B5%EA%B6%81").await.1, spots);
    one.stop().await;
    other.stop().await;
    home.remove().await;
}

/// The connection breaks while the server commits, so the outcome is unknown. The client gets no
/// success, and a retry ends in one bookmark with one event.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_outcome_is_unknown_is_never_reported_as_done() {
    let home = TestDatabase::create().await;
    let way = Proxy::open_to(TestDatabase::authority()).await;
    let (mut settings, _dir) = settings_by(&way, &home);
    settings.no_demo = false;
    let core = Running::start(settings).await;
    assert_eq!(core.post("/api/auth/signup", hana()).await.0, 201);
    for (spot, cut, was_committed) in [(1, Cut::BeforeRequest, 404), (2, Cut::AfterRequest, 200)] {
        // Not the COMMIT of another connection: core reads its outbox at the same time.
        way.cut_at(BookmarkTourspot::TYPE.as_bytes(), b"COMMIT", cut);
        let answer = core.bookmark("hana12345", spot).await;
        assert_eq!(answer.status(), 503, "{cut:?}");
        assert!(answer.headers().contains_key("retry-after"));
        let path = format!("/api/users/hana12345/bookmarks/{spot}");
        assert_eq!(core.get(&path).await.0, was_committed, "{cut:?}: the cut is where it is to be");
        assert_eq!(core.bookmark("hana12345", spot).await.status(), 201, "{cut:?}: again");
        assert_eq!(core.get(&path).await.0, 200);
    }
    let mine = |spot: &str| ("hana12345".to_owned(), spot.to_owned());
    assert_eq!(core.bookmark_events().await, [mine("1"), mine("2")]);
    core.stop().await;
    home.remove().await;
}

/// Another transaction locks the member for longer than the server's lock time-out.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_waited_for_in_vain_is_waited_for_again() {
    let home = TestDatabase::create().await;
    let way = Proxy::open_to(TestDatabase::authority()).await;
    let (mut settings, _dir) = settings_by(&way, &home);
    settings.no_demo = false;
    let core = Running::start(settings).await;
    assert_eq!(core.post("/api/auth/signup", hana()).await.0, 201);
    let options = home.url().options();
    let mut other = sqlx::MySqlConnection::connect_with(options).await.unwrap();
    let mut held = other.begin().await.unwrap();
    sqlx::query("SELECT id FROM members FOR UPDATE").fetch_all(&mut *held).await.unwrap();
    let began = Instant::now();
    let (answer, ()) = tokio::join!(core.bookmark("hana12345", 1), async {
        // The server gives up after 3 s.
        sleep(Duration::from_millis(3_500)).await;
        held.rollback().await.unwrap();
    });
    assert_eq!(answer.status(), 201);
    assert!(began.elapsed() > Duration::from_secs(3));
    assert_eq!(core.bookmark_events().await.len(), 1);
    core.stop().await;
    home.remove().await;
}

/// Clients that disconnect during a search or a bookmark leave no broken connection behind.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_cost_no_connection() {
    let home = TestDatabase::create().await;
    let way = Proxy::open_to(TestDatabase::authority()).await;
    let (mut settings, _dir) = settings_by(&way, &home);
    settings.no_demo = false;
    let core = Running::start(settings).await;
    assert_eq!(core.post("/api/auth/signup", hana()).await.0, 201);
    let map = "/api/tour-spots/map?minLat=33&minLng=124&maxLat=39&maxLng=132&query=";
    let mut impatient = tokio::task::JoinSet::new();
    for number in 0..400_u64 {
        let (client, url) = (core.client.clone(), core.url(&format!("{map}{number}")));
        impatient.spawn(async move {
            let patience = Duration::from_micros(200 + number * 37 % 5_000);
            // Most clients disconnect before the response, on purpose.
            drop(timeout(patience, client.get(url).send()).await);
        });
    }
    impatient.join_all().await;
    for number in 0..64 {
        let (status, body) = core.get(&format!("{map}a{number}")).await;
        assert_eq!(status, 200, "{body}");
    }
    assert_eq!(core.bookmark("hana12345", 1).await.status(), 201);
    assert!(core.stop().await < Duration::from_secs(12));
    home.remove().await;
}

#[tokio::test(start_paused = true)]
async fn an_operators_command_does_not_wait_for_ever() {
    let nobody = free_address();
    let url: MysqlUrl = format!("mysql://root:hunter2@{nobody}/tourin").parse().unwrap();
    let spots = tourin_core::open_spots_on_server(&url).await.err().unwrap();
    let outbox = tourin_core::open_outbox_on_server(&url).await.err().unwrap();
    for error in [spots, outbox] {
        let error = format!("{error:#} {error:?}");
        assert!(error.contains(&format!("{nobody}/tourin did not answer within 10s")), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
