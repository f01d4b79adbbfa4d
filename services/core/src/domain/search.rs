//! Search of spots by a substring of their name or address.
//!
//! A spot matches when the folded query is a substring of its folded name or address. To find
//! matches without reading every text, each text is split into *grams*: its characters and its pairs
//! of neighbouring characters. A text that contains the query contains all of the query's grams.

use tourin_chassis::text;

use super::tag::TagSet;

/// Longest query, in characters.
pub const MAX_QUERY_CHARS: usize = 100;

/// Folds a text for comparison: Unicode NFC, then lower case character by character.
///
/// `str::to_lowercase` is not used because its final sigma depends on the neighbours, which a
/// substring does not have.
pub fn fold(text: &str) -> String {
    let lower = text::nfc(text).chars().flat_map(char::to_lowercase).collect::<String>();
    text::nfc(lower).into_owned()
}

/// One or two neighbouring characters of a folded text, as a number: the first character's code
/// point above 21 bits of the second's; a single character's code point alone.
pub type Gram = i64;

const CHAR_BITS: u32 = 21;

/// The gram of one character.
pub const fn unigram(character: char) -> Gram {
    character as Gram
}

/// The gram of two neighbours. A first neighbour U+0000 gives the gram of a single character. Texts
/// of spots have no control characters, so this only makes a query's grams less selective.
pub const fn bigram(first: char, second: char) -> Gram {
    ((first as Gram) << CHAR_BITS) | second as Gram
}

/// Appends all grams of a folded text, with repetitions.
pub fn push_grams(folded: &str, grams: &mut Vec<Gram>) {
    let mut previous = None;
    for character in folded.chars() {
        grams.push(unigram(character));
        if let Some(previous) = previous {
            grams.push(bigram(previous, character));
        }
        previous = Some(character);
    }
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

    /// The grams that every match has, each once: the pairs, or the single character.
    pub fn grams(&self) -> Vec<Gram> {
        let mut characters = self.0.chars();
        let mut grams: Vec<Gram> = characters
            .clone()
            .zip(characters.clone().skip(1))
            .map(|(first, second)| bigram(first, second))
            .collect();
        if grams.is_empty() {
            grams.extend(characters.next().map(unigram));
        }
        grams.sort_unstable();
        grams.dedup();
        grams
    }

    /// Whether a text with the grams contains the query: true for one or two characters.
    pub fn is_one_gram(&self) -> bool {
        self.0.chars().nth(2).is_none() && !self.0.starts_with('\0')
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

    fn texts() -> impl Strategy<Value = String> {
        proptest::string::string_regex("[가-깋a-cA-CÅ%_'\"*\\\\ 🏞\u{301}]{0,12}").unwrap()
    }

    proptest! {
        #[test]
        fn a_match_has_all_grams_of_the_query(name in texts(), from in 0_usize..8, len in 1_usize..6) {
            let piece: String = fold(&name).chars().skip(from).take(len).collect();
            if let Some(query) = SearchText::new(&piece).unwrap() {
                let mut grams = Vec::new();
                push_grams(&fold(&name), &mut grams);
                if query.matches(&name, "") {
                    prop_assert!(query.grams().iter().all(|gram| grams.contains(gram)));
                }
            }
        }

        #[test]
        fn one_gram_is_the_whole_truth(name in texts(), query in texts()) {
            if let Some(query) = SearchText::new(&query).unwrap()
                && query.is_one_gram()
            {
                let mut grams = Vec::new();
                push_grams(&fold(&name), &mut grams);
                let found = query.grams().iter().all(|gram| grams.contains(gram));
                prop_assert_eq!(found, query.matches(&name, ""));
            }
        }

        #[test]
        fn folding_twice_is_folding_once(text in "\\PC{0,20}") {
            let once = fold(&text);
            prop_assert_eq!(fold(&once), once);
        }
    }
}
