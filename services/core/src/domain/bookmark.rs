//! A member's bookmarks.

use chrono::{DateTime, Utc};

use super::spot::Spot;

/// A spot bookmarked by a member.
#[derive(Debug, Clone, PartialEq)]
pub struct Bookmark {
    /// Whose it is.
    pub user_id: String,
    /// The bookmarked spot.
    pub spot: Spot,
    /// When it was placed; lists show the newest first.
    pub created_at: DateTime<Utc>,
}
