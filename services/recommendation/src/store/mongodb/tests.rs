//! Tests beyond the ports' contracts: crashes, round trips, replicas.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use mongodb::bson::{Document, doc};
use tokio::io::AsyncReadExt as _;
use tourin_chassis::clock::ManualClock;
use tourin_testbed::Proxy;

use super::collections::{DEGREES, HOLDERS, MEMBERS};
use super::connection::{Connection, Statement};
use super::member::Member;
use super::recorder::{Recording, grow};
use super::{Documents, MongodbUrl, open_with};
use crate::app::ports::{HistoryEvent, HistoryOutcome, PortError, SpotState};
use crate::domain::interaction::{Change, ChangeOrder};
use crate::domain::spot::{Coordinates, Spot, SpotId};
use crate::operation::StoreMetrics;
use crate::store::HistoryRules;
use crate::test_servers;

/// A new database on the test bed's server.
pub(in crate::store) struct TestDatabase {
    pub(in crate::store) documents: Documents,
    name: String,
    now: DateTime<Utc>,
    rules: HistoryRules,
    connection: Connection,
}

impl TestDatabase {
    pub(in crate::store) async fn open(rules: HistoryRules, now: DateTime<Utc>) -> Self {
        let name = test_servers::unique();
        let documents = documents(&name, rules, now).await;
        documents.server.prepare().await.unwrap();
        let mut options =
            mongodb::options::ClientOptions::parse(test_servers::mongodb().expose()).await.unwrap();
        options.default_database = Some(name.clone());
        let connection = Connection::new(options, "unused", &StoreMetrics::default()).unwrap();
        // As at the end of a resync.
        connection.create_indexes(&super::spots::indexes()).await.unwrap();
        Self { documents, name, now, rules, connection }
    }

    /// The same database, opened by another replica of the service.
    async fn replica(&self) -> Documents {
        documents(&self.name, self.rules, self.now).await
    }

    pub(in crate::store) async fn drop(self) {
        self.connection.drop_database().await;
    }
}

async fn documents(database: &str, rules: HistoryRules, now: DateTime<Utc>) -> Documents {
    let clock = Arc::new(ManualClock::new(now));
    open_with(&test_servers::mongodb(), rules, clock, &StoreMetrics::default(), |options| {
        options.default_database = Some(database.to_owned());
    })
    .await
    .unwrap()
}

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn id(number: i64) -> SpotId {
    SpotId::new(number).unwrap()
}

async fn database() -> TestDatabase {
    TestDatabase::open(HistoryRules::default(), start()).await
}

fn event(member: &str, spot: i64, change: Change, seconds: i64) -> HistoryEvent {
    HistoryEvent {
        member: member.to_owned(),
        spot: id(spot),
        change,
        occurred: ChangeOrder { at: start() + TimeDelta::seconds(seconds), version: None },
        recorded_at: start() + TimeDelta::seconds(seconds),
    }
}

async fn degree(documents: &Documents, spot: i64) -> u64 {
    let degrees = documents.histories.degrees(&[id(spot)]).await.unwrap();
    degrees.get(&id(spot)).copied().unwrap_or_default()
}

/// Restores the member's pending effects.
async fn undo_acknowledgement(db: &TestDatabase, pending: &[Document]) {
    let update = doc! { "$set": { "pending": pending } };
    assert_eq!(db.connection.update_all(MEMBERS, doc! {}, update).await.unwrap(), 1);
}

#[tokio::test]
async fn the_next_change_after_a_crash_completes_pending_effects_without_counting_twice() {
    let db = database().await;
    let view = event("member1", 1, Change::Viewed, 1);
    assert_eq!(db.documents.histories.record(&view).await.unwrap(), HistoryOutcome::Applied);
    let degrees: Vec<Document> =
        db.connection.find(DEGREES, doc! {}, doc! {}, doc! {}, 0).await.unwrap();
    let op = degrees[0].get_array("counted").unwrap()[0].as_i64().unwrap();
    let members: Vec<Document> =
        db.connection.find(MEMBERS, doc! {}, doc! {}, doc! {}, 0).await.unwrap();
    let begun = doc! {
        "op": op,
        "seq": members[0].get_i64("seq").unwrap(),
        "spot": 1_i64,
        "growth": 1_i64,
        "live": true,
        "at": view.occurred.at.timestamp_micros(),
    };

    // A crash after the effects, but before their acknowledgement.
    undo_acknowledgement(&db, std::slice::from_ref(&begun)).await;
    assert_eq!(db.documents.histories.record(&view).await.unwrap(), HistoryOutcome::Stale);
    assert_eq!(degree(&db.documents, 1).await, 1);

    // A crash before the effects.
    undo_acknowledgement(&db, &[begun]).await;
    for collection in [DEGREES, HOLDERS] {
        db.connection.delete_all(collection, doc! {}).await.unwrap();
    }
    assert_eq!(degree(&db.documents, 1).await, 0);
    assert_eq!(db.documents.histories.record(&view).await.unwrap(), HistoryOutcome::Stale);
    assert_eq!(degree(&db.documents, 1).await, 1);
    let neighbourhood = db.documents.histories.neighbourhood(id(1), 9).await.unwrap();
    assert_eq!(neighbourhood.holders.len(), 1);
    let left: Vec<Document> = db
        .connection
        .find(MEMBERS, doc! { "pending": { "$size": 0 } }, doc! {}, doc! {}, 0)
        .await
        .unwrap();
    assert_eq!(left.len(), 1);
    db.drop().await;
}

#[tokio::test]
async fn the_oldest_unacknowledged_effect_of_a_popular_spot_is_counted_once() {
    let db = database().await;
    let events: Vec<_> =
        (0..300).map(|n| event(&format!("member{n}"), 1, Change::Viewed, n)).collect();
    for events in events.chunks(100) {
        join_all(events.iter().map(|event| db.documents.histories.record(event))).await;
    }
    assert_eq!(degree(&db.documents, 1).await, 300);
    let degrees: Vec<Document> =
        db.connection.find(DEGREES, doc! {}, doc! {}, doc! {}, 0).await.unwrap();
    // The oldest effect is still unacknowledged.
    let op = degrees[0].get_array("counted").unwrap()[0].as_i64().unwrap();
    let begun =
        doc! { "op": op, "seq": 1_i64, "spot": 1_i64, "growth": 1_i64, "live": true, "at": 1_i64 };
    let update = doc! { "$set": { "pending": [begun] } };
    let first = doc! { "_id": "member0" };
    assert_eq!(db.connection.update_all(MEMBERS, first, update).await.unwrap(), 1);
    assert_eq!(db.documents.histories.record(&events[0]).await.unwrap(), HistoryOutcome::Stale);
    assert_eq!(degree(&db.documents, 1).await, 300);
    db.drop().await;
}

#[tokio::test]
async fn effects_that_another_replica_has_counted_do_not_affect_the_others_of_the_group() {
    let db = database().await;
    let connection = db.connection.clone();
    let clock = Arc::new(ManualClock::new(start()));
    let groups = Recording { connection, rules: db.rules, clock };
    // More spots than one command takes statements.
    let spots = 150;
    let members: Vec<Member> = (0..3)
        .map(|n| {
            let mut member = Member::new(format!("member{n}"), 0);
            for spot in 0..spots {
                member.record(&event(&member.id, spot, Change::Viewed, 1));
            }
            member
        })
        .collect();
    // Another replica has counted a part of the second member's effects.
    let counted: Vec<_> = members[1]
        .new_effects
        .iter()
        .filter(|effect| effect.spot % 3 == 0)
        .filter_map(|effect| grow(effect.spot, &[effect]))
        .collect();
    assert_eq!(db.connection.upsert_where(DEGREES, &counted).await.unwrap().matched, 50);

    // A repetition has no further effect.
    for _ in 0..2 {
        groups.apply_effects(members.iter()).await.unwrap();
        for spot in 0..spots {
            assert_eq!(degree(&db.documents, spot).await, 3, "spot {spot}");
        }
    }
    db.drop().await;
}

#[tokio::test]
async fn replicas_that_change_the_same_members_lose_and_double_nothing() {
    let db = database().await;
    let replicas = [db.replica().await, db.replica().await];
    let members = ["member1", "member2", "member3"];
    let events: Vec<_> =
        (0..60).map(|n| event(members[n % 3], (n % 20) as i64, Change::Viewed, n as i64)).collect();
    // Every event reaches both replicas concurrently.
    let calls = events.iter().chain(&events).enumerate().map(|(n, event)| {
        let histories = Arc::clone(&replicas[n % 2].histories);
        let event = event.clone();
        tokio::spawn(async move { histories.record(&event).await.unwrap() })
    });
    let outcomes = join_all(calls).await;
    assert_eq!(outcomes.len(), 120);
    assert!(outcomes.iter().all(Result::is_ok));

    let mut sum = 0;
    for spot in 0..20 {
        sum += degree(&db.documents, spot).await;
    }
    let mut known = 0;
    for member in members {
        let profile = db.documents.histories.profile(member, 100).await.unwrap();
        assert_eq!(profile.recent.len(), profile.known.len());
        known += profile.known.len() as u64;
    }
    assert_eq!((sum, known), (60, 60));
    db.drop().await;
}

#[tokio::test]
async fn a_thousand_events_take_a_few_dozen_round_trips() {
    let db = database().await;
    let engine = db.documents.server.engine();
    let events: Vec<_> = (0..1_000)
        .map(|n| event(&format!("member{}", n % 200), n / 7, Change::Viewed, n))
        .collect();
    let before = engine.commands();
    let began = Instant::now();
    let outcomes = join_all(events.iter().map(|event| db.documents.histories.record(event))).await;
    assert!(outcomes.into_iter().all(|kept| kept.unwrap() == HistoryOutcome::Applied));
    let round_trips = engine.commands() - before;
    println!("1,000 events: {round_trips} round trips, {:?}", began.elapsed());
    assert!(round_trips <= 75, "{round_trips}");

    let spots: Vec<SpotState> = (0..400).map(|n| SpotState::Live(spot(n, 1, 37.0))).collect();
    let before = engine.commands();
    assert_eq!(db.documents.spots.merge(&spots).await.unwrap(), 400);
    assert_eq!(db.documents.spots.merge(&spots).await.unwrap(), 0);
    let round_trips = engine.commands() - before;
    println!("400 spots, twice: {round_trips} round trips");
    assert!(round_trips <= 14, "{round_trips}");
    db.drop().await;
}

fn spot(number: i64, version: u64, lat: f64) -> Spot {
    Spot {
        id: id(number),
        version,
        name: String::new(),
        address: String::new(),
        coordinates: Coordinates { lat, lng: 127.0 },
        image_url: None,
        tags: Vec::new(),
    }
}

#[tokio::test]
async fn of_many_concurrent_versions_the_highest_wins() {
    let db = database().await;
    let replicas = [db.replica().await, db.replica().await];
    let calls = (1..=40_u64).map(|version| {
        let spots = Arc::clone(&replicas[(version % 2) as usize].spots);
        tokio::spawn(async move {
            let state = SpotState::Live(spot(1, version, 37.0));
            spots.merge(&[state]).await.unwrap()
        })
    });
    let changed: usize = join_all(calls).await.into_iter().map(Result::unwrap).sum();
    assert!((1..=40).contains(&changed), "{changed}");
    let found = db.documents.spots.get_many(&[id(1)]).await.unwrap();
    assert_eq!(found[&id(1)].version, 40);
    db.drop().await;
}

#[tokio::test]
async fn replicas_that_read_the_catalogue_at_once_sweep_nothing_that_is_in_it() {
    let db = database().await;
    let replicas = [db.replica().await, db.replica().await];
    let reading = (0..8).map(|n| {
        let spots = Arc::clone(&replicas[n % 2].spots);
        tokio::spawn(async move {
            let resync = spots.begin_resync().await.unwrap();
            let catalogue: Vec<SpotState> =
                (1..=40).map(|n| SpotState::Live(spot(n, 1, 37.0))).collect();
            for page in catalogue.chunks(10) {
                spots.merge(page).await.unwrap();
            }
            (resync, spots.sweep(resync).await.unwrap())
        })
    });
    let resyncs: Vec<(u64, u64)> =
        join_all(reading).await.into_iter().map(Result::unwrap).collect();
    let numbers: HashSet<u64> = resyncs.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers.len(), 8, "a resync's number is its own");
    assert!(resyncs.iter().all(|(_, swept)| *swept == 0), "{resyncs:?}");
    // Spots that the current log does not mention are swept, whatever their resync.
    db.documents.spots.adopt_log("first").await.unwrap();
    db.documents.spots.adopt_log("second").await.unwrap();
    let anew = [SpotState::Live(spot(1, 0, 37.0))];
    assert_eq!(db.documents.spots.merge(&anew).await.unwrap(), 1);
    assert_eq!(db.documents.spots.sweep(0).await.unwrap(), 39);
    db.drop().await;
}

#[tokio::test]
async fn a_spot_with_invalid_coordinates_does_not_affect_the_others() {
    let db = database().await;
    let states = [91.0, f64::NAN, 37.0];
    let states: Vec<SpotState> = states
        .into_iter()
        .zip(1..)
        .map(|(lat, number)| SpotState::Live(spot(number, 1, lat)))
        .collect();
    assert_eq!(db.documents.spots.merge(&states).await.unwrap(), 3);
    let coordinates = Coordinates { lat: 37.0, lng: 127.0 };
    let near = db.documents.spots.near(coordinates, None, 9).await.unwrap();
    assert_eq!(near.iter().map(|spot| spot.id).collect::<Vec<_>>(), [id(3)]);
    assert_eq!(db.documents.spots.get_many(&[id(1), id(2)]).await.unwrap().len(), 2);
    db.drop().await;
}

#[tokio::test]
async fn preparing_again_changes_nothing() {
    let db = database().await;
    db.documents.server.prepare().await.unwrap();
    db.replica().await.server.prepare().await.unwrap();
    db.drop().await;
}

/// Even after many operations have timed out.
#[tokio::test]
async fn a_server_that_was_slow_for_a_short_time_is_available_again() {
    let proxy = Proxy::open_to_url(test_servers::mongodb().expose()).await;
    let url: MongodbUrl = proxy.url(test_servers::mongodb().expose()).parse().unwrap();
    let clock = Arc::new(ManualClock::new(start()));
    let documents =
        open_with(&url, HistoryRules::default(), clock, &StoreMetrics::default(), |options| {
            options.default_database = Some(test_servers::unique());
            // Otherwise the driver would connect to the server's own address, past the proxy.
            options.direct_connection = Some(true);
        })
        .await
        .unwrap();
    documents.spots.is_complete().await.unwrap();

    // Longer than a read may take.
    proxy.delay(Duration::from_millis(4_000));
    let read = join_all((0..200).map(|_| documents.spots.is_complete())).await;
    assert!(read.iter().all(|read| matches!(read, Err(PortError::Unavailable(_)))), "{read:?}");
    proxy.delay(Duration::ZERO);

    let before = Instant::now();
    while documents.spots.is_complete().await.is_err() {
        assert!(before.elapsed() < Duration::from_secs(40), "it is still unreachable");
    }
}

#[tokio::test]
async fn an_unreachable_server_is_unavailable_and_its_password_is_not_repeated() {
    let url: MongodbUrl =
        "mongodb://user:hunter2@127.0.0.1:1/?directConnection=true".parse().unwrap();
    let clock = Arc::new(ManualClock::new(start()));
    let documents =
        open_with(&url, HistoryRules::default(), clock.clone(), &StoreMetrics::default(), |_| {})
            .await
            .unwrap();
    assert_eq!(documents.server.address(), "127.0.0.1:1");
    let error = documents.histories.profile("member1", 1).await.unwrap_err();
    assert!(matches!(error, PortError::Unavailable(_)), "{error}");
    let event = event("member1", 1, Change::Viewed, 1);
    let error = documents.histories.record(&event).await.unwrap_err();
    assert!(matches!(error, PortError::Unavailable(_)), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_tls_url_connects_with_tls() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let url = format!("mongodb://user:hunter2@{addr}/?tls=true&directConnection=true");
    let clock = Arc::new(ManualClock::new(start()));
    let url: MongodbUrl = url.parse().unwrap();
    let documents =
        open_with(&url, HistoryRules::default(), clock.clone(), &StoreMetrics::default(), |_| {})
            .await
            .unwrap();
    let reading = tokio::spawn(async move { documents.histories.profile("member1", 1).await });
    let (mut client, _) = listener.accept().await.unwrap();
    let mut first = [0; 1];
    client.read_exact(&mut first).await.unwrap();
    assert_eq!(first[0], test_servers::TLS_HANDSHAKE);
    drop((client, listener));
    let error = reading.await.unwrap().unwrap_err();
    assert!(matches!(error, PortError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn passes_are_stored_and_the_servers_time_is_read() {
    let db = database().await;
    let passes = &db.documents.passes;
    let before = passes.times("things").await.unwrap();
    assert_eq!(before.last_pass, None);
    let apart = Utc::now() - before.server.expect("the server's time");
    assert!(apart.abs() < TimeDelta::seconds(10), "{apart}");
    passes.passed("things", start()).await.unwrap();
    passes.passed("things", start() + TimeDelta::seconds(7)).await.unwrap();
    let after = passes.times("things").await.unwrap();
    assert_eq!(after.last_pass, Some(start() + TimeDelta::seconds(7)));
    assert_eq!(passes.times("others").await.unwrap().last_pass, None);
    db.drop().await;
}

/// A deleted document of the same member may have had a higher `seq`, from a clock that was ahead.
#[tokio::test]
async fn a_returning_member_is_found_by_spot_whatever_the_earlier_seq() {
    let db = database().await;
    let histories = &db.documents.histories;
    let day = 24 * 3_600;
    histories.record(&event("member1", 1, Change::Bookmarked, 1)).await.unwrap();
    // A `seq` from a clock that was years ahead.
    let ahead = doc! { "$set": { "seq": i64::MAX / 4 } };
    assert_eq!(db.connection.update_all(MEMBERS, doc! {}, ahead).await.unwrap(), 1);
    histories.record(&event("member1", 1, Change::Unbookmarked, 2)).await.unwrap();
    histories.prune(start() + TimeDelta::days(40)).await.unwrap();
    let left: Vec<Document> =
        db.connection.find(MEMBERS, doc! {}, doc! {}, doc! {}, 0).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    // The pruning crashed before it reached this holder.
    let holder = Statement {
        query: doc! { "_id": "1:member1" },
        update: doc! { "$set": {
            "spot": 1_i64, "member": "member1", "live": false, "at": 2_i64, "seq": i64::MAX / 4 + 1,
        } },
    };
    db.connection.upsert_where(HOLDERS, &[holder]).await.unwrap();
    histories.record(&event("member1", 1, Change::Bookmarked, 41 * day)).await.unwrap();
    assert_eq!(histories.neighbourhood(id(1), 9).await.unwrap().holders.len(), 1);
    histories.record(&event("member1", 1, Change::Unbookmarked, 41 * day + 1)).await.unwrap();
    assert!(histories.neighbourhood(id(1), 9).await.unwrap().holders.is_empty());
    db.drop().await;
}
