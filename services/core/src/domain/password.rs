//! What a password must be. How it is hashed is in [`crate::app::passwords`].

use std::fmt;

use super::account::Invalid;

/// A password that satisfies the rules: 8 to 24 characters, at least one Latin letter, one digit
/// and one of `@$!%*?&`, no control character. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The rule as a regular expression (ECMA 262, with look-ahead).
    pub const PATTERN: &'static str = r"^(?=[^\x00-\x1f\x7f]*[A-Za-z])(?=[^\x00-\x1f\x7f]*[0-9])(?=[^\x00-\x1f\x7f]*[@$!%*?&])[^\x00-\x1f\x7f]{8,24}$";
    /// The shortest password, in characters.
    pub const MIN_CHARS: usize = 8;
    /// The longest password, in characters.
    pub const MAX_CHARS: usize = 24;
    /// One of these must occur.
    pub const SYMBOLS: &'static str = "@$!%*?&";

    /// Accepts what [`Self::PATTERN`] describes. `field` is how the client named it.
    ///
    /// # Errors
    /// [`Invalid`] with the whole rule: telling which part failed would help only a reader of logs.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Invalid> {
        let length = (Self::MIN_CHARS..=Self::MAX_CHARS).contains(&text.chars().count());
        let strong = text.contains(|c: char| c.is_ascii_alphabetic())
            && text.contains(|c: char| c.is_ascii_digit())
            && text.contains(|c: char| Self::SYMBOLS.contains(c));
        if length && strong && !text.contains(|c: char| c.is_ascii_control()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid {
                field,
                expected: "8 to 24 characters with at least one letter (a-z, A-Z), one digit and \
                           one of @$!%*?&",
            })
        }
    }

    /// The password itself, for hashing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_password_is_not_shown_in_debug_output_or_in_the_refusal() {
        let text = "correct1horse!";
        assert!(!format!("{:?}", Password::parse("password", text).unwrap()).contains("horse"));
        let refused = Password::parse("newPassword", "horse").unwrap_err().to_string();
        assert!(!refused.contains("horse"), "{refused}");
        assert!(refused.starts_with("`newPassword` must be 8 to 24 characters"), "{refused}");
    }

    #[test]
    fn each_part_of_the_rule_is_needed() {
        for text in
            ["short1!", "letters!!", "12345678!", "letters12", "letters12!\n", "한글한글한글1!"]
        {
            assert!(Password::parse("password", text).is_err(), "{text:?} was accepted");
        }
        assert!(Password::parse("password", "a1!한글한글한").is_ok(), "other letters are welcome");
        assert!(Password::parse("password", &format!("a1!{}", "한".repeat(21))).is_ok());
        assert!(Password::parse("password", &format!("a1!{}", "한".repeat(22))).is_err());
    }

    proptest! {
        /// The same rule, said as three properties and a length, over near misses.
        #[test]
        fn the_parser_agrees_with_the_rule(text in "[a-b0-1@!#가 \t]{6,26}") {
            let expected = (8..=24).contains(&text.chars().count())
                && text.chars().any(|c| c.is_ascii_alphabetic())
                && text.chars().any(|c| c.is_ascii_digit())
                && text.chars().any(|c| "@$!%*?&".contains(c))
                && !text.contains('\t');
            prop_assert_eq!(Password::parse("password", &text).is_ok(), expected);
        }
    }
}
