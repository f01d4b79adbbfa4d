//! The stored form of a member's interaction with a spot.

use crate::domain::interaction::{Change, ChangeOrder};

/// A stored view this far in the future, in microseconds, was dated by a clock that was ahead (5
/// minutes). A current view replaces it.
const VIEWED_AHEAD: i64 = 5 * 60 * 1_000_000;

/// The stored form of a [`ChangeOrder`]. The greater of two is the later one.
///
/// Rows from before versions existed have version 0, the lowest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    /// 0 without a version. Compared first.
    pub(crate) version: i64,
    /// Microseconds since the epoch.
    pub(crate) at: i64,
}

impl From<ChangeOrder> for Stamp {
    fn from(moment: ChangeOrder) -> Self {
        let version = moment.version.unwrap_or_default();
        Self {
            version: i64::try_from(version).unwrap_or(i64::MAX),
            at: moment.at.timestamp_micros(),
        }
    }
}

impl Stamp {
    /// Whether this change is `known` or earlier. Equal versions are the same change, whatever their
    /// times are.
    fn is_known_at(self, known: Self) -> bool {
        if self.version != 0 { self.version <= known.version } else { self < known }
    }

    /// Whether an order to forget at `self` covers this change, or is this order.
    pub(crate) fn forgets(self, change: Self) -> bool {
        change == self || change.is_known_at(self)
    }
}

/// A member's views and bookmark of one spot. Times are microseconds since the epoch.
///
/// Changes only move its stamps forward, so that a repeated change has no effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Interaction {
    pub(super) viewed_at: Option<i64>,
    pub(super) bookmarked: bool,
    pub(super) bookmark_changed: Option<Stamp>,
}

impl Interaction {
    /// The interaction after a change recorded at `now`.
    pub(super) fn after(self, change: Change, stamp: Stamp, now: i64) -> Self {
        let bookmarked = match change {
            Change::Viewed => {
                let known = self.viewed_at.filter(|at| *at <= now.saturating_add(VIEWED_AHEAD));
                return Self { viewed_at: known.max(Some(stamp.at)), ..self };
            }
            Change::Bookmarked => true,
            Change::Unbookmarked => false,
        };
        if self.bookmark_changed.is_some_and(|changed| stamp.is_known_at(changed)) {
            return self;
        }
        Self { bookmarked, bookmark_changed: Some(stamp), ..self }
    }

    /// Whether the member knows the spot. An interaction that is not live is a removed bookmark. It
    /// is kept so that an older event cannot restore the bookmark.
    pub(super) fn is_live(self) -> bool {
        self.viewed_at.is_some() || self.bookmarked
    }

    /// The time of the last interaction that is still in effect, or of the removal if none is.
    pub(super) fn last_at(self) -> i64 {
        let changed_at = self.bookmark_changed.map(|changed| changed.at);
        let bookmarked_at = changed_at.filter(|_| self.bookmarked);
        self.viewed_at.max(bookmarked_at).or(changed_at).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(version: i64, at: i64) -> Stamp {
        Stamp { version, at }
    }

    fn bookmarked(stamp: Stamp) -> Interaction {
        Interaction::default().after(Change::Bookmarked, stamp, 0)
    }

    #[test]
    fn the_higher_version_wins_regardless_of_the_clock() {
        for (first_at, then_at) in [(3_600, 60), (60, 3_600), (60, 60)] {
            let (first, then) = (stamp(7, first_at), stamp(8, then_at));
            let taken_back = bookmarked(first).after(Change::Unbookmarked, then, 0);
            assert!(!taken_back.bookmarked);
            // Late or duplicated, in any order and with any time.
            for again in [first, stamp(7, 9_999)] {
                assert_eq!(taken_back.after(Change::Bookmarked, again, 0), taken_back);
            }
            let overtaken = Interaction::default().after(Change::Unbookmarked, then, 0);
            assert_eq!(overtaken.after(Change::Bookmarked, first, 0), taken_back);
        }
    }

    #[test]
    fn a_change_without_a_version_is_older_than_one_with() {
        let old = bookmarked(stamp(0, 9_999));
        let taken_back = old.after(Change::Unbookmarked, stamp(1, 5), 0);
        assert!(!taken_back.bookmarked);
        assert_eq!(taken_back.after(Change::Bookmarked, stamp(0, 99_999), 0), taken_back);
        // Without versions the time decides, then the order of arrival.
        assert!(old.after(Change::Unbookmarked, stamp(0, 9_998), 0).bookmarked);
        assert!(!old.after(Change::Unbookmarked, stamp(0, 9_999), 0).bookmarked);
    }

    #[test]
    fn a_view_from_the_future_is_replaced_by_a_current_one() {
        let day = 24 * 3_600 * 1_000_000;
        let ahead = Interaction::default().after(Change::Viewed, stamp(1, day), day);
        assert_eq!(ahead.after(Change::Viewed, stamp(2, 60), 60).viewed_at, Some(60));
        let known = Interaction::default().after(Change::Viewed, stamp(1, 90), 90);
        assert_eq!(known.after(Change::Viewed, stamp(2, 60), 60).viewed_at, Some(90));
    }
}
