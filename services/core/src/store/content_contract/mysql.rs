//! The suite over MySQL or MariaDB, on a real server, and its query plans.

use sqlx::Row as _;
use tourin_shared_events::mysql::PoolSizes;
use tourin_shared_events::mysql::testing::TestDatabase;
use tourin_shared_events::outbox::Wake;

use super::*;
use super::{bookmarks, model, reviews, spots};
use crate::store::mysql::{MysqlStore, STATEMENTS};

async fn open(home: &TestDatabase) -> (MysqlStore, Stores) {
    let store = MysqlStore::open(home.url(), PoolSizes::default(), Wake::new()).await.unwrap();
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
            let home = TestDatabase::create().await;
            $part::$scenario(open(&home).await.1).await;
            home.remove().await;
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
        runtime.block_on(async {
            let home = TestDatabase::create().await;
            let (store, stores) = open(&home).await;
            model::answers_as_the_model_does(&stores, drafts, questions).await;
            store.close().await;
            home.remove().await;
        });
    });
}

/// The tables that grow with the catalogue, by name or alias.
const LARGE: [&str; 2] = ["s", "tour_spots"];

#[tokio::test]
async fn no_search_reads_every_row() {
    let home = TestDatabase::create().await;
    let (store, stores) = open(&home).await;
    let drafts: Vec<_> = (0..12_000)
        .map(|id| {
            let (lat, lng) = (33.0 + (id % 100) as f64 / 20.0, 126.0 + (id / 100) as f64 / 40.0);
            draft(id, RawSpot { lat, lng, ..raw(&format!("한강 공원 {id}"), "서울") })
        })
        .collect();
    stores.add(&drafts).await;
    sqlx::query("ANALYZE TABLE tour_spots").fetch_all(store.db.writer()).await.unwrap();
    // The steps that scan a table or an index.
    let whole = async |sql: &str| -> Vec<String> {
        // A row for each step. MySQL 9.7 shows a tree unless it is asked.
        let explained = sqlx::AssertSqlSafe(format!("EXPLAIN FORMAT=TRADITIONAL {sql}"));
        let rows = sqlx::raw_sql(explained).fetch_all(store.db.reader()).await.unwrap();
        let steps = rows.iter().filter_map(|row| {
            let table: Option<String> = row.get("table");
            let table = table.filter(|table| LARGE.contains(&table.as_str()))?;
            let access: String = row.get("type");
            let extra: Option<String> = row.get("Extra");
            let sorted = extra.unwrap_or_default().contains("filesort");
            // A list passed as a parameter may be sorted; it is read first, under another name.
            (matches!(access.as_str(), "ALL" | "index") || sorted)
                .then(|| format!("{table}: {access}"))
        });
        steps.collect()
    };
    for sql in
        ["SELECT * FROM tour_spots AS s WHERE description = 'x'", "SELECT name FROM tour_spots"]
    {
        assert!(!whole(sql).await.is_empty(), "the check can fail");
    }
    for sql in STATEMENTS {
        // Example parameters: a list and a number.
        let (list, number) = ("JSON_TABLE('[1,2,3,500,700]'", "7");
        let sql = sql.replace("JSON_TABLE(?", list).replace('?', number);
        let steps = whole(&sql).await;
        assert!(steps.is_empty(), "{steps:?}\n{sql}");
    }
    home.remove().await;
}

/// Members bookmark, review, like and leave concurrently: deadlocks are retried, and the counts stay
/// correct.
#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_get_in_each_others_way_and_counts_stay_true() {
    use crate::app::reviews::Written;
    use crate::domain::review::ReviewContent;

    let home = TestDatabase::create().await;
    let (_, stores) = open(&home).await;
    let stores = Arc::new(stores);
    stores.add(&[draft(1, raw("경복궁", "서울")), draft(2, raw("창덕궁", "서울"))]).await;
    let members: Vec<String> = (0..10).map(|n| format!("member000{n}")).collect();
    let mut reviews = Vec::new();
    for member in &members {
        stores.sign_up(member).await;
        let content = ReviewContent::new("좋아요").unwrap();
        match stores.reviews.write(member, SpotId::new(1), &content, at(0)).await.unwrap() {
            Written::Written(review) => reviews.push(review.id),
            other => panic!("{other:?}"),
        }
    }
    let tasks: Vec<_> = members
        .iter()
        .enumerate()
        .map(|(n, member)| {
            let (stores, member, reviews) = (stores.clone(), member.clone(), reviews.clone());
            tokio::spawn(async move {
                let event = || crate::app::bookmarks::unbookmarked(&member, SpotId::new(2), at(0));
                stores.bookmarks.place(&member, SpotId::new(2), at(1), event()).await.unwrap();
                for review in &reviews {
                    stores.reviews.like(&member, *review, true).await.unwrap();
                }
                if n % 2 == 1 {
                    let id = MemberId::parse(&member).unwrap();
                    stores.accounts.delete(&id, at(9), at(3)).await.unwrap().unwrap();
                } else {
                    stores.bookmarks.remove(&member, SpotId::new(2), at(2), event()).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let left = stores.reviews.page(SpotId::new(1), page(1, 100)).await.unwrap().unwrap().items;
    assert_eq!(left.len(), 5);
    assert!(left.iter().all(|review| review.like_count == 5), "{left:?}");
    drop(stores);
    home.remove().await;
}

#[tokio::test]
async fn an_id_with_a_trailing_space_matches_no_account() {
    let home = TestDatabase::create().await;
    let (_, stores) = open(&home).await;
    stores.sign_up(HANA).await;
    stores.add(&[draft(1, raw("경복궁", "서울"))]).await;
    let event = || crate::app::bookmarks::unbookmarked(HANA, SpotId::new(1), at(0));
    stores.bookmarks.place(HANA, SpotId::new(1), at(0), event()).await.unwrap();
    for other in ["hana12345 ", "HANA12345", "hana12345\u{0}", "하나"] {
        let bookmark = stores.bookmarks.find(other, SpotId::new(1)).await.unwrap();
        assert_eq!(bookmark, None, "{other:?}");
        assert_eq!(stores.bookmarks.page(other, page(1, 1)).await.unwrap(), None, "{other:?}");
    }
    home.remove().await;
}
