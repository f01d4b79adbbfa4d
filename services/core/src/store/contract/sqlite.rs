//! The suite over SQLite, and what only SQLite has: the outbox in the same file.

use proptest::test_runner::{Config, TestRunner};
use tourin_shared_events::outbox::{OutboxStore, Wake};

use super::*;
use super::{accounts, rotation, sessions};
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

suite! {
    accounts::an_account_reads_back_as_it_was_created,
    accounts::ids_are_case_sensitive_but_taken_in_any_case,
    accounts::of_many_who_want_one_id_at_once_one_gets_it,
    accounts::a_profile_changes_only_where_it_is_told_to,
    accounts::a_new_password_ends_the_members_other_sessions,
    accounts::a_deleted_account_is_gone_with_its_sessions,
    accounts::a_page_of_members_and_the_total_are_of_one_moment,
    accounts::members_are_found_by_part_of_id_or_name,
    sessions::a_session_shows_its_own_member_only,
    sessions::the_oldest_session_makes_room_for_the_newest,
    sessions::logging_in_renews_an_outdated_hash,
    sessions::ending_a_session_is_logged_even_when_it_was_over,
    sessions::ending_sessions_everywhere_ends_the_members_only,
    sessions::sessions_that_are_over_are_pruned_without_a_revocation,
    sessions::a_pruned_salt_turns_a_repeat_into_a_reuse,
    sessions::of_many_tabs_that_renew_at_once_one_rotates_and_all_agree,
    sessions::the_log_is_read_in_stretches_and_forgets_what_has_expired,
    rotation::tokens_older_than_the_remembered_are_unknown,
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
            // Each case, and each attempt at a smaller one, has a member of its own.
            case.set(case.get() + 1);
            let member = format!("member{:06}", case.get());
            runtime.block_on(rotation::answers_as_the_model_does(&store, &member, &steps));
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn a_deletion_commits_with_its_event() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let hana = sign_up(&store, "hana12345").await;
    let mut heard = store.wake.listen();
    store.delete(&hana.account.id, at(1_000), at(3)).await.unwrap();
    heard.notified().await;
    let feed = store.outbox().page_after(0, 10).await.unwrap();
    let last = feed.events.last().unwrap();
    assert_eq!(last.routing_key, "user.delete");
    assert_eq!(last.ordering_key, "hana12345");
    assert_eq!(last.envelope["data"], serde_json::json!({"user_id": "hana12345"}));
}

#[tokio::test]
async fn what_is_stored_is_there_after_a_restart_and_the_log_keeps_its_name() {
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
