//! Rules that several payloads share.

use super::InvalidEvent;

/// The longest user id, in bytes. Ids are ASCII.
const MAX_USER_ID_BYTES: usize = 64;
const PSEUDONYM_PREFIX: &str = "anon:";

pub(super) fn is_pseudonym(user_id: &str) -> bool {
    user_id.starts_with(PSEUDONYM_PREFIX)
}

/// A member's id, or `anon:` and base32. The core service decides which member ids may be chosen.
pub(super) fn user_id(value: &str) -> Result<(), InvalidEvent> {
    let sound = value.len() <= MAX_USER_ID_BYTES
        && match value.strip_prefix(PSEUDONYM_PREFIX) {
            Some(base32) => {
                !base32.is_empty()
                    && base32.bytes().all(|b| b.is_ascii_alphabetic() || (b'2'..=b'7').contains(&b))
            }
            None => {
                !value.is_empty()
                    && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            }
        };
    if sound {
        return Ok(());
    }
    Err(InvalidEvent::Field {
        field: "user_id",
        rule: "must be a member id or anon: and base32, at most 64 bytes",
    })
}

/// Spots and reviews have numeric ids, as strings within a signed 64-bit integer.
pub(super) fn numeric_id(field: &'static str, value: &str) -> Result<(), InvalidEvent> {
    if value.bytes().all(|b| b.is_ascii_digit()) && value.parse::<i64>().is_ok() {
        return Ok(());
    }
    Err(InvalidEvent::Field { field, rule: "must be a number of decimal digits" })
}

/// At most `max` characters.
pub(super) fn text(
    field: &'static str,
    value: &str,
    max: usize,
    rule: &'static str,
) -> Result<(), InvalidEvent> {
    if value.chars().count() <= max {
        return Ok(());
    }
    Err(InvalidEvent::Field { field, rule })
}
