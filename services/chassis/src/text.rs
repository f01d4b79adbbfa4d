//! Normalisation of text that people type.
//!
//! - [`nfc`]: for every text that enters a service. The extractors of [`crate::http`] apply it to
//!   paths and queries.
//! - [`line`]: for one line that is compared or searched (names, addresses, queries). It removes
//!   invisible characters.
//! - [`prose`]: for text to read (reviews, descriptions). It keeps joiners and variation selectors,
//!   which some scripts and emoji need, and of the control characters only line breaks.
//! - [`is_blank`]: whether a text shows nothing.
//!
//! A character is a Unicode scalar value. Lengths are counted in characters after normalisation.

use std::borrow::Cow;

use icu_properties::props::{
    BinaryProperty as _, DefaultIgnorableCodePoint, EnumeratedProperty as _, GeneralCategory,
    GeneralCategoryGroup, PrependedConcatenationMark,
};
use unicode_normalization::{UnicodeNormalization as _, is_nfc};

/// Unicode Normalization Form C: a letter and its marks become one character where one exists.
/// macOS and iOS send them separately.
pub fn nfc<'a>(text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
    let text = text.into();
    // Composing is slow, and few texts need it.
    if is_nfc(&text) { text } else { text.nfc().collect::<String>().into() }
}

/// Whether a character shows nothing and is not white space: soft hyphen, Hangul fillers, zero
/// width characters, bidirectional controls, variation selectors, tags.
///
/// By UAX #44 these have the property Default_Ignorable_Code_Point, or the general category Cf
/// (format) without Prepended_Concatenation_Mark, which is drawn. A few others have a blank glyph
/// by their description in the code charts.
pub fn is_invisible(character: char) -> bool {
    const BLANK: [char; 5] = [
        '\u{2800}',  // BRAILLE PATTERN BLANK
        '\u{13441}', // EGYPTIAN HIEROGLYPH FULL BLANK
        '\u{13442}', // EGYPTIAN HIEROGLYPH HALF BLANK
        '\u{16FE4}', // KHITAN SMALL SCRIPT FILLER
        '\u{1D159}', // MUSICAL SYMBOL NULL NOTEHEAD
    ];
    let format = || {
        GeneralCategory::for_char(character) == GeneralCategory::Format
            && !PrependedConcatenationMark::for_char(character)
    };
    !character.is_ascii()
        && (DefaultIgnorableCodePoint::for_char(character)
            || format()
            || BLANK.contains(&character))
}

/// Whether a text shows nothing.
pub fn is_blank(text: &str) -> bool {
    text.chars().all(|c| c.is_whitespace() || c.is_control() || is_invisible(c))
}

/// Whether a character is a letter of some script (general category L).
pub fn is_letter(character: char) -> bool {
    GeneralCategoryGroup::Letter.contains(GeneralCategory::for_char(character))
}

/// Whether a character is a mark of the letter before it (general category M).
pub fn is_mark(character: char) -> bool {
    GeneralCategoryGroup::Mark.contains(GeneralCategory::for_char(character))
}

/// A text in NFC with every kind of space replaced by U+0020. Control characters are not spaces here.
pub fn with_plain_spaces(text: &str) -> Cow<'_, str> {
    let wide = |c: char| c != ' ' && c.is_whitespace() && !c.is_control();
    if text.contains(wide) { nfc(text.replace(wide, " ")) } else { nfc(text) }
}

/// A text in NFC without invisible characters and with plain spaces. It is not trimmed. Control
/// characters stay: the caller decides whether to refuse them.
pub fn line(text: &str) -> Cow<'_, str> {
    if text.contains(is_invisible) {
        with_plain_spaces(&text.replace(is_invisible, "")).into_owned().into()
    } else {
        with_plain_spaces(text)
    }
}

/// A text in NFC with every line break of UAX #14 (CR LF, CR, NEL, VT, FF, LS, PS) replaced by
/// U+000A and every tab by a space. Other control characters are removed.
pub fn prose(text: &str) -> Cow<'_, str> {
    let other = |c: char| matches!(c, '\u{2028}' | '\u{2029}') || (c != '\n' && c.is_control());
    if !text.contains(other) {
        return nfc(text);
    }
    let plain = text.replace("\r\n", "\n");
    let plain = plain.chars().filter_map(|c| match c {
        '\n' | '\r' | '\u{85}' | '\u{B}' | '\u{C}' | '\u{2028}' | '\u{2029}' => Some('\n'),
        '\t' => Some(' '),
        c if c.is_control() => None,
        c => Some(c),
    });
    nfc(plain.collect::<String>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INVISIBLE: &str = "\u{AD}\u{34F}\u{61C}\u{115F}\u{1160}\u{17B4}\u{180B}\u{180E}\u{200B}\u{200C}\u{200D}\u{200E}\
        \u{202A}\u{202E}\u{2060}\u{2066}\u{2069}\u{2800}\u{3164}\u{FE0F}\u{FEFF}\u{FFA0}\u{FFF9}\u{E0001}\u{E0041}\u{E0100}";

    #[test]
    fn invisible_text_is_blank() {
        for character in INVISIBLE.chars() {
            assert!(is_invisible(character), "{character:?}");
        }
        for text in ["", " \t\r\n", "\u{3000}\u{A0}", "\0\u{7F}\u{85}", INVISIBLE] {
            assert!(is_blank(text), "{text:?}");
        }
        for text in ["a", "가", "\u{1112}", "·", "🏞", "\u{600}", "\u{200D}é", "\u{301}"] {
            assert!(!is_blank(text), "{text:?}");
        }
    }

    #[test]
    fn a_line_has_no_invisible_characters() {
        assert_eq!(line("경\u{200B}복\u{3164}궁\u{202E}"), "경복궁");
        assert_eq!(line("\u{1112}\u{1169}\u{11BC}\u{2060}길동"), "홍길동");
        assert_eq!(
            line("e\u{200D}\u{301}"),
            "é",
            "invisible characters are removed before composing"
        );
        assert_eq!(line("서울\u{3000}종로구\u{A0}1 "), "서울 종로구 1 ");
        assert_eq!(line("a\0\n"), "a\0\n", "the caller may refuse them");
    }

    #[test]
    fn prose_keeps_line_breaks_and_joiners_and_no_other_control_character() {
        assert_eq!(
            prose("하나\r\n둘\r셋\u{85}넷\u{2028}다섯\u{B}\n"),
            "하나\n둘\n셋\n넷\n다섯\n\n"
        );
        assert_eq!(prose("a\tb\0\u{1B}[31m\u{7F}\u{9B}"), "a b[31m");
        assert_eq!(prose("👨\u{200D}👩\u{200D}👧 ❤\u{FE0F}"), "👨\u{200D}👩\u{200D}👧 ❤\u{FE0F}");
        assert_eq!(prose("e\0\u{301}"), "é");
    }

    #[test]
    fn letters_and_marks_are_those_of_any_script() {
        for letter in ['a', 'é', '가', '山', 'ក', 'ا', 'Ω', 'ㄱ'] {
            assert!(is_letter(letter), "{letter}");
        }
        assert!(is_mark('\u{301}') && is_mark('\u{93E}') && !is_letter('\u{301}'));
        assert!(!is_letter('1') && !is_letter('🏞') && !is_letter('·'));
    }

    proptest! {
        #[test]
        fn doing_it_twice_is_doing_it_once(text in any::<String>()) {
            for form in [|text: &str| nfc(text.to_owned()).into_owned(), |text: &str| line(text).into_owned(),
                |text: &str| prose(text).into_owned()]
            {
                let once = form(&text);
                prop_assert_eq!(form(&once), once);
            }
        }

        #[test]
        fn a_decomposed_text_has_the_same_form(text in any::<String>()) {
            let apart: String = text.nfd().collect();
            prop_assert_eq!(nfc(apart.as_str()), nfc(text.as_str()));
            prop_assert_eq!(line(&apart), line(&text));
            prop_assert_eq!(prose(&apart), prose(&text));
        }
    }
}
