//! Interactions of people with spots.

use chrono::{DateTime, Utc};

use super::spot::SpotId;

/// The kinds of interaction that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A view of the spot's page.
    View,
    /// A bookmark of the spot.
    Bookmark,
}

impl Kind {
    /// The weight: a bookmark counts twice as much as a view.
    pub const fn weight(self) -> f64 {
        match self {
            Self::View => 1.0,
            Self::Bookmark => 2.0,
        }
    }
}

/// The time and the version of a change. They decide which of two changes is the later one.
///
/// The version comes from the store of the change and is compared first, because a clock may be set
/// back between two changes. Changes without a version are from before versions existed: they are
/// earlier than all changes with one, and ordered by time among themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeOrder {
    /// The time, by the clock of the service that made the change.
    pub at: DateTime<Utc>,
    /// The version; higher is later.
    pub version: Option<u64>,
}

/// A change of a member's interactions with a spot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The member viewed the spot.
    Viewed,
    /// The member bookmarked the spot.
    Bookmarked,
    /// The member removed the bookmark. A view stays.
    Unbookmarked,
}

/// One spot of a member's live history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// The spot.
    pub spot: SpotId,
    /// The strongest interaction.
    pub kind: Kind,
    /// The time of the last interaction.
    pub last_at: DateTime<Utc>,
}

/// Whether a subject is a visitor's pseudonym. Visitors count for the trend but have no history.
pub fn is_pseudonym(subject: &str) -> bool {
    subject.starts_with("anon:")
}
