//! The rules for passwords. Hashing is in [`crate::app::passwords`].

use std::borrow::Cow;
use std::fmt;

use tourin_chassis::text;

use super::account::Invalid;

/// One per line, in lower case; other lines begin with `#`, which no entry does.
const COMMON: &str = include_str!("common_passwords.txt");

/// The form in which passwords are hashed and compared, by the OpaqueString profile of RFC 8265,
/// 4.2.2: every space is U+0020, the rest is in NFC, and case and width stay.
pub fn opaque(typed: &str) -> Cow<'_, str> {
    text::with_plain_spaces(typed)
}

/// A password that satisfies the rules: 8 to 64 characters, at least one Latin letter, one digit
/// and one of `@$!%*?&`, no control and no invisible character (RFC 8264, 9.13: a member cannot see
/// one to type it again). In the form of [`opaque`]. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The rule as a regular expression (ECMA 262, with look-ahead), but for invisible characters.
    pub const PATTERN: &'static str = r"^(?=[^\x00-\x1f\x7f-\x9f]*[A-Za-z])(?=[^\x00-\x1f\x7f-\x9f]*[0-9])(?=[^\x00-\x1f\x7f-\x9f]*[@$!%*?&])[^\x00-\x1f\x7f-\x9f]{8,64}$";
    /// The shortest password, in characters.
    pub const MIN_CHARS: usize = 8;
    /// The longest password, in characters.
    pub const MAX_CHARS: usize = 64;
    /// One of these must occur.
    pub const SYMBOLS: &'static str = "@$!%*?&";

    /// Accepts what [`Self::PATTERN`] describes. `field` is how the client named it.
    ///
    /// # Errors
    /// [`Invalid`] with the complete rule: naming the failed part would only help readers of logs.
    pub fn parse(field: &'static str, typed: &str) -> Result<Self, Invalid> {
        let password = opaque(typed);
        let length = (Self::MIN_CHARS..=Self::MAX_CHARS).contains(&password.chars().count());
        let strong = password.contains(|c: char| c.is_ascii_alphabetic())
            && password.contains(|c: char| c.is_ascii_digit())
            && password.contains(|c: char| Self::SYMBOLS.contains(c));
        let unseen = |c: char| c.is_control() || text::is_invisible(c);
        if length && strong && !password.contains(unseen) {
            Ok(Self(password.into_owned()))
        } else {
            Err(Invalid {
                field,
                expected: "8 to 64 characters with at least one letter (a-z, A-Z), one digit and \
                           one of @$!%*?&, and no control or invisible character",
            })
        }
    }

    /// Whether it is among the commonest, compared without case. Attackers try these first (NIST SP
    /// 800-63B, 5.1.1.2), so a new password must not be one; an existing one still logs in.
    pub fn is_common(&self) -> bool {
        let folded = self.0.to_lowercase();
        COMMON.lines().any(|common| common == folded)
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
        assert!(refused.starts_with("`newPassword` must be 8 to 64 characters"), "{refused}");
    }

    #[test]
    fn each_part_of_the_rule_is_needed() {
        for text in
            ["short1!", "letters!!", "12345678!", "letters12", "letters12!\n", "한글한글한글1!"]
        {
            assert!(Password::parse("password", text).is_err(), "{text:?} was accepted");
        }
        for unseen in
            ["letters12!\u{85}", "a1!\u{200B}\u{200B}\u{200B}\u{200B}\u{200B}", "a1!\u{3164}abcd"]
        {
            assert!(Password::parse("password", unseen).is_err(), "{unseen:?} was accepted");
        }
        assert!(Password::parse("password", "a1!한글한글한").is_ok(), "other letters are welcome");
        assert!(Password::parse("password", &format!("a1!{}", "한".repeat(61))).is_ok());
        assert!(Password::parse("password", &format!("a1!{}", "한".repeat(62))).is_err());
    }

    #[test]
    fn the_commonest_are_known_in_any_case_and_satisfy_the_rule() {
        let mut entries = 0;
        for entry in COMMON.lines().filter(|line| !line.starts_with('#')) {
            let password = Password::parse("password", entry).unwrap_or_else(|_| panic!("{entry}"));
            assert!(password.is_common(), "{entry}");
            assert_eq!(entry, entry.to_lowercase());
            entries += 1;
        }
        assert!(entries >= 100, "{entries}");
        let is_common = |text| Password::parse("password", text).unwrap().is_common();
        assert!(is_common("P@ssw0rd") && is_common("PASSWORD1!") && is_common("Qwerty123!"));
        assert!(!is_common("sea-breeze1!") && !is_common("P@ssw0rd of the sea"));
    }

    #[test]
    fn a_password_has_one_form_however_it_was_typed() {
        let kept = Password::parse("password", "한글 비밀번호 a1!").unwrap();
        let apart = "\u{1112}\u{1161}\u{11AB}\u{1100}\u{1173}\u{11AF}\u{3000}비밀번호\u{A0}a1!";
        assert_eq!(Password::parse("password", apart), Ok(kept));
        let wide = Password::parse("password", "ａ１！a1!abcde").unwrap();
        assert_eq!(wide.expose(), "ａ１！a1!abcde", "width is not changed");
    }

    proptest! {
        /// The same rule as three properties and a length, over near misses.
        #[test]
        fn the_parser_agrees_with_the_rule(text in "[a-b0-1@!#가 \t]{6,66}") {
            let expected = (8..=64).contains(&text.chars().count())
                && text.chars().any(|c| c.is_ascii_alphabetic())
                && text.chars().any(|c| c.is_ascii_digit())
                && text.chars().any(|c| "@$!%*?&".contains(c))
                && !text.contains('\t');
            prop_assert_eq!(Password::parse("password", &text).is_ok(), expected);
        }
    }
}
