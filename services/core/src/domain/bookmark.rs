//! A member's bookmarks.

use chrono::{DateTime, Utc};

use super::spot::Spot;

/// A spot that a member keeps.
#[derive(Debug, Clone, PartialEq)]
pub struct Bookmark {
    /// Whose it is.
    pub user_id: String,
    /// What it points to.
    pub spot: Spot,
    /// When it was placed; lists show the newest first.
    pub created_at: DateTime<Utc>,
}
