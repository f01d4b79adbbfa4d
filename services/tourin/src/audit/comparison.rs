//! Compares what was done with what the mesh shows.
//!
//! # What is compared
//! - *Store*: an acknowledged bookmark or review is listed once, a removed one is not.
//! - *Trend*: a spot's score is its score from before, plus one bookmark's weight for each member who
//!   bookmarked it, both decayed. Each member bookmarks a spot once, so no bookmark is ignored as a
//!   repetition. The score is a sum, in which a lost and a doubled effect at one spot cancel out, so
//!   the audit spreads its writes over many spots.
//! - *Replica*: each member's history in the recommendation service equals the acknowledged state. A
//!   review counts as a view, also after it is deleted; the audit's members view nothing else.
//!
//! If a write's outcome is unknown, the store decides, and the effects must agree with it. Untouched
//! spots must show no change. Other traffic on the same spots looks like an effect without a cause.

use std::collections::{BTreeMap, BTreeSet};

use self::expected::Expected;
use super::ledger::{Bookmark, Ledger, Outcome, SpotId};
use super::observation::{Effects, Scores, Store};

mod expected;
mod replica;
#[cfg(test)]
mod tests;

/// A row of the report's table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Row {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes whose outcome is unknown to the client.
    pub unknown: u64,
    /// Writes that the mesh shows.
    pub found: u64,
    /// Acknowledged writes that the mesh does not show.
    pub missing: u64,
    /// Effects that occurred more often than the write.
    pub doubled: u64,
    /// Effects without a write.
    pub uncaused: u64,
    /// Effects that came after they were due.
    pub late: u64,
    /// Missing effects whose events may still wait.
    pub waiting: u64,
}

impl Row {
    /// Counts as late what was wrong in `due`, the same row when effects were due, and is right now.
    pub(super) fn late_since(&mut self, due: Self) {
        self.late = (due.missing + due.uncaused).saturating_sub(self.missing + self.uncaused);
    }

    fn mark_waiting(&mut self) {
        self.waiting = std::mem::take(&mut self.missing);
    }

    fn count(&mut self, outcome: Outcome, is_so: bool) -> Verdict {
        match outcome {
            Outcome::Acknowledged => self.acknowledged += 1,
            Outcome::Unknown => self.unknown += 1,
            Outcome::Refused if is_so => {
                self.uncaused += 1;
                return Verdict::Uncaused;
            }
            Outcome::Refused => return Verdict::Right,
        }
        if is_so {
            self.found += 1;
        } else if outcome == Outcome::Acknowledged {
            self.missing += 1;
            return Verdict::Missing;
        }
        Verdict::Right
    }

    /// The worse count of each column, for instances that should agree.
    fn worst(self, other: Self) -> Self {
        Self {
            acknowledged: self.acknowledged.max(other.acknowledged),
            unknown: self.unknown.max(other.unknown),
            found: self.found.min(other.found),
            missing: self.missing.max(other.missing),
            doubled: self.doubled.max(other.doubled),
            uncaused: self.uncaused.max(other.uncaused),
            late: self.late.max(other.late),
            waiting: self.waiting.max(other.waiting),
        }
    }
}

enum Verdict {
    Right,
    Missing,
    Uncaused,
}

/// The table, and a text for each difference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Bookmarks that were to stay.
    pub bookmarks: Row,
    /// Bookmarks that were to go: found means gone.
    pub removals: Row,
    /// Reviews that were to stay.
    pub reviews: Row,
    /// Reviews that were to go: found means gone.
    pub deleted_reviews: Row,
    /// Bookmarks counted by the trend, also of those that were removed afterwards.
    pub trend_effects: Row,
    /// Bookmarks in the recommendation service's own histories.
    pub replica_entries: Row,
    /// The differences.
    pub differences: Vec<String>,
    /// How many of them a waiting event could mend.
    pub mendable: usize,
}

/// What the mesh shows.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The store's lists.
    pub store: Store,
    /// The effects by instance of the recommendation service; each instance must show all.
    pub effects: BTreeMap<String, Effects>,
}

/// Compares. `before` are the scores of touched and untouched spots before the first write.
pub fn compare(ledger: &Ledger, before: &Scores, observed: &Observed) -> Comparison {
    let mut comparison = Comparison::default();
    comparison.compare_bookmarks(ledger, &observed.store);
    comparison.compare_reviews(ledger, &observed.store);
    let mut rows: Option<(Row, Row)> = None;
    for (instance, effects) in &observed.effects {
        let trend = comparison.compare_trend(ledger, before, observed, instance, &effects.scores);
        let replica = comparison.compare_replica(ledger, observed, instance, effects);
        rows = Some(match rows {
            None => (trend, replica),
            Some((trends, replicas)) => (trends.worst(trend), replicas.worst(replica)),
        });
    }
    (comparison.trend_effects, comparison.replica_entries) = rows.unwrap_or_default();
    if observed.effects.is_empty() {
        comparison.differences.push("no instance showed any effect".to_owned());
    }
    comparison
}

/// How often the store lists a bookmark.
fn listed(store: &Store, member: &str, spot: SpotId) -> usize {
    let of_member = store.bookmarks.get(member).map(Vec::as_slice).unwrap_or_default();
    of_member.iter().filter(|listed| **listed == spot).count()
}

/// Whether a bookmark was placed: by its outcome, or by the store if that is unknown.
fn was_placed(bookmark: &Bookmark, is_listed: bool) -> bool {
    match bookmark.placed {
        Outcome::Acknowledged => true,
        Outcome::Unknown => is_listed,
        Outcome::Refused => false,
    }
}

/// Whether a bookmark should exist now: by its outcome, or by the store if that is unknown.
fn should_be_there(bookmark: &Bookmark, is_listed: bool) -> bool {
    match bookmark.removed {
        Some(Outcome::Acknowledged) => false,
        Some(Outcome::Unknown) => is_listed,
        Some(Outcome::Refused) | None => was_placed(bookmark, is_listed),
    }
}

impl Comparison {
    fn differ(&mut self, text: String) {
        self.differences.push(text);
    }

    /// Notes a difference that a waiting event could mend.
    fn differ_for_now(&mut self, text: String) {
        self.mendable += 1;
        self.differ(text);
    }

    /// Counts missing effects as waiting.
    pub(super) fn mark_waiting(&mut self) {
        self.trend_effects.mark_waiting();
        self.replica_entries.mark_waiting();
    }

    fn compare_bookmarks(&mut self, ledger: &Ledger, store: &Store) {
        for ((member, spot), bookmark) in ledger.bookmarks() {
            let times = listed(store, member, *spot);
            let what = format!("bookmark of spot {spot} by {member}");
            // If its removal was refused, the bookmark stays.
            if let Some(removed) = bookmark.removed.filter(|removed| *removed != Outcome::Refused) {
                if let Verdict::Missing = self.removals.count(removed, times == 0) {
                    self.differ(format!("{what}: removed, and still listed"));
                }
            } else {
                match self.bookmarks.count(bookmark.placed, times > 0) {
                    Verdict::Missing => self.differ(format!("{what}: acknowledged, not listed")),
                    Verdict::Uncaused => self.differ(format!("{what}: refused, and listed")),
                    Verdict::Right => {}
                }
            }
            if times > 1 {
                self.bookmarks.doubled += 1;
                self.differ(format!("{what}: listed {times} times"));
            }
        }
        for (member, spots) in &store.bookmarks {
            for spot in spots {
                if !ledger.bookmarks().contains_key(&(member.clone(), *spot)) {
                    self.bookmarks.uncaused += 1;
                    self.differ(format!("bookmark of spot {spot} by {member}: never placed"));
                }
            }
        }
    }

    fn compare_reviews(&mut self, ledger: &Ledger, store: &Store) {
        let mut seen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for review in &store.reviews {
            seen.entry(&review.content).or_default().push(&review.id);
        }
        for (content, review) in ledger.reviews() {
            let ids = seen.remove(content.as_str()).unwrap_or_default();
            // By its id, if that is known.
            let is_there = match &review.id {
                Some(id) => ids.contains(&id.as_str()),
                None => !ids.is_empty(),
            };
            let what = format!("review '{content}' of spot {} by {}", review.spot, review.member);
            if let Some(deleted) = review.deleted.filter(|deleted| *deleted != Outcome::Refused) {
                if let Verdict::Missing = self.deleted_reviews.count(deleted, !is_there) {
                    self.differ(format!("{what}: deleted, and still listed"));
                }
            } else {
                match self.reviews.count(review.written, is_there) {
                    Verdict::Missing => self.differ(format!("{what}: acknowledged, not listed")),
                    Verdict::Uncaused => self.differ(format!("{what}: refused, and listed")),
                    Verdict::Right => {}
                }
            }
            let expected = usize::from(is_there);
            if ids.len() > expected.max(usize::from(review.id.is_none())) {
                self.reviews.doubled += 1;
                self.differ(format!("{what}: there under the numbers {}", ids.join(", ")));
            }
        }
        for (content, ids) in seen {
            self.reviews.uncaused += ids.len() as u64;
            self.differ(format!("review '{content}' ({}): never written", ids.join(", ")));
        }
    }

    fn compare_trend(
        &mut self,
        ledger: &Ledger,
        before: &Scores,
        observed: &Observed,
        instance: &str,
        scores: &Scores,
    ) -> Row {
        let mut row = Row::default();
        let mut expected: BTreeMap<SpotId, Expected> = BTreeMap::new();
        for ((member, spot), bookmark) in ledger.bookmarks() {
            let is_placed = was_placed(bookmark, listed(&observed.store, member, *spot) > 0);
            match bookmark.placed {
                Outcome::Acknowledged => row.acknowledged += 1,
                Outcome::Unknown => row.unknown += 1,
                Outcome::Refused => {}
            }
            if is_placed {
                expected.entry(*spot).or_default().add(bookmark, scores);
            }
        }
        let spots: BTreeSet<SpotId> = before
            .scores
            .keys()
            .chain(scores.scores.keys())
            .chain(expected.keys())
            .copied()
            .collect();
        for spot in spots {
            let expected = expected.remove(&spot).unwrap_or_default();
            let kept = before.of(spot) * scores.decay(before.at);
            let off = expected.off(scores.of(spot) - kept, before, scores);
            row.found += expected.effects.saturating_sub(off.missing);
            row.missing += off.missing;
            let (kind, surplus) = if expected.effects > 0 {
                ("more than was done", &mut row.doubled)
            } else {
                ("for which nothing was done", &mut row.uncaused)
            };
            *surplus += off.surplus;
            let (found, due) = (scores.of(spot), kept + expected.max);
            if off.missing > 0 {
                self.differ_for_now(format!(
                    "trend at {instance}, spot {spot}: {found:.3} is {} bookmarks less than {due:.3}",
                    off.missing
                ));
            }
            if off.surplus > 0 {
                self.differ(format!(
                    "trend at {instance}, spot {spot}: {found:.3} over {due:.3} is {} {kind}",
                    off.surplus
                ));
            }
            if off.is_unclear {
                self.differ(format!(
                    "trend at {instance}, spot {spot}: the half-life of {} ms is too short to tell",
                    scores.half_life_ms
                ));
            }
        }
        row
    }
}
