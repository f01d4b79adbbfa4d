//! The suite over SQLite, and its query plans.

use sqlx::Row as _;
use tourin_shared_events::outbox::Wake;

use super::*;
use super::{bookmarks, model, reviews, spots};
use crate::store::sqlite::{STATEMENTS, SqliteStore};

async fn open(dir: &tempfile::TempDir) -> (SqliteStore, Stores) {
    let path = dir.path().join("core.sqlite3");
    let store = SqliteStore::open(&path, 2, Wake::new()).await.unwrap();
    let ports = Arc::new(store.clone());
    let stores = Stores {
        accounts: ports.clone(),
        spots: ports.clone(),
        bookmarks: ports.clone(),
        reviews: ports.clone(),
        views: ports,
        outbox: Arc::new(store.outbox()),
    };
    (store, stores)
}

macro_rules! suite {
    ($($part:ident :: $scenario:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $scenario() {
            let dir = tempfile::tempdir().unwrap();
            $part::$scenario(open(&dir).await.1).await;
        }
    )*};
}

suite! {
    spots::a_spot_reads_back_as_it_was_given,
    spots::an_unchanged_spot_makes_no_version_and_no_event,
    spots::an_id_that_comes_twice_in_a_batch_is_changed_twice,
    spots::a_walk_by_id_meets_every_spot_once,
    spots::a_filter_by_an_unknown_member_finds_no_list,
    spots::pages_hold_over_many_chunks_of_the_index,
    spots::an_edited_spot_is_found_by_its_new_words_only,
    spots::a_spot_stored_under_older_rules_is_read_and_repaired_by_an_import,
    spots::the_catalogue_is_loaded_once,
    spots::a_search_finds_what_was_committed_before_it,
    spots::a_crowded_map_shows_spots_from_all_over_it,
    bookmarks::a_bookmark_commits_with_its_event_once,
    bookmarks::of_many_who_place_one_bookmark_at_once_one_makes_an_event,
    bookmarks::the_newest_bookmark_is_first_on_pages_without_gaps,
    bookmarks::a_bookmark_needs_a_member_and_a_spot,
    bookmarks::views_of_members_who_are_gone_are_left_out,
    bookmarks::views_are_shed_before_writes_are_refused,
    reviews::a_review_commits_with_its_event,
    reviews::only_the_author_deletes_a_review_and_its_likes_go_with_it,
    reviews::a_like_counts_once_per_member,
    reviews::the_newest_review_is_first,
    reviews::deleting_a_member_deletes_all_their_data,
}

#[test]
fn lists_and_maps_are_what_a_naive_look_finds() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    model::check(|drafts, questions| {
        let dir = tempfile::tempdir().unwrap();
        runtime.block_on(async {
            let (store, stores) = open(&dir).await;
            model::answers_as_the_model_does(&stores, drafts, questions).await;
            store.close().await;
        });
    });
}

/// Whether a step of a query plan reads all rows of a table that grows with the catalogue. Lists
/// passed as JSON are read completely.
fn reads_everything(step: &str) -> bool {
    step.contains("SCAN") && !step.contains("VIRTUAL TABLE") && !step.contains("CONSTANT ROW")
        // The plan also lists the steps of a subquery.
        && !step.starts_with("SCAN (subquery")
}

#[tokio::test]
async fn no_search_reads_every_row() {
    let dir = tempfile::tempdir().unwrap();
    let (store, stores) = open(&dir).await;
    let explain = async |sql: &str| -> Vec<String> {
        let explained = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let rows = sqlx::query(explained).fetch_all(store.db.reader()).await.unwrap();
        rows.iter().map(|row| row.get("detail")).collect()
    };
    assert!(
        explain("SELECT * FROM tour_spots WHERE description = 'x'")
            .await
            .iter()
            .any(|step| reads_everything(step)),
        "the check can fail"
    );

    // The plans must not depend on the rows or on the statistics.
    let drafts: Vec<_> =
        (0..300).map(|id| draft(id, raw(&format!("한강 공원 {id}"), "서울"))).collect();
    for _ in 0..2 {
        for sql in STATEMENTS {
            for step in explain(sql).await {
                assert!(!reads_everything(&step), "{step}\n{sql}");
            }
        }
        stores.add(&drafts).await;
        let mut writer = store.db.write().await.unwrap();
        sqlx::query("ANALYZE").execute(&mut *writer).await.unwrap();
        writer.commit().await.unwrap();
    }
}
