//! Changes of the index. The stores' contract tests the index against a naive model.

use proptest::prelude::*;
use roaring::RoaringBitmap;

use super::{LiveIndex, SpotIndex};
use crate::domain::page::PageRequest;
use crate::domain::search::{SearchText, SpotFilter, SpotSort};
use crate::domain::spot::{Coordinates, SpotId, SpotOverview};
use crate::domain::tag::{Tag, TagSet};

fn spot(id: i64, name: &str) -> SpotOverview {
    SpotOverview {
        id: SpotId::new(id),
        name: name.to_owned(),
        address: "서울".to_owned(),
        at: Coordinates::new(37.5, 127.0).unwrap(),
        tags: TagSet::from_iter([Tag::History]),
        image_url: None,
    }
}

fn search(text: &str) -> SearchText {
    SearchText::new(text).unwrap().unwrap()
}

#[test]
fn a_gap_in_the_doc_ids_is_refused() {
    let mut index = SpotIndex::default();
    index.put(0, &spot(1, "경복궁")).unwrap();
    let gap = index.put(2, &spot(2, "창덕궁")).unwrap_err();
    assert_eq!(gap.to_string(), "the spots' doc ids have a gap before 2");
}

#[test]
fn a_query_does_not_match_across_name_and_address_nor_by_the_image() {
    let mut index = SpotIndex::default();
    let image_url = Some("https://example.com/궁서".to_owned());
    index.put(0, &SpotOverview { image_url, ..spot(1, "경복궁") }).unwrap();
    index.order();
    for (text, count) in [
        ("궁", 1),
        ("복궁", 1),
        ("경복궁", 1),
        ("서울", 1),
        ("궁서", 0),
        ("복궁서울", 0),
        ("com", 0),
    ] {
        let found = index.with_text(&search(text));
        assert_eq!(found.len(), count, "{text}");
    }
}

#[test]
fn words_of_few_and_of_many_spots_lose_and_gain_spots() {
    let mut index = SpotIndex::default();
    for doc in 0..1_500 {
        index.put(doc, &spot(doc.into(), &format!("경복궁 {doc}"))).unwrap();
    }
    index.order();
    for doc in 0..700 {
        index.put(doc, &spot(doc.into(), &format!("창덕궁 {doc}"))).unwrap();
    }
    index.order();
    let changed = index.bytes();
    for (text, count) in [("궁", 1_500), ("경복궁", 800), ("창덕궁", 700), ("덕궁 69", 11)]
    {
        assert_eq!(index.with_text(&search(text)).len(), count, "{text}");
    }
    let mut made = SpotIndex::default();
    for doc in 0..1_500 {
        let palace = if doc < 700 { "창덕궁" } else { "경복궁" };
        made.put(doc, &spot(doc.into(), &format!("{palace} {doc}"))).unwrap();
    }
    made.order();
    assert_eq!(changed, made.bytes());
}

proptest! {
    /// Queries with spaces at any place, in texts with several of them.
    #[test]
    fn matches_are_those_of_a_naive_search(
        texts in proptest::collection::vec(("[가나A ]{0,9}", "[가나a\u{0} ]{0,9}"), 1..20),
        pieces in proptest::collection::vec("[가나a\u{0} ]{1,6}", 1..20),
    ) {
        let mut index = SpotIndex::default();
        for (doc, (name, address)) in (0..).zip(&texts) {
            let spot = SpotOverview { address: address.clone(), ..spot(doc.into(), name) };
            index.put(doc, &spot).unwrap();
        }
        index.order();
        for query in pieces.iter().filter_map(|piece| SearchText::new(piece).unwrap()) {
            let naive: RoaringBitmap = (0..)
                .zip(&texts)
                .filter(|(_, (name, address))| query.matches(name, address))
                .map(|(doc, _)| doc)
                .collect();
            prop_assert_eq!(index.with_text(&query), naive, "{:?}", query);
        }
    }

    /// An index that was changed step by step equals an index built from the result.
    #[test]
    fn changes_leave_the_index_that_their_result_gives(
        steps in proptest::collection::vec((0_u32..12, "[가-각A-Ca-c ]{1,4}", 0_u16..4), 1..40),
    ) {
        let live = LiveIndex::default();
        let mut result: Vec<SpotOverview> = Vec::new();
        for (revision, (doc, name, tags)) in (1..).zip(steps) {
            let doc = doc.min(result.len() as u32);
            // Spot ids have another order than doc ids.
            let id = i64::from((doc * 7) % 13);
            let spot = SpotOverview { tags: TagSet::from_bits(tags | 1), ..spot(id, &name) };
            match result.get_mut(doc as usize) {
                Some(old) => *old = spot.clone(),
                None => result.push(spot.clone()),
            }
            if revision == 1 {
                let mut index = SpotIndex::default();
                index.put(doc, &spot).unwrap();
                index.order();
                live.replace(revision, index);
            } else {
                live.apply(revision, vec![(doc, spot)]).unwrap();
            }
            prop_assert_eq!(live.revision(), Some(revision));
        }
        let mut made = SpotIndex::default();
        for (doc, spot) in (0..).zip(&result) {
            made.put(doc, spot).unwrap();
        }
        made.order();
        let all = PageRequest::new(None, Some(100)).unwrap();
        for text in ["", "가", "a", "각가", "aB", "a B", "서울"] {
            let filter = SpotFilter { query: SearchText::new(text).unwrap(), ..SpotFilter::default() };
            let matches: Option<RoaringBitmap> =
                filter.query.as_ref().map(|query| made.with_text(query));
            for sort in [SpotSort::NameAscending, SpotSort::NameDescending] {
                let page = live.page(&filter, None, sort, all);
                prop_assert_eq!(&page.items, &made.page(matches.as_ref(), sort, all));
            }
        }
        prop_assert_eq!(live.size(), Some((made.spots(), made.bytes())));
    }
}
