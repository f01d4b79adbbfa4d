//! Pseudonyms for visitors without a session.
//!
//! Services count visitors without identifying them. A pseudonym is a keyed hash of the visitor's
//! network (IPv4 address, IPv6 /64). The key changes every day (UTC), so a pseudonym is the same at
//! every gateway for a day, and cannot be linked to the next day's. The User-Agent is left out: a
//! client could choose it to count many times. Visitors behind one address count as one.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use tourin_chassis::secret::Secret;

use crate::limits::network_of;

const PURPOSE: &str = "tourin/visitor/v1/";
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Characters of base32 that are kept: 130 bits.
const LENGTH: usize = 26;

/// The visitor's pseudonym of the day.
pub fn pseudonym(secret: &Secret, now: DateTime<Utc>, address: IpAddr) -> String {
    let key = secret.derive_key(&format!("{PURPOSE}{}", now.date_naive()));
    let mut mac =
        <Hmac<Sha256> as Mac>::new_from_slice(&key).expect("HMAC accepts a key of any length");
    mac.update(network_of(address).to_string().as_bytes());
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
        let name = pseudonym(&secret, noon, address);
        assert_eq!(name.len(), "anon:".len() + LENGTH);
        assert!(name["anon:".len()..].bytes().all(|byte| ALPHABET.contains(&byte)));
        assert_eq!(name, pseudonym(&secret, noon + TimeDelta::hours(11), address));
        for other in [
            pseudonym(&secret, noon + TimeDelta::hours(12), address),
            pseudonym(&secret, noon, "203.0.113.10".parse().unwrap()),
            pseudonym(&Secret::random(), noon, address),
        ] {
            assert_ne!(name, other);
        }
    }

    #[test]
    fn a_whole_ipv6_network_is_one_visitor() {
        let (secret, now) = (Secret::random(), Utc.with_ymd_and_hms(2026, 5, 4, 12, 0, 0).unwrap());
        let name = |address: &str| pseudonym(&secret, now, address.parse().unwrap());
        assert_eq!(name("2001:db8::1"), name("2001:db8::ffff:2"));
        assert_ne!(name("2001:db8::1"), name("2001:db8:0:1::1"));
        assert_eq!(name("::ffff:203.0.113.9"), name("203.0.113.9"));
        assert_ne!(name("::ffff:203.0.113.9"), name("::ffff:203.0.113.10"));
    }
}
