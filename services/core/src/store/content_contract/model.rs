//! Lists and maps against a naive model that looks at every spot.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::domain::geo::{Bounds, cell, spread};
use crate::domain::search::{SearchText, SpotFilter, SpotSort};
use crate::domain::spot::{Spot, SpotOverview};

/// Parameters of a list and of a map.
#[derive(Debug, Clone)]
pub(super) struct Question {
    filter: SpotFilter,
    sort: SpotSort,
    page_size: u64,
    bounds: Bounds,
    max: usize,
}

/// Hangul composed and decomposed, Latin in both cases, signs that are syntax elsewhere, a character
/// of four bytes.
fn text(max: usize) -> impl Strategy<Value = String> {
    let character = prop_oneof![
        4 => proptest::char::range('가', '갸'),
        2 => proptest::sample::select(vec!['궁', '경', '복', '시']),
        2 => proptest::sample::select(vec!['a', 'A', 'é', 'e', '\u{301}', 'ᄀ', '\u{1161}', '\u{11a8}']),
        2 => proptest::sample::select(vec!['%', '_', '\'', '"', '*', '\\', ' ', '(', '-', '🏞']),
    ];
    proptest::collection::vec(character, 1..=max).prop_map(|text| text.into_iter().collect())
}

fn tags() -> impl Strategy<Value = TagSet> {
    (1_u16..512).prop_map(TagSet::from_bits)
}

fn spot() -> impl Strategy<Value = RawSpot> {
    (text(8), text(8), 33.0..35.0_f64, 126.0..128.0_f64, tags()).prop_map(
        |(name, address, lat, lng, tags)| RawSpot {
            name: format!("x{name}"),
            address: format!("x{address}"),
            lat,
            lng,
            tags,
            ..RawSpot::default()
        },
    )
}

/// Some ids repeat: the later draft changes the spot.
fn catalogue() -> impl Strategy<Value = Vec<SpotDraft>> {
    proptest::collection::vec((0_i64..80, spot()), 0..80)
        .prop_map(|spots| spots.into_iter().map(|(id, raw)| draft(id, raw)).collect())
}

fn question() -> impl Strategy<Value = Question> {
    let query = prop_oneof![
        2 => Just(String::new()),
        5 => text(1),
        5 => text(2),
        3 => text(4),
    ];
    let tags = prop_oneof![Just(TagSet::default()), tags()];
    (
        (query, tags, any::<bool>(), any::<bool>()),
        (1_u64..20, 4_usize..60),
        [33.0..35.0_f64, 33.0..35.0],
        [126.0..128.0_f64, 126.0..128.0],
    )
        .prop_map(|((query, tags, bookmarked, descending), (page_size, max), lats, lngs)| {
            Question {
                filter: SpotFilter {
                    query: SearchText::new(&query).unwrap(),
                    tags,
                    bookmarked_by: bookmarked.then(|| HANA.to_owned()),
                },
                sort: if descending { SpotSort::NameDescending } else { SpotSort::NameAscending },
                page_size,
                bounds: Bounds::new(
                    lats[0].min(lats[1]),
                    lngs[0].min(lngs[1]),
                    lats[0].max(lats[1]),
                    lngs[0].max(lngs[1]),
                )
                .unwrap(),
                max,
            }
        })
}

/// Runs `case` with generated catalogues and questions.
pub(super) fn check(case: impl Fn(&[SpotDraft], &[Question])) {
    let mut runner = TestRunner::new(Config { cases: 24, ..Config::default() });
    let inputs = (catalogue(), proptest::collection::vec(question(), 12));
    runner
        .run(&inputs, |(drafts, questions)| {
            case(&drafts, &questions);
            Ok(())
        })
        .unwrap();
}

/// Every third spot is bookmarked by [`HANA`].
fn is_bookmarked(id: SpotId) -> bool {
    id.number() % 3 == 0
}

pub(super) async fn answers_as_the_model_does(
    stores: &Stores,
    drafts: &[SpotDraft],
    questions: &[Question],
) {
    let all = fill(stores, drafts).await;
    answers_about(stores, &all, drafts, questions).await;
}

/// Adds the drafts and bookmarks; returns the resulting spots.
pub(super) async fn fill(stores: &Stores, drafts: &[SpotDraft]) -> Vec<Spot> {
    stores.sign_up(HANA).await;
    stores.add(drafts).await;
    let all = stores.spots.page_after(None, 1_000).await.unwrap();
    for spot in &all {
        let last = drafts.iter().rfind(|draft| draft.id == spot.id).unwrap();
        assert_eq!(spot.content, last.content, "the last draft of an id counts");
        if is_bookmarked(spot.id) {
            let event = crate::app::bookmarks::unbookmarked(HANA, spot.id, at(0));
            stores.bookmarks.place(HANA, spot.id, at(0), event).await.unwrap();
        }
    }
    all
}

/// Checks the questions, and others with substrings of the drafts.
pub(super) async fn answers_about(
    stores: &Stores,
    all: &[Spot],
    drafts: &[SpotDraft],
    questions: &[Question],
) {
    let pieces = questions.iter().zip(drafts).enumerate().map(|(index, (question, draft))| {
        let name = draft.content.name().chars().skip(1).take(index % 5 + 1).collect::<String>();
        let filter =
            SpotFilter { query: SearchText::new(&name).unwrap(), ..question.filter.clone() };
        Question { filter, ..question.clone() }
    });
    for question in questions.iter().cloned().chain(pieces) {
        let question = &question;
        let passing: Vec<&Spot> =
            all.iter().filter(|spot| passes(&question.filter, spot)).collect();
        check_list(stores, question, &passing).await;
        check_map(stores, question, &passing).await;
    }
}

fn passes(filter: &SpotFilter, spot: &Spot) -> bool {
    let content = &spot.content;
    filter.query.as_ref().is_none_or(|query| query.matches(content.name(), content.address()))
        && (filter.tags.is_empty() || filter.tags.intersects(content.tags()))
        && (filter.bookmarked_by.is_none() || is_bookmarked(spot.id))
}

fn overviews(spots: &[&Spot]) -> Vec<SpotOverview> {
    spots.iter().map(|spot| spot.overview()).collect()
}

/// The pages together equal the naive list, and each has its total.
async fn check_list(stores: &Stores, question: &Question, passing: &[&Spot]) {
    let mut expected = passing.to_vec();
    // UTF-8 bytes sort in the order of code points.
    expected
        .sort_by(|one, other| (one.content.name(), one.id).cmp(&(other.content.name(), other.id)));
    if question.sort == SpotSort::NameDescending {
        expected.reverse();
    }
    let mut found = Vec::new();
    for number in 1.. {
        let request = page(number, question.page_size);
        let page =
            stores.spots.search(&question.filter, question.sort, request).await.unwrap().unwrap();
        assert_eq!(page.total, expected.len() as u64, "{question:?}");
        if page.items.is_empty() {
            assert!(number > page.pages());
            break;
        }
        found.extend(page.items);
    }
    assert_eq!(found, overviews(&expected), "{question:?}");
}

/// The map equals the naive one, spread over the grid when there are too many spots.
async fn check_map(stores: &Stores, question: &Question, passing: &[&Spot]) {
    let Question { bounds, max, .. } = question;
    let mut groups: Vec<Vec<&Spot>> = Vec::new();
    for range in bounds.grid(*max) {
        let mut group: Vec<&Spot> = passing
            .iter()
            .copied()
            .filter(|spot| {
                bounds.contains(spot.content.at()) && range.contains(&cell(spot.content.at()))
            })
            .collect();
        group.sort_by_key(|spot| (cell(spot.content.at()), spot.id));
        groups.push(group);
    }
    let inside = groups.iter().map(Vec::len).sum::<usize>();
    let in_box = passing.iter().filter(|spot| bounds.contains(spot.content.at())).count();
    assert_eq!(inside, in_box, "the grid covers the box");
    let mut expected = spread(groups, *max);
    expected.sort_by_key(|spot| spot.id);
    let found = stores.spots.map(&question.filter, bounds, *max).await.unwrap().unwrap();
    assert_eq!(found, overviews(&expected), "{question:?}");
    assert_eq!(found.len(), in_box.min(*max));
}
