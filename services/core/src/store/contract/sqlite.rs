//! The suite over SQLite, and the outbox in the same file.

use proptest::test_runner::{Config, TestRunner};
use sha2::{Digest, Sha256};
use tourin_shared_events::outbox::Wake;
use tourin_shared_events::outbox::testing::recorded;

use super::*;
use super::{accounts, clocks, races, rotation, sessions, signals, visitor_keys};
use crate::store::sqlite::SqliteStore;

async fn store(dir: &tempfile::TempDir) -> SqliteStore {
    SqliteStore::open(&dir.path().join("core.sqlite3"), 2, Wake::new()).await.unwrap()
}

macro_rules! suite {
    ($($part:ident :: $scenario:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $scenario() {
            let dir = tempfile::tempdir().unwrap();
            $part::$scenario(store(&dir).await).await;
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

suite! {
    accounts::a_page_of_members_and_the_total_are_of_one_moment,
}

#[test]
fn tokens_rotate_as_the_model_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = runtime.block_on(store(&dir));
    let case = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 64, ..Config::default() });
    runner
        .run(&rotation::steps(), |steps| {
            // Each case, and each shrunk one, has its own member.
            case.set(case.get() + 1);
            let member = format!("member{:06}", case.get());
            runtime.block_on(rotation::answers_as_the_model_does(&store, &member, &steps));
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn an_account_can_be_deleted_whose_id_an_earlier_version_gave_away_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let hana = sign_up(&store, "hana12345").await;
    sqlx::query("INSERT INTO deleted_ids (digest) VALUES (?)")
        .bind(&Sha256::digest("hana12345")[..])
        .execute(store.db.writer())
        .await
        .unwrap();
    assert!(store.delete(&hana.account.id, at(1_000), at(1)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_name_that_an_earlier_version_stored_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    store.create(&credentials("hana12345", "Hana 하나"), at(0)).await.unwrap();
    sqlx::query("UPDATE members SET name_folded = NULL").execute(store.db.writer()).await.unwrap();
    for query in ["hana 하", "NA 하나"] {
        let query = crate::domain::search::SearchText::new(query).unwrap();
        let found = store.members(query.as_ref(), Default::default(), 1_000).await.unwrap();
        assert_eq!(found.total, 1, "{query:?}");
    }
}

#[tokio::test]
async fn a_deletion_commits_with_its_event() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let hana = sign_up(&store, "hana12345").await;
    let mut heard = store.wake.listen();
    store.delete(&hana.account.id, at(1_000), at(3)).await.unwrap();
    heard.notified().await;
    let events = recorded(&store.outbox()).await;
    let last = &events.last().unwrap().1;
    assert_eq!(last.routing_key, "user.delete");
    assert_eq!(last.ordering_key, "hana12345");
    assert_eq!(last.envelope.data["user_id"], "hana12345");
}

#[tokio::test]
async fn data_and_log_id_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let before = store(&dir).await;
    let hana = sign_up(&before, "hana12345").await;
    let log = before.page_after(0, 1, at(0)).await.unwrap().log_id;
    before.close().await;
    let after = store(&dir).await;
    assert_eq!(after.credentials(&hana.account.id).await.unwrap(), Some(hana));
    assert_eq!(RevocationLog::page_after(&after, 0, 1, at(0)).await.unwrap().log_id, log);
}

#[tokio::test]
async fn neither_password_nor_refresh_token_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let hana = sign_up(&store, "hana12345").await;
    let session = log_in(&store, &hana, &SessionPolicy::default(), at(1)).await;
    store.close().await;
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        bytes.extend(std::fs::read(entry.unwrap().path()).unwrap());
    }
    let contains = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(contains(&session.token.hash().0), "the digest is what is kept");
    assert!(!contains(session.token.expose().as_bytes()));
    let raw = base64::Engine::decode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        session.token.expose(),
    );
    assert!(!contains(&raw.unwrap()));
}
