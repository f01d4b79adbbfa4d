//! Reviews of tour spots, and the likes they get.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use tourin_chassis::text;

use super::spot::{InvalidId, SpotId, parse_id};

/// Longest review, in characters (Unicode scalar values, after NFC).
pub const MAX_CONTENT_CHARS: usize = 500;

/// The id of a review.
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

/// A review's text, in the form of [`text::prose`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewContent(String);

/// The text is not a valid review.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("content must have 1 to {MAX_CONTENT_CHARS} characters, at least one of them visible")]
pub struct InvalidContent;

impl ReviewContent {
    /// A review of 1 to [`MAX_CONTENT_CHARS`] characters, at least one of them visible.
    ///
    /// # Errors
    /// [`InvalidContent`] otherwise.
    pub fn new(typed: &str) -> Result<Self, InvalidContent> {
        let content = text::prose(typed);
        if content.chars().nth(MAX_CONTENT_CHARS).is_some() || text::is_blank(&content) {
            return Err(InvalidContent);
        }
        Ok(Self(content.into_owned()))
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
    /// The text.
    pub content: String,
    /// Members who like it now.
    pub like_count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_counted_not_bytes() {
        for one in ["가", "🏞", "\u{1100}\u{1161}"] {
            assert!(ReviewContent::new(&one.repeat(500)).is_ok(), "{one:?}");
            assert!(ReviewContent::new(&one.repeat(501)).is_err(), "{one:?}");
        }
    }

    #[test]
    fn an_invisible_text_is_not_a_review() {
        for blank in ["", " ", "\n\t", "\u{3000}", "\u{3164}", "\u{2800}\u{200B}\u{FE0F}", "\0"] {
            assert!(ReviewContent::new(blank).is_err(), "{blank:?}");
        }
    }

    #[test]
    fn a_review_keeps_its_lines_and_its_emoji() {
        let content = ReviewContent::new(" 좋아요\r\n👩\u{200D}🚀\t❤\u{FE0F}\u{7}").unwrap();
        assert_eq!(content.as_str(), " 좋아요\n👩\u{200D}🚀 ❤\u{FE0F}");
    }
}
