//! Search of spots by a substring of their name or address.
//!
//! A spot matches when the folded query is a substring of its folded name or address.

use tourin_chassis::text;

use super::tag::TagSet;

/// Longest query, in characters.
pub const MAX_QUERY_CHARS: usize = 100;

/// Folds a text for comparison: Unicode NFC, then lower case character by character.
///
/// `str::to_lowercase` is not used because its final sigma depends on the neighbours, which a
/// substring does not have.
pub fn fold(text: &str) -> String {
    // Most texts, and quick to see.
    if text.chars().all(|char| matches!(char, ' '..='@' | '['..='~' | '가'..='힣')) {
        return text.to_owned();
    }
    let lower = text::nfc(text).chars().flat_map(char::to_lowercase).collect::<String>();
    text::nfc(lower).into_owned()
}

/// A query: one line ([`text::line`]), folded, not blank, bounded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SearchText(String);

/// The query is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("query must have at most {MAX_QUERY_CHARS} characters")]
pub struct QueryTooLong;

impl SearchText {
    /// The query for a typed text; `None` if it is blank.
    ///
    /// # Errors
    /// [`QueryTooLong`] over [`MAX_QUERY_CHARS`] characters, white space around it included.
    pub fn new(typed: &str) -> Result<Option<Self>, QueryTooLong> {
        let line = text::line(typed);
        if line.chars().nth(MAX_QUERY_CHARS).is_some() {
            return Err(QueryTooLong);
        }
        let wanted = line.trim();
        Ok((!wanted.is_empty()).then(|| Self(fold(wanted))))
    }

    /// The folded text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a spot with this name and address matches.
    pub fn matches(&self, name: &str, address: &str) -> bool {
        fold(name).contains(&self.0) || fold(address).contains(&self.0)
    }
}

/// Conditions on spots; all must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct SpotFilter {
    /// The text in the name or in the address.
    pub query: Option<SearchText>,
    /// At least one of these tags; an empty set is no condition.
    pub tags: TagSet,
    /// Bookmarked by this member.
    pub bookmarked_by: Option<String>,
}

impl SpotFilter {
    /// Whether every spot passes.
    pub fn is_empty(&self) -> bool {
        self.query.is_none() && self.tags.is_empty() && self.bookmarked_by.is_none()
    }
}

/// The order of a list of spots: by the code points of the name, then by id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SpotSort {
    /// Ascending by name; equal names ascending by id.
    #[default]
    NameAscending,
    /// The exact reverse.
    NameDescending,
}

/// The text is not a valid order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be name-asc or name-desc")]
pub struct UnknownSort;

impl std::str::FromStr for SpotSort {
    type Err = UnknownSort;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "name-asc" => Ok(Self::NameAscending),
            "name-desc" => Ok(Self::NameDescending),
            _ => Err(UnknownSort),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicode_normalization::UnicodeNormalization as _;

    use super::*;

    fn search(text: &str) -> SearchText {
        SearchText::new(text).unwrap().unwrap()
    }

    #[test]
    fn a_blank_text_is_absent_and_a_long_one_refused() {
        assert_eq!(SearchText::new(" \u{3000}\n"), Ok(None));
        assert_eq!(SearchText::new("\u{3164}\u{2800}\u{200B}"), Ok(None));
        assert!(SearchText::new(&"가".repeat(100)).is_ok());
        assert_eq!(SearchText::new(&"가".repeat(101)), Err(QueryTooLong));
        assert!(SearchText::new(&"\u{1100}\u{1161}".repeat(100)).is_ok());
        assert!(search("해\u{200B}운\u{A0}대").matches("", "해운 대"));
    }

    #[test]
    fn decomposed_and_upper_case_texts_match() {
        let decomposed: String = "해운대".nfd().collect();
        assert!(search(&decomposed).matches("해운대해수욕장", "부산"));
        assert!(search("N SEOUL").matches("n seoul tower", ""));
        assert!(search("ΟΔΟΣ").matches("", "οδοσ 1"));
        assert!(!search("궁서").matches("경복궁", "서울"), "name and address do not run together");
    }

    #[test]
    fn signs_are_characters_like_any_other() {
        assert!(!search("%").matches("경복궁", "서울"));
        assert!(search("100%").matches("100% 한옥", ""));
        assert!(!search("경_궁").matches("경복궁", ""));
        assert!(!search("경복궁 OR 창덕궁").matches("경복궁", ""));
    }

    proptest! {
        #[test]
        fn a_text_that_folding_keeps_is_folded_by_the_full_rules_too(
            text in "[가-힣 -~\u{1100}-\u{11FF}\u{301}]{0,12}",
        ) {
            let lower = text::nfc(&text).chars().flat_map(char::to_lowercase).collect::<String>();
            prop_assert_eq!(fold(&text), text::nfc(&*lower));
        }

        #[test]
        fn folding_twice_is_folding_once(text in "\\PC{0,20}") {
            let once = fold(&text);
            prop_assert_eq!(fold(&once), once);
        }
    }
}
