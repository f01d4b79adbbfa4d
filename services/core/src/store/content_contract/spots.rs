//! Spots: reading, changing, paging through all of them.

use super::*;
use crate::app::import::load_catalogue;
use crate::app::spots::Upserted;
use crate::domain::geo::{Bounds, cell, spread};
use crate::domain::search::{SearchText, SpotFilter, SpotSort};
use crate::domain::spot::Spot;

async fn found(stores: &Stores, query: &str) -> Vec<i64> {
    let filter = SpotFilter { query: SearchText::new(query).unwrap(), ..SpotFilter::default() };
    let page =
        stores.spots.search(&filter, SpotSort::default(), page(1, 100)).await.unwrap().unwrap();
    page.items.iter().map(|spot| spot.id.number()).collect()
}

pub(super) async fn a_spot_reads_back_as_it_was_given(stores: Stores) {
    let full = draft(
        7,
        RawSpot {
            lat: -0.1,
            tags: TagSet::from_iter(Tag::ALL),
            description: Some("근정전과\n경회루".to_owned()),
            phone_number: Some("02-3700-3900".to_owned()),
            image_url: Some("https://example.com/a.jpg".to_owned()),
            ..raw("경복궁", "서울특별시 종로구")
        },
    );
    let done = stores.spots.upsert_batch(std::slice::from_ref(&full), at(1)).await.unwrap();
    assert_eq!(done, Upserted { changed: 1, unchanged: 0 });
    let spot = stores.spots.find(SpotId::new(7)).await.unwrap();
    assert_eq!(spot, Some(Spot { id: full.id, version: 1, content: full.content }));
    assert_eq!(stores.spots.find(SpotId::new(8)).await.unwrap(), None);
    let events = stores.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].0, "tourSpot.upsert");
    assert_eq!(events[0].1["tourspot_id"], "7");
    assert_eq!(events[0].1["version"], 1);
    assert_eq!(events[0].1["tags"].as_array().unwrap().len(), 9);
    assert_eq!(events[0].1["phone_number"], "02-3700-3900");
}

pub(super) async fn an_unchanged_spot_makes_no_version_and_no_event(stores: Stores) {
    let spot = draft(1, raw("경복궁", "서울"));
    stores.add(std::slice::from_ref(&spot)).await;
    let again = stores.spots.upsert_batch(&[spot], at(2)).await.unwrap();
    assert_eq!(again, Upserted { changed: 0, unchanged: 1 });
    let moved = draft(1, RawSpot { lat: 37.6, ..raw("경복궁", "서울") });
    stores.spots.upsert_batch(&[moved], at(3)).await.unwrap();
    assert_eq!(stores.spots.find(SpotId::new(1)).await.unwrap().unwrap().version, 2);
    let versions: Vec<_> =
        stores.events().await.iter().map(|(_, data)| data["version"].clone()).collect();
    assert_eq!(versions, [1, 2]);
}

pub(super) async fn an_id_that_comes_twice_in_a_batch_is_changed_twice(stores: Stores) {
    let batch = ["하나", "둘", "둘", "셋"].map(|name| draft(1, raw(name, "서울")));
    let done = stores.spots.upsert_batch(&batch, at(1)).await.unwrap();
    assert_eq!(done, Upserted { changed: 3, unchanged: 1 });
    let spot = stores.spots.find(SpotId::new(1)).await.unwrap().unwrap();
    assert_eq!((spot.version, spot.content.name()), (3, "셋"));
    assert_eq!(stores.events().await.len(), 3);
    assert_eq!(found(&stores, "하나").await, [0; 0]);
}

pub(super) async fn a_walk_by_id_meets_every_spot_once(stores: Stores) {
    let ids = [0, 5, 1, 99, 7, i64::MAX];
    stores.add(&ids.map(|id| draft(id, raw("같은 이름", "서울")))).await;
    let mut met = Vec::new();
    let mut after = None;
    loop {
        let page = stores.spots.page_after(after, 4).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        met.extend(page.iter().map(|spot| spot.id.number()));
    }
    assert_eq!(met, [0, 1, 5, 7, 99, i64::MAX]);
}

pub(super) async fn a_filter_by_an_unknown_member_finds_no_list(stores: Stores) {
    let filter = SpotFilter { bookmarked_by: Some(STRANGER.to_owned()), ..SpotFilter::default() };
    let bounds = Bounds::new(33.0, 124.0, 39.0, 132.0).unwrap();
    let list = stores.spots.search(&filter, SpotSort::default(), page(1, 10)).await.unwrap();
    assert_eq!(list, None);
    assert_eq!(stores.spots.map(&filter, &bounds, 10).await.unwrap(), None);
}

pub(super) async fn pages_hold_over_many_chunks_of_the_index(stores: Stores) {
    // Names in another order than ids; every seventh spot has its own tag and word.
    const COUNT: i64 = 9_000;
    let name = |id: i64| format!("{:04} 곳", (id * 7_919) % COUNT);
    let drafts: Vec<_> = (0..COUNT)
        .map(|id| {
            let seventh = id % 7 == 0;
            let tag = if seventh { Tag::Festival } else { Tag::Nature };
            let address = if seventh { "바닷가 마을" } else { "산속 마을" };
            let tags = TagSet::from_iter([tag]);
            draft(id, RawSpot { tags, ..raw(&name(id), address) })
        })
        .collect();
    stores.add(&drafts).await;
    let sorted = |keep: fn(i64) -> bool| {
        let mut ids: Vec<i64> = (0..COUNT).filter(|id| keep(*id)).collect();
        ids.sort_by_key(|id| name(*id));
        ids
    };
    let filter = |query: &str, tags: &[Tag]| SpotFilter {
        query: SearchText::new(query).unwrap(),
        tags: tags.iter().copied().collect(),
        bookmarked_by: None,
    };
    let everything = sorted(|_| true);
    let sevenths = sorted(|id| id % 7 == 0);
    for (filter, expected) in [
        (filter("", &[]), &everything),
        (filter("마을", &[]), &everything),
        (filter("속 마을", &[Tag::Festival]), &Vec::new()),
        (filter("닷가 마", &[]), &sevenths),
        (filter("", &[Tag::Festival, Tag::Culture]), &sevenths),
    ] {
        let last = (expected.len() as u64).div_ceil(100).max(1);
        for number in [1, 2, last / 2 + 1, last, last + 1] {
            let request = page(number, 100);
            let found = stores.spots.search(&filter, SpotSort::NameAscending, request);
            let found = found.await.unwrap().unwrap();
            assert_eq!(found.total, expected.len() as u64);
            let ids: Vec<_> = found.items.iter().map(|spot| spot.id.number()).collect();
            let expected: Vec<_> =
                expected.iter().skip(request.offset() as usize).take(100).copied().collect();
            assert_eq!(ids, expected, "{filter:?} {request}");
        }
    }
}

pub(super) async fn an_edited_spot_is_found_by_its_new_words_only(stores: Stores) {
    stores.add(&[draft(1, raw("경복궁", "서울 종로구"))]).await;
    assert_eq!(found(&stores, "종로").await, [1]);
    assert_eq!(found(&stores, "복").await, [1]);
    stores.add(&[draft(1, raw("창덕궁", "서울 율곡로"))]).await;
    for gone in ["종로", "복", "경복궁", "종로구"] {
        assert_eq!(found(&stores, gone).await, [0; 0], "{gone}");
    }
    for there in ["궁", "서울", "창덕궁", "율곡로", "울 율"] {
        assert_eq!(found(&stores, there).await, [1], "{there}");
    }
}

/// A stored spot may have characters that the current rules remove.
pub(super) async fn a_spot_stored_under_older_rules_is_read_and_repaired_by_an_import(
    stores: Stores,
) {
    let (name, address) = ("경\u{200B}복궁", "서울\u{A0}종로구");
    let content = SpotContent::trusted(raw(name, address)).unwrap();
    stores.add(&[SpotDraft { id: SpotId::new(1), content: content.clone() }]).await;
    let unseen = SpotContent::trusted(raw("\u{3164}", "서울")).unwrap();
    stores.add(&[SpotDraft { id: SpotId::new(2), content: unseen }]).await;
    assert_eq!(stores.spots.find(SpotId::new(1)).await.unwrap().unwrap().content, content);
    assert_eq!(found(&stores, "서울").await.len(), 2);
    assert_eq!(found(&stores, "경복").await, [0; 0]);
    let again = [draft(1, raw(name, address))];
    let done = stores.spots.upsert_batch(&again, at(1)).await.unwrap();
    assert_eq!(done, Upserted { changed: 1, unchanged: 0 });
    for there in ["경복", "복", "경복궁", "울 종"] {
        assert_eq!(found(&stores, there).await, [1], "{there}");
    }
}

pub(super) async fn the_catalogue_is_loaded_once(stores: Stores) {
    let clock = tourin_chassis::clock::SystemClock;
    let loaded = load_catalogue(&*stores.spots, &clock).await.unwrap().unwrap();
    assert_eq!(loaded.rejected, 0, "every row of the catalogue is good");
    assert!(loaded.imported >= 250, "{loaded:?}");
    assert!(!found(&stores, "경복궁").await.is_empty());
    let first = stores.spots.page_after(None, 1).await.unwrap().remove(0);
    stores.add(&[draft(first.id.number(), raw("편집된 이름", "서울"))]).await;
    assert_eq!(load_catalogue(&*stores.spots, &clock).await.unwrap(), None);
    let spot = stores.spots.find(first.id).await.unwrap().unwrap();
    assert_eq!(spot.content.name(), "편집된 이름", "an edit outlives a restart");
}

pub(super) async fn a_search_finds_what_was_committed_before_it(stores: Stores) {
    let found = async |text: &str| {
        let filter = SpotFilter { query: SearchText::new(text).unwrap(), ..Default::default() };
        let sort = SpotSort::NameAscending;
        let mut list = stores.spots.search(&filter, sort, page(1, 10)).await.unwrap().unwrap();
        list.items.sort_by_key(|spot| spot.id);
        let bounds = Bounds::new(-90.0, -180.0, 90.0, 180.0).unwrap();
        let map = stores.spots.map(&filter, &bounds, 10).await.unwrap().unwrap();
        assert_eq!(list.items, map, "{text}");
        list.total
    };
    stores.add(&[draft(1, raw("경복궁", "서울")), draft(2, raw("창덕궁", "서울"))]).await;
    assert_eq!((found("경복궁").await, found("서울").await), (1, 2));
    stores.add(&[draft(1, raw("해운대", "부산")), draft(3, raw("남산", "서울"))]).await;
    assert_eq!((found("경복궁").await, found("서울").await, found("해운대").await), (0, 2, 1));
    assert_eq!((found("남산").await, found("부산").await, found("해운대").await), (1, 1, 1));
}

/// More spots than are looked up one by one, in crowded and in sparse cells.
pub(super) async fn a_crowded_map_shows_spots_from_all_over_it(stores: Stores) {
    let drafts: Vec<_> = (0..22_000_i64)
        .map(|id| {
            // Nine of ten spots are in one corner.
            let spread = if id % 10 == 0 { 4.0 } else { 0.01 };
            let along = |seed: i64| ((id * seed) % 10_007) as f64 / 10_007.0;
            let (lat, lng) = (33.0 + spread * along(7_919), 126.0 + spread * along(104_729));
            let address = if id % 20 == 0 { "서울 남산" } else { "서울" };
            draft(id, RawSpot { lat, lng, ..raw("곳", address) })
        })
        .collect();
    stores.add(&drafts).await;
    let filter =
        |text: &str| SpotFilter { query: SearchText::new(text).unwrap(), ..Default::default() };
    for (text, max) in [("", 500), ("", 7), ("서울", 300), ("남산", 300)] {
        let bounds = Bounds::new(33.0, 126.0, 37.0, 130.0).unwrap();
        let groups = bounds.grid(max).into_iter().map(|range| {
            let mut group: Vec<_> = drafts
                .iter()
                .filter(|draft| draft.content.address().contains(text))
                .map(|draft| (cell(draft.content.at()), draft.id))
                .filter(|(cell, _)| range.contains(cell))
                .collect();
            group.sort_unstable();
            group
        });
        let mut expected: Vec<_> = spread(groups, max).into_iter().map(|(_, id)| id).collect();
        expected.sort_unstable();
        let found = stores.spots.map(&filter(text), &bounds, max).await.unwrap().unwrap();
        let found: Vec<_> = found.iter().map(|spot| spot.id).collect();
        assert_eq!(found, expected, "{text} {max}");
    }
}
