//! The suite over MySQL or MariaDB, on a real server, and its query plans.

use sqlx::Row as _;
use tourin_shared_events::mysql::PoolSizes;
use tourin_shared_events::mysql::testing::TestDatabase;
use tourin_shared_events::outbox::Wake;

use super::*;
use super::{bookmarks, model, reviews, spots};
use crate::domain::geo::Bounds;
use crate::store::mysql::{MysqlSpots, MysqlStore, explained};

async fn open(home: &TestDatabase) -> (MysqlStore, Stores) {
    let store = MysqlStore::open(home.url(), PoolSizes::default(), Wake::new()).await.unwrap();
    let ports = Arc::new(store.clone());
    let stores = Stores {
        accounts: ports.clone(),
        spots: Arc::new(MysqlSpots::new(store.clone())),
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
    spots::what_is_unchanged_makes_no_version_and_no_event,
    spots::an_id_that_comes_twice_in_a_batch_is_changed_twice,
    spots::a_walk_by_id_meets_every_spot_once,
    spots::a_filter_by_a_stranger_finds_no_list,
    spots::pages_hold_over_many_chunks_of_the_index,
    spots::an_edited_spot_is_found_by_its_new_words_only,
    spots::a_spot_of_other_rules_is_read_and_mended_by_importing_it_again,
    spots::the_catalogue_is_loaded_once,
    bookmarks::a_bookmark_commits_with_its_event_once,
    bookmarks::of_many_who_place_one_bookmark_at_once_one_makes_an_event,
    bookmarks::the_newest_bookmark_is_first_on_pages_without_gaps,
    bookmarks::a_bookmark_needs_a_member_and_a_spot,
    bookmarks::views_of_members_who_are_gone_are_left_out,
    reviews::a_review_commits_with_its_event,
    reviews::only_the_author_deletes_a_review_and_its_likes_go_with_it,
    reviews::a_like_counts_once_per_member,
    reviews::the_newest_review_is_first,
    reviews::a_member_who_goes_takes_everything_along,
}

#[test]
fn lists_and_maps_are_what_a_naive_look_finds() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    model::check(|drafts, questions| {
        runtime.block_on(async {
            let home = TestDatabase::create().await;
            let (store, mut stores) = open(&home).await;
            let all = model::fill(&stores, drafts).await;
            model::answers_about(&stores, &all, drafts, questions).await;
            store.read_search_memory().await.unwrap();
            // One that remembers no search.
            stores.spots = Arc::new(MysqlSpots::new(store.clone()));
            model::answers_about(&stores, &all, drafts, questions).await;
            store.close().await;
            home.remove().await;
        });
    });
}

/// The tables that grow with the catalogue, by the names that the statements give them.
const LARGE: [&str; 6] = ["s", "g", "t", "tour_spots", "spot_grams", "spot_texts"];

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
    sqlx::query("ANALYZE TABLE tour_spots, spot_grams, spot_texts")
        .fetch_all(store.db.writer())
        .await
        .unwrap();
    // The steps that read a whole table or a whole index.
    let whole = async |sql: &str| -> Vec<String> {
        let explained = sqlx::AssertSqlSafe(format!("EXPLAIN {sql}"));
        let rows = sqlx::raw_sql(explained).fetch_all(store.db.reader()).await.unwrap();
        let steps = rows.iter().filter_map(|row| {
            let table: Option<String> = row.get("table");
            let table = table.filter(|table| LARGE.contains(&table.as_str()))?;
            let access: String = row.get("type");
            let extra: Option<String> = row.get("Extra");
            let sorted = extra.unwrap_or_default().contains("filesort");
            // Only a list that was handed in is sorted, and it is read first, under another name.
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
    let bounds = Bounds::new(33.2, 126.1, 37.5, 128.9).unwrap();
    for sql in explained(&bounds) {
        let steps = whole(&sql).await;
        assert!(steps.is_empty(), "{steps:?}\n{sql}");
    }
    home.remove().await;
}

#[tokio::test]
async fn an_index_in_memory_answers_nobody_once_the_catalogue_has_changed() {
    let home = TestDatabase::create().await;
    let (store, stores) = open(&home).await;
    let found = async |text: &str| {
        let filter = crate::domain::search::SpotFilter {
            query: crate::domain::search::SearchText::new(text).unwrap(),
            ..Default::default()
        };
        let sort = crate::domain::search::SpotSort::NameAscending;
        let mut list = stores.spots.search(&filter, sort, page(1, 10)).await.unwrap().unwrap();
        list.items.sort_by_key(|spot| spot.id);
        let bounds = Bounds::new(-90.0, -180.0, 90.0, 180.0).unwrap();
        let map = stores.spots.map(&filter, &bounds, 10).await.unwrap().unwrap();
        assert_eq!(list.items, map, "{text}");
        list.total
    };
    stores.add(&[draft(1, raw("경복궁", "서울")), draft(2, raw("창덕궁", "서울"))]).await;
    store.read_search_memory().await.unwrap();
    assert_eq!((found("경복궁").await, found("서울").await), (1, 2));
    stores.add(&[draft(1, raw("해운대", "부산")), draft(3, raw("남산", "서울"))]).await;
    assert_eq!((found("경복궁").await, found("서울").await, found("해운대").await), (0, 2, 1));
    store.read_search_memory().await.unwrap();
    assert_eq!((found("남산").await, found("부산").await, found("해운대").await), (1, 1, 1));
    home.remove().await;
}

/// More spots than are read as a whole, in cells that are crowded and cells that are not.
#[tokio::test]
async fn a_crowded_map_shows_spots_from_all_over_it() {
    let home = TestDatabase::create().await;
    let (store, stores) = open(&home).await;
    let drafts: Vec<_> = (0..9_000_i64)
        .map(|id| {
            // Nine of ten in one corner.
            let spread = if id % 10 == 0 { 4.0 } else { 0.01 };
            let along = |seed: i64| ((id * seed) % 10_007) as f64 / 10_007.0;
            let (lat, lng) = (33.0 + spread * along(7_919), 126.0 + spread * along(104_729));
            draft(id, RawSpot { lat, lng, ..raw("곳", "서울") })
        })
        .collect();
    stores.add(&drafts).await;
    let all: Vec<_> = drafts.iter().map(|draft| (draft.id, draft.content.at())).collect();
    for (filter, most) in [
        (crate::domain::search::SpotFilter::default(), 500),
        (crate::domain::search::SpotFilter::default(), 7),
        (
            crate::domain::search::SpotFilter {
                query: crate::domain::search::SearchText::new("서울").unwrap(),
                ..Default::default()
            },
            300,
        ),
    ] {
        let bounds = Bounds::new(33.0, 126.0, 37.0, 130.0).unwrap();
        let groups = bounds.grid(most).into_iter().map(|range| {
            let mut group: Vec<_> = all
                .iter()
                .map(|(id, at)| (crate::domain::geo::cell(*at), *id))
                .filter(|(cell, _)| range.contains(cell))
                .collect();
            group.sort_unstable();
            group
        });
        let mut expected: Vec<_> = crate::domain::geo::spread(groups.collect(), most)
            .into_iter()
            .map(|(_, id)| id)
            .collect();
        expected.sort_unstable();
        for in_memory in [false, true] {
            if in_memory {
                store.read_search_memory().await.unwrap();
            }
            let found = stores.spots.map(&filter, &bounds, most).await.unwrap().unwrap();
            let found: Vec<_> = found.iter().map(|spot| spot.id).collect();
            assert_eq!(found, expected, "in memory: {in_memory}");
        }
        store.forget_search_memory();
    }
    home.remove().await;
}

/// Members who bookmark, review, like and leave, all at once: deadlocks are tried again, and what is
/// counted stays true.
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
async fn an_id_with_a_space_behind_it_is_nobodys() {
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
