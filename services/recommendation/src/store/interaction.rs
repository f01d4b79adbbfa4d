//! What a member has to do with a spot, as stores keep it.

use crate::domain::interaction::Change;

/// A member's views and bookmark of one spot. Times are microseconds since the epoch.
///
/// Changes only ever move its times forward, so that it recognises what it has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Interaction {
    pub(super) viewed_at: Option<i64>,
    pub(super) bookmarked: bool,
    pub(super) bookmark_changed_at: Option<i64>,
}

impl Interaction {
    /// The same after a change at `at`.
    pub(super) fn after(self, change: Change, at: i64) -> Self {
        let bookmarked = match change {
            Change::Viewed => {
                return Self { viewed_at: self.viewed_at.max(Some(at)), ..self };
            }
            Change::Bookmarked => true,
            Change::Unbookmarked => false,
        };
        if self.bookmark_changed_at.is_some_and(|changed| changed > at) {
            return self;
        }
        Self { bookmarked, bookmark_changed_at: Some(at), ..self }
    }

    /// Whether the member knows the spot. One that is not live is a bookmark taken back, kept so
    /// that an older event cannot bring it back.
    pub(super) fn is_live(self) -> bool {
        self.viewed_at.is_some() || self.bookmarked
    }

    /// When the member last did what is still so; the time of the change when nothing is.
    pub(super) fn last_at(self) -> i64 {
        let bookmarked_at = self.bookmark_changed_at.filter(|_| self.bookmarked);
        self.viewed_at.max(bookmarked_at).or(self.bookmark_changed_at).unwrap_or_default()
    }
}
