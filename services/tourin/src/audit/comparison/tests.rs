//! Ledgers compared with meshes that agree and that do not.

use chrono::{DateTime, TimeDelta, Utc};

use super::super::observation::{History, SeenReview, Weights};
use super::*;

const HANA: &str = "hana12345";
const DURI: &str = "duri12345";
const UNTOUCHED: SpotId = 9;

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn after(seconds: i64) -> DateTime<Utc> {
    start() + TimeDelta::seconds(seconds)
}

fn scores(at: DateTime<Utc>, scores: &[(SpotId, f64)]) -> Scores {
    Scores {
        at,
        half_life_ms: 3_600_000,
        weights: Weights { bookmark: 2.0, view: 1.0 },
        scores: scores.iter().copied().collect(),
    }
}

/// An audit with each kind of action.
struct Case {
    ledger: Ledger,
    before: Scores,
    observed: Observed,
}

/// Two members at spots 1 to 3: Hana placed 1, 2 and 3 and removed 2, Duri placed 1; two reviews,
/// one deleted. The mesh shows exactly that, half an hour later.
fn agreeing() -> Case {
    let mut ledger = Ledger::default();
    for (second, (member, spot)) in
        [(HANA, 2), (HANA, 1), (HANA, 3), (DURI, 1)].into_iter().enumerate()
    {
        let second = i64::try_from(second).unwrap();
        ledger.placing(member, spot, after(second));
        ledger.placed(member, spot, Outcome::Acknowledged, after(second + 1));
    }
    assert_eq!(ledger.removing(), Some((HANA.to_owned(), 2)));
    ledger.removed(HANA, 2, Outcome::Acknowledged);
    for (content, id) in [("gone", "11"), ("stays", "12")] {
        ledger.writing(HANA, 1, content);
        ledger.written(content, Outcome::Acknowledged, Some(id.to_owned()));
    }
    ledger.deleting().unwrap();
    ledger.deleted("gone", Outcome::Acknowledged);

    let before = scores(start(), &[(1, 4.0), (UNTOUCHED, 6.0)]);
    let mut after_all = scores(after(1_800), &[]);
    let half_an_hour = after_all.decay(after(1));
    let decayed = |units: f64| units * half_an_hour;
    after_all.scores = [(1, decayed(4.0 + 4.0)), (2, decayed(2.0)), (3, decayed(2.0))]
        .into_iter()
        .chain([(UNTOUCHED, 6.0 * after_all.decay(start()))])
        .collect();
    let history =
        |bookmarked: &[SpotId]| History { bookmarked: bookmarked.to_vec(), viewed: Vec::new() };
    // Hana has written about spot 1.
    let of_hana = History { viewed: vec![1], ..history(&[1, 3]) };
    let histories = [(HANA.to_owned(), of_hana), (DURI.to_owned(), history(&[1]))].into();
    let store = Store {
        bookmarks: [(HANA.to_owned(), vec![3, 1]), (DURI.to_owned(), vec![1])].into(),
        reviews: vec![review("12", "stays")],
    };
    let effects = [("one".to_owned(), Effects { scores: after_all, histories })].into();
    Case { ledger, before, observed: Observed { store, effects } }
}

fn review(id: &str, content: &str) -> SeenReview {
    SeenReview { id: id.to_owned(), user_id: HANA.to_owned(), content: content.to_owned() }
}

impl Case {
    fn compare(&self) -> Comparison {
        compare(&self.ledger, &self.before, &self.observed)
    }

    fn score(&mut self, spot: SpotId) -> &mut f64 {
        let effects = self.observed.effects.get_mut("one").unwrap();
        effects.scores.scores.entry(spot).or_default()
    }

    fn history(&mut self, member: &str) -> &mut History {
        self.observed.effects.get_mut("one").unwrap().histories.get_mut(member).unwrap()
    }

    fn bookmarks(&mut self, member: &str) -> &mut Vec<SpotId> {
        self.observed.store.bookmarks.get_mut(member).unwrap()
    }

    /// Checks that the only difference is one with these words.
    #[track_caller]
    fn differs_by(&self, words: &str) -> Comparison {
        let comparison = self.compare();
        assert_eq!(comparison.differences.len(), 1, "{:#?}", comparison.differences);
        assert!(comparison.differences[0].contains(words), "{:#?}", comparison.differences);
        comparison
    }
}

#[test]
fn equal_states_have_no_difference() {
    let comparison = agreeing().compare();
    assert_eq!(comparison.differences, Vec::<String>::new());
    let row = |acknowledged, found| Row { acknowledged, found, ..Row::default() };
    assert_eq!(comparison.bookmarks, row(3, 3));
    assert_eq!(comparison.removals, row(1, 1));
    assert_eq!(comparison.reviews, row(1, 1));
    assert_eq!(comparison.deleted_reviews, row(1, 1));
    assert_eq!(comparison.trend_effects, row(4, 4));
    assert_eq!(comparison.replica_entries, row(4, 4));
}

#[test]
fn a_lost_bookmark_is_detected() {
    let mut case = agreeing();
    case.bookmarks(DURI).clear();
    assert_eq!(case.differs_by("acknowledged, not listed").bookmarks.missing, 1);
}

#[test]
fn a_bookmark_that_reappeared_is_detected() {
    let mut case = agreeing();
    case.bookmarks(HANA).push(2);
    assert_eq!(case.differs_by("removed, and still listed").removals.missing, 1);
}

#[test]
fn duplicate_and_unexpected_bookmarks_are_detected() {
    let mut case = agreeing();
    case.bookmarks(DURI).push(1);
    assert_eq!(case.differs_by("listed 2 times").bookmarks.doubled, 1);
    let mut case = agreeing();
    case.bookmarks(DURI).push(3);
    assert_eq!(case.differs_by("never placed").bookmarks.uncaused, 1);
}

#[test]
fn lost_doubled_and_returned_reviews_are_found_out() {
    let mut case = agreeing();
    case.observed.store.reviews.clear();
    assert_eq!(case.differs_by("acknowledged, not listed").reviews.missing, 1);
    let mut case = agreeing();
    case.observed.store.reviews.push(review("13", "stays"));
    assert_eq!(case.differs_by("12, 13").reviews.doubled, 1);
    let mut case = agreeing();
    case.observed.store.reviews.push(review("11", "gone"));
    assert_eq!(case.differs_by("still listed").deleted_reviews.missing, 1);
    let mut case = agreeing();
    case.observed.store.reviews.push(review("14", "whose?"));
    assert_eq!(case.differs_by("never written").reviews.uncaused, 1);
}

#[test]
fn a_lost_effect_is_detected_after_its_decay() {
    let mut case = agreeing();
    *case.score(1) -= 2.0 * 0.7;
    let trend = case.differs_by("1 bookmarks less").trend_effects;
    assert_eq!((trend.missing, trend.found), (1, 3));
}

#[test]
fn a_duplicate_effect_is_detected() {
    let mut case = agreeing();
    *case.score(3) += 2.0 * 0.7;
    let trend = case.differs_by("more than was done").trend_effects;
    assert_eq!((trend.doubled, trend.missing, trend.uncaused), (1, 0, 0));
}

#[test]
fn an_effect_without_a_cause_is_detected_even_of_a_view() {
    let mut case = agreeing();
    *case.score(UNTOUCHED) += 0.7;
    assert_eq!(case.differs_by("nothing was done").trend_effects.uncaused, 1);
    let mut case = agreeing();
    *case.score(77) = 1.0;
    assert_eq!(case.differs_by("spot 77").trend_effects.uncaused, 1);
    let mut case = agreeing();
    case.history(HANA).viewed.push(3);
    assert_eq!(case.differs_by("never done").replica_entries.uncaused, 1);
}

#[test]
fn a_lost_baseline_is_detected() {
    let mut case = agreeing();
    *case.score(UNTOUCHED) = 0.0;
    assert_eq!(case.differs_by("less than").trend_effects.missing, 3);
}

#[test]
fn the_replica_equals_the_acknowledged_state() {
    let mut case = agreeing();
    case.history(HANA).bookmarked.retain(|spot| *spot != 3);
    assert_eq!(case.differs_by("not there").replica_entries.missing, 1);
    let mut case = agreeing();
    case.history(HANA).viewed.clear();
    assert_eq!(case.differs_by("left no view").replica_entries.missing, 1);
    let mut case = agreeing();
    case.history(HANA).bookmarked.push(2);
    assert_eq!(case.differs_by("should not be").replica_entries.uncaused, 1);
}

#[test]
fn of_an_unknown_bookmark_both_are_right_but_all_must_agree() {
    let unknown = || {
        let mut case = agreeing();
        case.ledger.placing(DURI, 3, after(4));
        case.ledger.placed(DURI, 3, Outcome::Unknown, after(5));
        case
    };
    // It did not happen.
    let comparison = unknown().compare();
    assert_eq!(comparison.differences, Vec::<String>::new());
    assert_eq!((comparison.bookmarks.unknown, comparison.bookmarks.found), (1, 3));
    // It happened.
    let mut case = unknown();
    case.bookmarks(DURI).push(3);
    case.history(DURI).bookmarked.push(3);
    *case.score(3) += 2.0 * 0.7;
    assert_eq!(case.compare().differences, Vec::<String>::new());
    // It happened, without its effect.
    *case.score(3) -= 2.0 * 0.7;
    assert_eq!(case.differs_by("bookmarks less").trend_effects.missing, 1);
    // Its effect happened, without it.
    let mut case = unknown();
    *case.score(3) += 2.0 * 0.7;
    assert_eq!(case.differs_by("more than was done").trend_effects.doubled, 1);
}

#[test]
fn of_an_unknown_removal_and_review_both_are_right() {
    let mut case = agreeing();
    assert!(case.ledger.removing().is_some(), "Hana's of spot 1");
    case.ledger.writing(HANA, 1, "cut");
    assert_eq!(case.compare().differences, Vec::<String>::new(), "neither happened");
    case.bookmarks(HANA).retain(|spot| *spot != 1);
    case.history(HANA).bookmarked.retain(|spot| *spot != 1);
    case.observed.store.reviews.push(review("13", "cut"));
    assert_eq!(case.compare().differences, Vec::<String>::new(), "both happened");
    case.observed.store.reviews.push(review("14", "cut"));
    assert_eq!(case.differs_by("13, 14").reviews.doubled, 1);
}

#[test]
fn a_refused_action_must_have_no_effect() {
    let mut case = agreeing();
    case.ledger.placing(DURI, 2, after(4));
    case.ledger.placed(DURI, 2, Outcome::Refused, after(4));
    assert_eq!(case.compare().differences, Vec::<String>::new());
    case.bookmarks(DURI).push(2);
    assert_eq!(case.differs_by("refused, and listed").bookmarks.uncaused, 1);
}

#[test]
fn every_instance_must_show_it() {
    let mut case = agreeing();
    let mut other = case.observed.effects["one"].clone();
    other.scores.scores.remove(&2);
    case.observed.effects.insert("two".to_owned(), other);
    assert_eq!(case.differs_by("at two").trend_effects.missing, 1);
    case.observed.effects.clear();
    case.differs_by("no instance");
}

#[test]
fn a_half_life_too_short_to_measure_is_reported() {
    let mut case = agreeing();
    case.before.half_life_ms = 500;
    case.observed.effects.get_mut("one").unwrap().scores.half_life_ms = 500;
    let differences = case.compare().differences;
    assert!(differences.iter().any(|text| text.contains("too short to tell")), "{differences:?}");
}
