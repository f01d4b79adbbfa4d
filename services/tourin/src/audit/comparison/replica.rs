//! Compares the recommendation service's histories.

use std::collections::{BTreeMap, BTreeSet};

use super::super::ledger::{Ledger, Outcome, SpotId};
use super::super::observation::Effects;
use super::{Comparison, Observed, Row, listed, should_be_there};

impl Comparison {
    pub(super) fn compare_replica(
        &mut self,
        ledger: &Ledger,
        observed: &Observed,
        instance: &str,
        effects: &Effects,
    ) -> Row {
        let mut row = Row::default();
        let of_ledger = ledger.bookmarks();
        for ((member, spot), bookmark) in of_ledger {
            let due = should_be_there(bookmark, listed(&observed.store, member, *spot) > 0);
            let history = effects.histories.get(member);
            let times = history.map_or(0, |history| {
                history.bookmarked.iter().filter(|kept| *kept == spot).count()
            });
            let what = format!("replica at {instance}, spot {spot} of {member}");
            let is_known = bookmark.placed == Outcome::Acknowledged
                && bookmark.removed != Some(Outcome::Unknown);
            if !is_known {
                row.unknown += 1;
            } else if due {
                row.acknowledged += 1;
            }
            match (due, times) {
                (true, 0) => {
                    row.missing += 1;
                    self.differ_for_now(format!("{what}: not there"));
                }
                (false, 1..) => {
                    row.uncaused += 1;
                    let text = format!("{what}: there, and should not be");
                    // The event of its removal may still wait.
                    match bookmark.removed {
                        Some(Outcome::Acknowledged | Outcome::Unknown) => self.differ_for_now(text),
                        Some(Outcome::Refused) | None => self.differ(text),
                    }
                }
                (true, _) => row.found += 1,
                (false, 0) => {}
            }
            if times > 1 {
                row.doubled += 1;
                self.differ(format!("{what}: there {times} times"));
            }
        }
        for (member, history) in &effects.histories {
            let unknown_spots = history
                .bookmarked
                .iter()
                .filter(|spot| !of_ledger.contains_key(&(member.clone(), **spot)));
            for spot in unknown_spots {
                row.uncaused += 1;
                self.differ(format!("replica at {instance}, spot {spot} of {member}: never done"));
            }
        }
        self.compare_views(ledger, observed, instance, effects, &mut row);
        row
    }

    /// Compares views: reviews count as views, and there are no other ones.
    fn compare_views(
        &mut self,
        ledger: &Ledger,
        observed: &Observed,
        instance: &str,
        effects: &Effects,
        row: &mut Row,
    ) {
        let listed: BTreeSet<&str> =
            observed.store.reviews.iter().map(|review| review.content.as_str()).collect();
        // By member and spot: whether one of the reviews was acknowledged.
        let mut due: BTreeMap<(&str, SpotId), bool> = BTreeMap::new();
        for (content, review) in ledger.reviews() {
            let is_known = review.written == Outcome::Acknowledged;
            let is_there = review.written == Outcome::Unknown && listed.contains(content.as_str());
            if is_known || is_there {
                *due.entry((&review.member, review.spot)).or_default() |= is_known;
            }
        }
        for (member, history) in &effects.histories {
            for spot in &history.viewed {
                match due.remove(&(member.as_str(), *spot)) {
                    Some(true) => {
                        row.acknowledged += 1;
                        row.found += 1;
                    }
                    Some(false) => {
                        row.unknown += 1;
                        row.found += 1;
                    }
                    None => {
                        row.uncaused += 1;
                        let what = format!("replica at {instance}, spot {spot} of {member}");
                        self.differ(format!("{what}: never done"));
                    }
                }
            }
        }
        for ((member, spot), is_known) in due {
            if is_known {
                row.acknowledged += 1;
            } else {
                row.unknown += 1;
            }
            row.missing += 1;
            self.differ_for_now(format!(
                "replica at {instance}, spot {spot} of {member}: the review has left no view"
            ));
        }
    }
}
