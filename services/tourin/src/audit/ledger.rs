//! What the audit has done: every write with its outcome.
//!
//! An outcome is what the client was told. A request that was cut or timed out is *unknown*: the
//! write may have happened or not, and both are right, as long as the rest of the mesh agrees.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};

/// For how long a service may still work on a request whose client has given up, in seconds: its
/// own limit for a request is 10 s.
const SERVICE_TIMEOUT_S: i64 = 15;

/// A spot's number.
pub type SpotId = u64;

/// What a client knows of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was confirmed: it must not be lost.
    Acknowledged,
    /// No answer, or one that leaves open what happened.
    Unknown,
    /// It was refused: it must not have happened.
    Refused,
}

/// When something happened, as far as a client can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRange {
    /// The request was made then.
    pub from: DateTime<Utc>,
    /// It cannot have happened later; `None` while there is no answer.
    pub to: Option<DateTime<Utc>>,
}

/// A bookmark that the audit placed, and perhaps removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bookmark {
    /// How placing it went.
    pub placed: Outcome,
    /// When it was placed.
    pub when: TimeRange,
    /// How removing it went; `None` when that was not tried.
    pub removed: Option<Outcome>,
}

/// A review that the audit wrote, and perhaps deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    /// Its author.
    pub member: String,
    /// What it is about.
    pub spot: SpotId,
    /// How writing it went.
    pub written: Outcome,
    /// Its number, when writing was acknowledged.
    pub id: Option<String>,
    /// How deleting it went; `None` when that was not tried.
    pub deleted: Option<Outcome>,
}

/// Every write of an audit. One entry for each bookmark and review, so that the schedule bounds it.
#[derive(Debug, Default)]
pub struct Ledger {
    bookmarks: BTreeMap<(String, SpotId), Bookmark>,
    /// By content, which is unique.
    reviews: BTreeMap<String, Review>,
    removable: VecDeque<(String, SpotId)>,
    deletable: VecDeque<String>,
}

impl Ledger {
    /// Notes that a bookmark is about to be placed. Until it is answered its outcome is unknown.
    pub fn placing(&mut self, member: &str, spot: SpotId, from: DateTime<Utc>) {
        let when = TimeRange { from, to: None };
        let bookmark = Bookmark { placed: Outcome::Unknown, when, removed: None };
        self.bookmarks.insert((member.to_owned(), spot), bookmark);
    }

    /// Notes how placing a bookmark went.
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

    /// Takes an acknowledged bookmark that nobody has tried to remove, the oldest, and notes that it
    /// is about to be removed.
    pub fn removing(&mut self) -> Option<(String, SpotId)> {
        let key = self.removable.pop_front()?;
        self.bookmarks.get_mut(&key)?.removed = Some(Outcome::Unknown);
        Some(key)
    }

    /// Notes how removing a bookmark went.
    pub fn removed(&mut self, member: &str, spot: SpotId, outcome: Outcome) {
        if let Some(bookmark) = self.bookmarks.get_mut(&(member.to_owned(), spot)) {
            bookmark.removed = Some(outcome);
        }
    }

    /// Notes that a review is about to be written.
    pub fn writing(&mut self, member: &str, spot: SpotId, content: &str) {
        let member = member.to_owned();
        let review = Review { member, spot, written: Outcome::Unknown, id: None, deleted: None };
        self.reviews.insert(content.to_owned(), review);
    }

    /// Notes how writing a review went; `id` is its number when it was acknowledged.
    pub fn written(&mut self, content: &str, outcome: Outcome, id: Option<String>) {
        if let Some(review) = self.reviews.get_mut(content) {
            review.written = outcome;
            if outcome == Outcome::Acknowledged && id.is_some() {
                self.deletable.push_back(content.to_owned());
            }
            review.id = id;
        }
    }

    /// Takes an acknowledged review that nobody has tried to delete, the oldest, and notes that it
    /// is about to be deleted: its content, author and number.
    pub fn deleting(&mut self) -> Option<(String, String, String)> {
        let content = self.deletable.pop_front()?;
        let review = self.reviews.get_mut(&content)?;
        review.deleted = Some(Outcome::Unknown);
        let id = review.id.clone()?;
        Some((content, review.member.clone(), id))
    }

    /// Notes how deleting a review went.
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
