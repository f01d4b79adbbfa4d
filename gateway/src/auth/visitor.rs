//! Pseudonyms for visitors without a session.
//!
//! Services may count a visitor, not know one: a pseudonym is a keyed hash of address and browser
//! under a key that changes every day (UTC), so that it is the same within a day at every gateway,
//! tells nothing of the address, and cannot be followed from one day to the next.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use tourin_chassis::secret::Secret;

const PURPOSE: &str = "tourin/visitor/v1/";
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Characters of base32 that are kept: 130 bits.
const LENGTH: usize = 26;

/// The visitor's pseudonym of the day.
pub fn pseudonym(
    secret: &Secret,
    now: DateTime<Utc>,
    address: IpAddr,
    user_agent: &[u8],
) -> String {
    let key = secret.derive_key(&format!("{PURPOSE}{}", now.date_naive()));
    let mut mac =
        <Hmac<Sha256> as Mac>::new_from_slice(&key).expect("HMAC accepts a key of any length");
    mac.update(address.to_string().as_bytes());
    mac.update(b"\n");
    mac.update(user_agent);
    let digest = mac.finalize().into_bytes();
    let mut name = String::from("anon:");
    name.extend(base32(&digest).take(LENGTH));
    name
}

/// RFC 4648, lower case, without padding.
fn base32(bytes: &[u8]) -> impl Iterator<Item = char> + '_ {
    (0..bytes.len() * 8 / 5).map(|index| {
        let bit = index * 5;
        let high = u16::from(bytes[bit / 8]) << 8;
        let low = u16::from(bytes.get(bit / 8 + 1).copied().unwrap_or(0));
        let five = (high | low) >> (11 - bit % 8) & 0b1_1111;
        char::from(ALPHABET[usize::from(five)])
    })
}

#[cfg(test)]
mod tests {
    use chrono::{TimeDelta, TimeZone};

    use super::*;

    #[test]
    fn base32_is_the_standards() {
        let text = |bytes: &[u8]| base32(bytes).collect::<String>();
        assert_eq!(text(b"fooba"), "mzxw6ytb");
        assert_eq!(text(b"\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00"), "77777777aaaaaaaa");
    }

    #[test]
    fn the_same_visitor_has_one_name_a_day() {
        let secret = Secret::random();
        let noon = Utc.with_ymd_and_hms(2026, 5, 4, 12, 0, 0).unwrap();
        let address: IpAddr = "203.0.113.9".parse().unwrap();
        let name = pseudonym(&secret, noon, address, b"browser");
        assert_eq!(name.len(), "anon:".len() + LENGTH);
        assert!(name["anon:".len()..].bytes().all(|byte| ALPHABET.contains(&byte)));
        assert_eq!(name, pseudonym(&secret, noon + TimeDelta::hours(11), address, b"browser"));
        for other in [
            pseudonym(&secret, noon + TimeDelta::hours(12), address, b"browser"),
            pseudonym(&secret, noon, address, b"another"),
            pseudonym(&secret, noon, "203.0.113.10".parse().unwrap(), b"browser"),
            pseudonym(&Secret::random(), noon, address, b"browser"),
        ] {
            assert_ne!(name, other);
        }
    }
}
