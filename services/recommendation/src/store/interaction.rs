//! What a member has to do with a spot, as stores keep it.

use crate::domain::interaction::{Change, Moment};

/// A view that is known from so much after the time now, in microseconds (5 minutes), was dated by a clock that was ahead: a
/// view of now takes its place.
const VIEWED_AHEAD: i64 = 5 * 60 * 1_000_000;

/// A [`Moment`] as stores keep it; of two, the greater is the later one.
///
/// Rows from before there were versions have version 0, which is below every version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    /// 0 for none. Compared first.
    pub(crate) version: i64,
    /// Microseconds since the epoch.
    pub(crate) at: i64,
}

impl From<Moment> for Stamp {
    fn from(moment: Moment) -> Self {
        let version = moment.version.unwrap_or_default();
        Self {
            version: i64::try_from(version).unwrap_or(i64::MAX),
            at: moment.at.timestamp_micros(),
        }
    }
}

impl Stamp {
    /// Whether this change is already contained in one that was made at `known`. One version is one change, at whatever time
    /// it is said to have happened.
    fn is_known_at(self, known: Self) -> bool {
        if self.version != 0 { self.version <= known.version } else { self < known }
    }

    /// Whether an order of `self` to forget comes after this change, or is this order.
    pub(crate) fn forgets(self, change: Self) -> bool {
        change == self || change.is_known_at(self)
    }
}

/// A member's views and bookmark of one spot. Times are microseconds since the epoch.
///
/// Changes only ever move its stamps forward, so that it recognises what it has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Interaction {
    pub(super) viewed_at: Option<i64>,
    pub(super) bookmarked: bool,
    pub(super) bookmark_changed: Option<Stamp>,
}

impl Interaction {
    /// The same after a change, recorded at `now`.
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

    /// Whether the member knows the spot. One that is not live is a bookmark taken back, kept so
    /// that an older event cannot bring it back.
    pub(super) fn is_live(self) -> bool {
        self.viewed_at.is_some() || self.bookmarked
    }

    /// When the member last did what is still so; the time of the change when nothing is.
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
    fn the_higher_version_wins_whatever_the_clock_said() {
        for (first_at, then_at) in [(3_600, 60), (60, 3_600), (60, 60)] {
            let (first, then) = (stamp(7, first_at), stamp(8, then_at));
            let taken_back = bookmarked(first).after(Change::Unbookmarked, then, 0);
            assert!(!taken_back.bookmarked);
            // Late or twice, in whatever order, at whatever time it is said to have happened.
            for again in [first, stamp(7, 9_999)] {
                assert_eq!(taken_back.after(Change::Bookmarked, again, 0), taken_back);
            }
            let overtaken = Interaction::default().after(Change::Unbookmarked, then, 0);
            assert_eq!(overtaken.after(Change::Bookmarked, first, 0), taken_back);
        }
    }

    #[test]
    fn what_has_no_version_is_older_than_what_has_one() {
        let old = bookmarked(stamp(0, 9_999));
        let taken_back = old.after(Change::Unbookmarked, stamp(1, 5), 0);
        assert!(!taken_back.bookmarked);
        assert_eq!(taken_back.after(Change::Bookmarked, stamp(0, 99_999), 0), taken_back);
        // Among their like the time decides, and of one time the later arrival.
        assert!(old.after(Change::Unbookmarked, stamp(0, 9_998), 0).bookmarked);
        assert!(!old.after(Change::Unbookmarked, stamp(0, 9_999), 0).bookmarked);
    }

    #[test]
    fn a_view_from_a_time_to_come_gives_way_to_one_of_now() {
        let day = 24 * 3_600 * 1_000_000;
        let ahead = Interaction::default().after(Change::Viewed, stamp(1, day), day);
        assert_eq!(ahead.after(Change::Viewed, stamp(2, 60), 60).viewed_at, Some(60));
        let known = Interaction::default().after(Change::Viewed, stamp(1, 90), 90);
        assert_eq!(known.after(Change::Viewed, stamp(2, 60), 60).viewed_at, Some(90));
    }
}
