//! Reviews of tour spots, and the likes they get.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};

use super::spot::{InvalidId, SpotId, parse_id};

/// Longest review, in characters (Unicode scalar values).
pub const MAX_CONTENT_CHARS: usize = 500;

/// Names a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReviewId(i64);

impl ReviewId {
    /// The id with this number.
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// The id's number.
    pub const fn number(self) -> i64 {
        self.0
    }
}

impl fmt::Display for ReviewId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ReviewId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_id(text).map(Self)
    }
}

/// A review's text, kept as sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewContent(String);

/// A text that is no review.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("content must have 1 to {MAX_CONTENT_CHARS} characters and not only white space")]
pub struct InvalidContent;

impl ReviewContent {
    /// A review of 1 to [`MAX_CONTENT_CHARS`] characters, at least one of them visible.
    ///
    /// # Errors
    /// [`InvalidContent`] otherwise.
    pub fn new(text: String) -> Result<Self, InvalidContent> {
        let short_enough = text.chars().nth(MAX_CONTENT_CHARS).is_none();
        if short_enough && !text.trim().is_empty() { Ok(Self(text)) } else { Err(InvalidContent) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a member wrote about a spot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    /// Its id; later reviews have greater ones.
    pub id: ReviewId,
    /// The spot it is about.
    pub spot_id: SpotId,
    /// Who wrote it.
    pub user_id: String,
    /// When it was written; lists show the newest first.
    pub created_at: DateTime<Utc>,
    /// What it says.
    pub content: String,
    /// Members who like it now.
    pub like_count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_counted_not_bytes() {
        assert!(ReviewContent::new("가".repeat(500)).is_ok());
        assert!(ReviewContent::new("가".repeat(501)).is_err());
        assert!(ReviewContent::new("🏞".repeat(500)).is_ok());
    }

    #[test]
    fn blank_is_no_review_and_the_rest_is_kept_as_sent() {
        for blank in ["", " ", "\n\t", "\u{3000}"] {
            assert!(ReviewContent::new(blank.into()).is_err(), "{blank:?}");
        }
        assert_eq!(ReviewContent::new(" 좋아요\n".into()).unwrap().as_str(), " 좋아요\n");
    }
}
