//! What a person does with a spot.

use chrono::{DateTime, Utc};

use super::spot::SpotId;

/// The kinds of interaction that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Looked at the spot's page.
    View,
    /// Bookmarked the spot.
    Bookmark,
}

impl Kind {
    /// How much one counts: a bookmark says twice what a view says.
    pub const fn weight(self) -> f64 {
        match self {
            Self::View => 1.0,
            Self::Bookmark => 2.0,
        }
    }
}

/// When something happened, and which of two changes of one thing is the later one.
///
/// The version says that where there is one: it comes from the store that the change was made in. A clock may have been
/// set back between two changes. What has no version is from before there were versions, and so earlier than all that has
/// one; among its like only the time is left to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The time, by the clock of the service that made the change.
    pub at: DateTime<Utc>,
    /// The version; higher is later.
    pub version: Option<u64>,
}

/// A change of what a member has to do with a spot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The member looked at it.
    Viewed,
    /// The member bookmarked it.
    Bookmarked,
    /// The member took the bookmark back; having viewed it stays.
    Unbookmarked,
}

/// One spot of a member's live history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// The spot.
    pub spot: SpotId,
    /// The strongest thing the member did with it.
    pub kind: Kind,
    /// When the member last did something with it.
    pub last_at: DateTime<Utc>,
}

/// Whether a subject is a visitor's pseudonym: it counts for the trend, but nobody remembers it.
pub fn is_pseudonym(subject: &str) -> bool {
    subject.starts_with("anon:")
}
