//! All writes of the audit with their outcomes.
//!
//! The outcome of a request that was cut or timed out is *unknown*: the write may have happened or not,
//! and both are right if all parts of the mesh agree.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};

/// How long a service may still work on a request whose client has timed out, in seconds: its own limit is
/// 10 s.
const SERVICE_TIMEOUT_S: i64 = 15;

/// A spot's number.
pub type SpotId = u64;

/// The outcome of a write, as its client knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Confirmed: it must not be lost.
    Acknowledged,
    /// No response, or one that does not say whether it happened.
    Unknown,
    /// Refused: it must not have happened.
    Refused,
}

/// The time of a write, between request and response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRange {
    /// When the request was made.
    pub from: DateTime<Utc>,
    /// The latest time at which it can have happened; `None` before the response.
    pub to: Option<DateTime<Utc>>,
}

/// A bookmark of the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bookmark {
    /// The outcome of placing it.
    pub placed: Outcome,
    /// When it was placed.
    pub when: TimeRange,
    /// The outcome of removing it; `None` when not tried.
    pub removed: Option<Outcome>,
}

/// A review of the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    /// Its author.
    pub member: String,
    /// Its spot.
    pub spot: SpotId,
    /// The outcome of writing it.
    pub written: Outcome,
    /// Its number, when writing was acknowledged.
    pub id: Option<String>,
    /// The outcome of deleting it; `None` when not tried.
    pub deleted: Option<Outcome>,
}

/// All writes of an audit, one entry per bookmark and review; bounded by the schedule.
#[derive(Debug, Default)]
pub struct Ledger {
    bookmarks: BTreeMap<(String, SpotId), Bookmark>,
    /// By content, which is unique.
    reviews: BTreeMap<String, Review>,
    removable: VecDeque<(String, SpotId)>,
    deletable: VecDeque<String>,
}

impl Ledger {
    /// Notes a bookmark before it is placed. Its outcome is unknown until the response.
    pub fn placing(&mut self, member: &str, spot: SpotId, from: DateTime<Utc>) {
        let when = TimeRange { from, to: None };
        let bookmark = Bookmark { placed: Outcome::Unknown, when, removed: None };
        self.bookmarks.insert((member.to_owned(), spot), bookmark);
    }

    /// Notes the outcome of placing a bookmark.
    pub fn placed(&mut self, member: &str, spot: SpotId, outcome: Outcome, at: DateTime<Utc>) {
        let key = (member.to_owned(), spot);
        if let Some(bookmark) = self.bookmarks.get_mut(&key) {
            bookmark.placed = outcome;
            bookmark.when.to = Some(match outcome {
                Outcome::Unknown => at + TimeDelta::seconds(SERVICE_TIMEOUT_S),
                Outcome::Acknowledged | Outcome::Refused => at,
            });
            if outcome == Outcome::Acknowledged {
                self.removable.push_back(key);
            }
        }
    }

    /// Takes the oldest acknowledged bookmark for removal.
    pub fn removing(&mut self) -> Option<(String, SpotId)> {
        let key = self.removable.pop_front()?;
        self.bookmarks.get_mut(&key)?.removed = Some(Outcome::Unknown);
        Some(key)
    }

    /// Notes the outcome of removing a bookmark.
    pub fn removed(&mut self, member: &str, spot: SpotId, outcome: Outcome) {
        if let Some(bookmark) = self.bookmarks.get_mut(&(member.to_owned(), spot)) {
            bookmark.removed = Some(outcome);
        }
    }

    /// Notes a review before it is written.
    pub fn writing(&mut self, member: &str, spot: SpotId, content: &str) {
        let member = member.to_owned();
        let review = Review { member, spot, written: Outcome::Unknown, id: None, deleted: None };
        self.reviews.insert(content.to_owned(), review);
    }

    /// Notes the outcome of writing a review, with its id if it was acknowledged.
    pub fn written(&mut self, content: &str, outcome: Outcome, id: Option<String>) {
        if let Some(review) = self.reviews.get_mut(content) {
            review.written = outcome;
            if outcome == Outcome::Acknowledged && id.is_some() {
                self.deletable.push_back(content.to_owned());
            }
            review.id = id;
        }
    }

    /// Takes the oldest acknowledged review for deletion: its content, author and id.
    pub fn deleting(&mut self) -> Option<(String, String, String)> {
        let content = self.deletable.pop_front()?;
        let review = self.reviews.get_mut(&content)?;
        review.deleted = Some(Outcome::Unknown);
        let id = review.id.clone()?;
        Some((content, review.member.clone(), id))
    }

    /// Notes the outcome of deleting a review.
    pub fn deleted(&mut self, content: &str, outcome: Outcome) {
        if let Some(review) = self.reviews.get_mut(content) {
            review.deleted = Some(outcome);
        }
    }

    /// The bookmarks by member and spot.
    pub fn bookmarks(&self) -> &BTreeMap<(String, SpotId), Bookmark> {
        &self.bookmarks
    }

    /// The reviews by content.
    pub fn reviews(&self) -> &BTreeMap<String, Review> {
        &self.reviews
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_acknowledged_is_removed_and_only_once() {
        let (mut ledger, now) = (Ledger::default(), Utc::now());
        for (spot, outcome) in
            [(1, Outcome::Unknown), (2, Outcome::Acknowledged), (3, Outcome::Refused)]
        {
            ledger.placing("hana12345", spot, now);
            ledger.placed("hana12345", spot, outcome, now);
        }
        assert_eq!(ledger.removing(), Some(("hana12345".to_owned(), 2)));
        assert_eq!(ledger.removing(), None);
        let bookmark = ledger.bookmarks()[&("hana12345".to_owned(), 2)];
        assert_eq!(bookmark.removed, Some(Outcome::Unknown), "until it is answered");
    }

    #[test]
    fn a_review_without_a_number_is_not_deleted() {
        let mut ledger = Ledger::default();
        ledger.writing("hana12345", 1, "cut");
        ledger.written("cut", Outcome::Unknown, None);
        ledger.writing("hana12345", 1, "good");
        ledger.written("good", Outcome::Acknowledged, Some("7".to_owned()));
        let expected = ("good".to_owned(), "hana12345".to_owned(), "7".to_owned());
        assert_eq!(ledger.deleting(), Some(expected));
        assert_eq!(ledger.deleting(), None);
    }
}
