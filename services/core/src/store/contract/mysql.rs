//! The suite over MySQL or MariaDB, on a real server.

use proptest::test_runner::{Config, TestRunner};
use sha2::{Digest, Sha256};
use tourin_shared_events::mysql::PoolSizes;
use tourin_shared_events::mysql::testing::TestDatabase;
use tourin_shared_events::outbox::Wake;
use tourin_shared_events::outbox::testing::recorded;

use super::*;
use super::{accounts, clocks, races, rotation, sessions, signals, visitor_keys};
use crate::store::mysql::MysqlStore;

async fn store(home: &TestDatabase) -> MysqlStore {
    MysqlStore::open(home.url(), PoolSizes::default(), Wake::new()).await.unwrap()
}

macro_rules! suite {
    ($($part:ident :: $scenario:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $scenario() {
            let home = TestDatabase::create().await;
            $part::$scenario(store(&home).await).await;
            home.remove().await;
        }
    )*};
}

every_scenario!(suite);

suite! {
    visitor_keys::a_days_key_is_one_and_is_gone_the_day_after,
    visitor_keys::a_clock_that_was_years_ahead_leaves_no_key_behind,
    signals::a_session_is_queued_once_whoever_reads_the_log,
    signals::a_signal_is_due_again_until_it_is_removed,
    signals::an_event_is_known_as_long_as_it_could_be_repeated,
}

#[test]
fn tokens_rotate_as_the_model_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let home = runtime.block_on(TestDatabase::create());
    let store = runtime.block_on(store(&home));
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

#[tokio::test]
async fn an_account_can_be_deleted_whose_id_an_earlier_version_gave_away_again() {
    let home = TestDatabase::create().await;
    let store = store(&home).await;
    let hana = sign_up(&store, "hana12345").await;
    sqlx::query("INSERT INTO deleted_ids (digest) VALUES (?)")
        .bind(&Sha256::digest("hana12345")[..])
        .execute(store.db.writer())
        .await
        .unwrap();
    assert!(store.delete(&hana.account.id, at(1_000), at(1)).await.unwrap().is_some());
    home.remove().await;
}

#[tokio::test]
async fn a_name_that_an_earlier_version_stored_is_found() {
    let home = TestDatabase::create().await;
    let store = store(&home).await;
    store.create(&credentials("hana12345", "Hana 하나"), at(0)).await.unwrap();
    sqlx::query("UPDATE members SET name_folded = NULL").execute(store.db.writer()).await.unwrap();
    for query in ["hana 하", "NA 하나"] {
        let query = crate::domain::search::SearchText::new(query).unwrap();
        let found = store.members(query.as_ref(), Default::default(), 1_000).await.unwrap();
        assert_eq!(found.total, 1, "{query:?}");
    }
    home.remove().await;
}

#[tokio::test]
async fn a_deletion_commits_with_its_event() {
    let home = TestDatabase::create().await;
    let store = store(&home).await;
    let hana = sign_up(&store, "hana12345").await;
    let mut heard = store.wake.listen();
    store.delete(&hana.account.id, at(1_000), at(3)).await.unwrap();
    heard.notified().await;
    let events = recorded(&store.outbox()).await;
    assert_eq!(events.last().unwrap().1.routing_key, "user.delete");
    home.remove().await;
}

#[tokio::test]
async fn data_and_log_id_survive_a_restart() {
    let home = TestDatabase::create().await;
    let before = store(&home).await;
    let hana = sign_up(&before, "hana12345").await;
    let log = RevocationLog::page_after(&before, 0, 1, at(0)).await.unwrap().log_id;
    before.close().await;
    let after = store(&home).await;
    assert_eq!(after.credentials(&hana.account.id).await.unwrap(), Some(hana));
    assert_eq!(RevocationLog::page_after(&after, 0, 1, at(0)).await.unwrap().log_id, log);
    home.remove().await;
}

/// Sessions are opened, renewed and ended and passwords changed concurrently, on few members.
/// Deadlocks are retried and not reported to callers.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_conflicting_transactions_all_succeed() {
    let home = TestDatabase::create().await;
    let store = store(&home).await;
    let policy = SessionPolicy { per_member: 3, ..SessionPolicy::default() };
    let mut members = Vec::new();
    for n in 0..2 {
        members.push(sign_up(&store, &format!("member000{n}")).await);
    }
    let tasks: Vec<_> = (0..16_i64)
        .map(|n| {
            let store = store.clone();
            let member = members[usize::try_from(n).unwrap() % 2].clone();
            tokio::spawn(async move {
                for round in 0..6 {
                    let session = log_in(&store, &member, &policy, at(n * 10 + round)).await;
                    sessions::rotate(&store, &session.token, &policy, at(n * 10 + round)).await;
                    let everywhere = round % 3 == 0;
                    store.end(&member.account.id, session.id, everywhere, at(1_000)).await.unwrap();
                }
            })
        })
        .collect();
    // A concurrent follower of the log misses no entry.
    let mut seen = Vec::new();
    let mut after = 0;
    let mut done = false;
    loop {
        let page = RevocationLog::page_after(&store, after, 5, at(0)).await.unwrap();
        after = page.next;
        seen.extend(page.entries.iter().map(|entry| entry.seq));
        if page.entries.is_empty() {
            if done {
                break;
            }
            done = tasks.iter().all(tokio::task::JoinHandle::is_finished);
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    let all = RevocationLog::page_after(&store, 0, 10_000, at(0)).await.unwrap();
    assert_eq!(seen, all.entries.iter().map(|entry| entry.seq).collect::<Vec<_>>());
    home.remove().await;
}
