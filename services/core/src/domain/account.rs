//! A member's account: the shape of its id, name and email address.
//!
//! Each newtype parses at the edge and is carried inward. The `PATTERN` beside a parser is the same
//! rule as a regular expression, for the OpenAPI document; a test keeps the two equal.

use std::fmt;

use serde::Serialize;

/// A field that was understood but is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` must be {expected}")]
pub struct Invalid {
    /// The field as the client named it.
    pub field: &'static str,
    /// What would have been accepted; completes the sentence "`field` must be ...".
    pub expected: &'static str,
}

/// A member's id: chosen at sign-up, compared case-sensitively, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct MemberId(String);

impl MemberId {
    /// The rule as a regular expression (besides that `anonymous` is reserved).
    pub const PATTERN: &'static str = "^[a-zA-Z][a-zA-Z0-9]{7,16}$";
    /// The shortest id, in characters.
    pub const MIN_CHARS: usize = 8;
    /// The longest id, in characters.
    pub const MAX_CHARS: usize = 17;
    /// Stands for a visitor without an account elsewhere, so nobody may be called that.
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

    /// An id that was parsed before it was stored.
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

/// The name that others see: 2 to 6 Hangul syllables, or 2 to 24 Latin letters and inner spaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// The rule as a regular expression.
    pub const PATTERN: &'static str = "^([가-힣]{2,6}|[A-Za-z][A-Za-z ]{0,22}[A-Za-z])$";
    /// The shortest name, in characters.
    pub const MIN_CHARS: usize = 2;
    /// The longest name, in characters.
    pub const MAX_CHARS: usize = 24;

    /// Accepts what [`Self::PATTERN`] describes.
    ///
    /// # Errors
    /// [`Invalid`] naming `name` and the rule.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let chars = text.chars().count();
        let hangul = (2..=6).contains(&chars) && text.chars().all(|c| ('가'..='힣').contains(&c));
        let latin = (Self::MIN_CHARS..=Self::MAX_CHARS).contains(&chars)
            && text.chars().all(|c| c.is_ascii_alphabetic() || c == ' ')
            && !text.starts_with(' ')
            && !text.ends_with(' ');
        if hangul || latin {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid {
                field: "name",
                expected: "2 to 6 Hangul syllables, or 2 to 24 Latin letters with spaces between \
                           them",
            })
        }
    }

    /// A name that was parsed before it was stored.
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
    /// The rule as a regular expression; besides, at most [`Self::MAX_CHARS`] characters.
    pub const PATTERN: &'static str = "^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+$";
    /// The shortest address: `a@b.c`.
    pub const MIN_CHARS: usize = 5;
    /// The longest address that SMTP can carry (RFC 5321, 4.5.3.1.3, less the angle brackets).
    pub const MAX_CHARS: usize = 254;

    /// Accepts what [`Self::PATTERN`] describes.
    ///
    /// # Errors
    /// [`Invalid`] naming `email` and the rule.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.len() <= Self::MAX_CHARS && is_address(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid {
                field: "email",
                expected: "an email address such as hana@example.com, of at most 254 characters",
            })
        }
    }

    /// An address that was parsed before it was stored.
    pub(crate) fn trusted(text: String) -> Self {
        Self(text)
    }

    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Email {
    /// Says nothing: an address is personal and debug output ends in logs.
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

/// A member as the member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The member's id.
    pub id: MemberId,
    /// The name that others see.
    pub name: Name,
    /// Where the member can be written to; shown to nobody else.
    pub email: Email,
}

/// A member as others see one.
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
            text in "[가-힣]{2,6}|[A-Za-z][A-Za-z ]{0,22}[A-Za-z]"
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

        /// Near misses: characters that matter to the rules, in any order and number.
        #[test]
        fn the_parsers_agree_with_their_patterns(
            text in "[a-cA-C0-1가-각힣ㄱé@. _\\-\n]{0,26}"
        ) {
            let id = matches(MemberId::PATTERN, &text) && !text.eq_ignore_ascii_case("anonymous");
            prop_assert_eq!(MemberId::parse(&text).is_ok(), id);
            prop_assert_eq!(Name::parse(&text).is_ok(), matches(Name::PATTERN, &text));
            prop_assert_eq!(Email::parse(&text).is_ok(), matches(Email::PATTERN, &text));
        }

        #[test]
        fn near_addresses_agree_with_the_pattern(text in "[ab.\\-@!]{0,6}@[ab.\\-]{0,8}") {
            prop_assert_eq!(Email::parse(&text).is_ok(), matches(Email::PATTERN, &text));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in any::<String>()) {
            let outcomes =
                [MemberId::parse(&text).is_ok(), Name::parse(&text).is_ok(), Email::parse(&text).is_ok()];
            prop_assert_eq!(
                outcomes,
                [
                    matches(MemberId::PATTERN, &text) && !text.eq_ignore_ascii_case("anonymous"),
                    matches(Name::PATTERN, &text),
                    text.len() <= Email::MAX_CHARS && matches(Email::PATTERN, &text),
                ]
            );
        }
    }
}
