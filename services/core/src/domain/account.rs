//! A member's account: the rules of its id, name and email address.
//!
//! Each `PATTERN` is the parser's rule as a regular expression, for the OpenAPI document. A test
//! keeps the two equal.

use std::fmt;

use serde::Serialize;
use tourin_chassis::text;

/// A field with an invalid value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` must be {expected}")]
pub struct Invalid {
    /// The field as the client named it.
    pub field: &'static str,
    /// The rule; completes the sentence "`field` must be ...".
    pub expected: &'static str,
}

/// A member's id: chosen at sign-up, compared case-sensitively, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct MemberId(String);

impl MemberId {
    /// The rule as a regular expression, without the exception of [`Self::RESERVED`].
    pub const PATTERN: &'static str = "^[a-zA-Z][a-zA-Z0-9]{7,16}$";
    /// The shortest id, in characters.
    pub const MIN_CHARS: usize = 8;
    /// The longest id, in characters.
    pub const MAX_CHARS: usize = 17;
    /// Means a visitor without an account elsewhere, so no member may have this id.
    pub const RESERVED: &'static str = "anonymous";

    /// Accepts what [`Self::PATTERN`] describes, except `anonymous` in any case.
    ///
    /// # Errors
    /// [`Invalid`] naming `id` and the rule.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let shape = (Self::MIN_CHARS..=Self::MAX_CHARS).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(|b| b.is_ascii_alphanumeric());
        if shape && !text.eq_ignore_ascii_case(Self::RESERVED) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid {
                field: "id",
                expected: "8 to 17 letters and digits (a-z, A-Z, 0-9), beginning with a letter, \
                           and not \"anonymous\"",
            })
        }
    }

    /// An id from the store, parsed before it was stored.
    pub(crate) fn trusted(text: String) -> Self {
        Self(text)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name that others see: letters and marks of any script, spaces and a few signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// The rule for a name's characters as a regular expression (ECMA 262, Unicode), without the
    /// bounds on their number.
    pub const PATTERN: &'static str = r"^[\p{M} '’.·-]*\p{L}[\p{L}\p{M} '’.·-]*$";
    /// The shortest name, in characters (Unicode scalar values, after NFC).
    pub const MIN_CHARS: usize = 1;
    /// The longest name, in characters (Unicode scalar values, after NFC).
    pub const MAX_CHARS: usize = 24;

    /// Normalises the text ([`text::line`]), trims it (keyboard suggestions end in a space), and
    /// accepts it if it matches [`Self::PATTERN`]. The normalised form is counted and stored.
    ///
    /// # Errors
    /// [`Invalid`] naming `name` and the rule.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let line = text::line(text);
        let name = line.trim();
        let allowed = |c: char| {
            text::is_letter(c)
                || text::is_mark(c)
                || matches!(c, ' ' | '\'' | '’' | '.' | '·' | '-')
        };
        if name.chars().nth(Self::MAX_CHARS).is_none()
            && name.chars().all(allowed)
            && name.contains(text::is_letter)
        {
            Ok(Self(name.to_owned()))
        } else {
            Err(Invalid {
                field: "name",
                expected: "1 to 24 characters: letters of any script, spaces, and ' ’ - . or ·, \
                           with at least one letter",
            })
        }
    }

    /// A name from the store, parsed before it was stored.
    pub(crate) fn trusted(text: String) -> Self {
        Self(text)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An email address as HTML's `<input type=email>` understands one, with a dot in its domain.
/// Not unique: members of one household may share one.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Email(String);

impl Email {
    /// The rule as a regular expression, without the bound of [`Self::MAX_CHARS`].
    pub const PATTERN: &'static str = "^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+$";
    /// The shortest address: `a@b.c`.
    pub const MIN_CHARS: usize = 5;
    /// The longest address that SMTP can carry (RFC 5321, 4.5.3.1.3, less the angle brackets).
    pub const MAX_CHARS: usize = 254;

    /// Normalises the text ([`text::line`]), trims it (pasted text may have spaces around it), and
    /// accepts it if it matches [`Self::PATTERN`].
    ///
    /// # Errors
    /// [`Invalid`] naming `email` and the rule.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let line = text::line(text);
        let address = line.trim();
        if address.len() <= Self::MAX_CHARS && is_address(address) {
            Ok(Self(address.to_owned()))
        } else {
            Err(Invalid {
                field: "email",
                expected: "an email address such as hana@example.com, of at most 254 characters",
            })
        }
    }

    /// An address from the store, parsed before it was stored.
    pub(crate) fn trusted(text: String) -> Self {
        Self(text)
    }

    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Email {
    /// Hides the address: it is personal data, and debug output ends in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Email(..)")
    }
}

fn is_address(text: &str) -> bool {
    const LOCAL_SYMBOLS: &[u8] = b".!#$%&'*+/=?^_`{|}~-";
    let Some((local, domain)) = text.split_once('@') else {
        return false;
    };
    let local_ok = (1..=64).contains(&local.len())
        && local.bytes().all(|b| b.is_ascii_alphanumeric() || LOCAL_SYMBOLS.contains(&b));
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    local_ok && domain.contains('.') && domain.split('.').all(label_ok)
}

/// An account as its member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The member's id.
    pub id: MemberId,
    /// The name that others see.
    pub name: Name,
    /// The member's address; not shown to others.
    pub email: Email,
}

/// A member as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The member's id.
    pub id: MemberId,
    /// The member's name.
    pub name: Name,
}

/// What a member may change of the profile; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProfileChange {
    /// The new name.
    pub name: Option<Name>,
    /// The new address.
    pub email: Option<Email>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Regex::new(pattern).unwrap().is_match(text)
    }

    /// Whether the normalised text is a name by the pattern and the bounds.
    fn is_name(text: &str) -> bool {
        let line = text::line(text);
        let name = line.trim();
        matches(Name::PATTERN, name)
            && (Name::MIN_CHARS..=Name::MAX_CHARS).contains(&name.chars().count())
    }

    fn is_email(text: &str) -> bool {
        let line = text::line(text);
        line.trim().len() <= Email::MAX_CHARS && matches(Email::PATTERN, line.trim())
    }

    #[test]
    fn people_of_all_scripts_have_names() {
        for name in [
            "O'Brien",
            "O’Brien",
            "Anne-Marie",
            "김 Chulsoo",
            "김하나와친구들이야",
            "J. R. R. Tolkien",
            "가브리엘·가르시아",
            "Nguyễn Thị Minh Khai",
            "अनन्या",
            "สมชาย",
            "محمد",
            "𠮷野",
            "あ",
            &"𝒜".repeat(24),
        ] {
            assert_eq!(Name::parse(name).map(|name| name.0).as_deref(), Ok(name));
        }
        for none in ["", " ", "\u{3164}", "'-.", "a1", "🏞", "김\n하나", "a\0b", &"가".repeat(25)]
        {
            assert!(Name::parse(none).is_err(), "{none:?}");
        }
    }

    #[test]
    fn a_name_is_kept_in_one_form() {
        for (typed, kept) in [
            ("\u{1112}\u{1169}\u{11BC}\u{1100}\u{1175}\u{11AF}\u{1103}\u{1169}\u{11BC}", "홍길동"),
            ("  홍길동 ", "홍길동"),
            ("홍\u{3000}길동\u{A0}", "홍 길동"),
            ("\u{202E}홍\u{200B}길\u{3164}동\u{FEFF}", "홍길동"),
        ] {
            assert_eq!(Name::parse(typed).unwrap().as_str(), kept, "{typed:?}");
        }
        let apart = "\u{1112}\u{1169}\u{11BC}".repeat(Name::MAX_CHARS);
        assert!(Name::parse(&apart).is_ok(), "counted as 24 characters");
        let email = Email::parse(" hana\u{200B}@example.com\u{A0}").unwrap();
        assert_eq!(email.as_str(), "hana@example.com");
    }

    #[test]
    fn anonymous_is_reserved_in_any_case() {
        for text in ["anonymous", "Anonymous", "ANONYMOUS"] {
            assert!(matches(MemberId::PATTERN, text), "{text} has the shape of an id");
            assert!(MemberId::parse(text).is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn the_message_names_the_field_and_what_was_expected() {
        let message = MemberId::parse("1").unwrap_err().to_string();
        assert!(message.starts_with("`id` must be 8 to 17 letters and digits"), "{message}");
    }

    #[test]
    fn an_email_address_is_not_shown_in_debug_output() {
        let email = Email::parse("hana@example.com").unwrap();
        assert!(!format!("{email:?}").contains("hana"));
    }

    proptest! {
        #[test]
        fn ids_of_the_documented_shape_are_accepted(text in "[a-zA-Z][a-zA-Z0-9]{7,16}") {
            prop_assume!(!text.eq_ignore_ascii_case("anonymous"));
            let parsed = MemberId::parse(&text).unwrap();
            prop_assert_eq!(parsed.as_str(), text);
        }

        #[test]
        fn names_of_the_documented_shape_are_accepted(
            text in "[가-힣A-Za-zéñあ山][가-힣A-Za-zéñあ山 '’.·-]{0,22}[가-힣A-Za-zéñあ山]"
        ) {
            let parsed = Name::parse(&text).unwrap();
            prop_assert_eq!(parsed.as_str(), text);
        }

        #[test]
        fn addresses_of_the_documented_shape_are_accepted(
            text in "[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z]{1,20}){1,3}"
        ) {
            let parsed = Email::parse(&text).unwrap();
            prop_assert_eq!(parsed.as_str(), text);
        }

        /// Near misses: characters that the rules mention, in any order and number.
        #[test]
        fn the_parsers_agree_with_their_patterns(
            text in "[a-cA-C0-1가-각힣ㄱé@. _\\-\n'’·\u{301}\u{200b}\u{3164}\u{a0}]{0,26}"
        ) {
            let id = matches(MemberId::PATTERN, &text) && !text.eq_ignore_ascii_case("anonymous");
            prop_assert_eq!(MemberId::parse(&text).is_ok(), id);
            prop_assert_eq!(Name::parse(&text).is_ok(), is_name(&text));
            prop_assert_eq!(Email::parse(&text).is_ok(), is_email(&text));
        }

        #[test]
        fn near_addresses_agree_with_the_pattern(text in "[ab.\\-@!]{0,6}@[ab.\\-]{0,8}") {
            prop_assert_eq!(Email::parse(&text).is_ok(), matches(Email::PATTERN, &text));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in any::<String>()) {
            // The two libraries implement different versions of Unicode.
            prop_assume!(matches(r"^\P{Cn}*$", &text) && matches(r"^\P{Cn}*$", &text::line(&text)));
            let outcomes =
                [MemberId::parse(&text).is_ok(), Name::parse(&text).is_ok(), Email::parse(&text).is_ok()];
            prop_assert_eq!(
                outcomes,
                [
                    matches(MemberId::PATTERN, &text) && !text.eq_ignore_ascii_case("anonymous"),
                    is_name(&text),
                    is_email(&text),
                ]
            );
        }
    }
}
