//! What the registry accepts. Clients can check the same rules first.
//!
//! ```
//! use tourin_registry_api::limits::{instance_id, lease_ms, service_name};
//!
//! assert!(service_name("tour-spots").is_ok() && instance_id("core-018f").is_ok());
//! let error = lease_ms(100).unwrap_err();
//! assert_eq!(error.to_string(), "lease_ms is 200 to 300000");
//! ```

use std::collections::BTreeMap;

use crate::instance::{MAX_WEIGHT, WEIGHT};

/// Longest service name (bytes).
pub const MAX_SERVICE_NAME_BYTES: usize = 63;
/// Longest instance or watcher id (bytes).
pub const MAX_ID_BYTES: usize = 128;
/// Most pairs of metadata on one instance.
pub const MAX_METADATA_PAIRS: usize = 32;
/// Longest metadata name (bytes).
pub const MAX_METADATA_NAME_BYTES: usize = 64;
/// Longest metadata value (bytes).
pub const MAX_METADATA_VALUE_BYTES: usize = 512;
/// Longest metadata of one instance, names and values together (bytes).
pub const MAX_METADATA_BYTES: usize = 4_096;
/// Shortest lease (milliseconds): a few heartbeats and a scheduling delay must fit.
pub const MIN_LEASE_MS: u64 = 200;
/// Longest lease (milliseconds): a killed instance stays listed for that long.
pub const MAX_LEASE_MS: u64 = 300_000;
/// Longest life of a join token (seconds): a year.
pub const MAX_JOIN_TOKEN_TTL_S: u64 = 365 * 24 * 60 * 60;

/// A value that the registry does not accept; the message says which and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

/// A service's name: `[a-z][a-z0-9-]*`, at most [`MAX_SERVICE_NAME_BYTES`].
///
/// # Errors
/// [`InvalidValue`] when it is not.
pub fn service_name(name: &str) -> Result<(), InvalidValue> {
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if starts && rest && name.len() <= MAX_SERVICE_NAME_BYTES {
        return Ok(());
    }
    Err(InvalidValue(format!(
        "a service name is a lower-case letter, then lower-case letters, digits and hyphens, at most {MAX_SERVICE_NAME_BYTES} in all"
    )))
}

/// An instance's or watcher's id: `[A-Za-z0-9][A-Za-z0-9._-]*`, at most [`MAX_ID_BYTES`].
///
/// # Errors
/// [`InvalidValue`] when it is not.
pub fn instance_id(id: &str) -> Result<(), InvalidValue> {
    let starts = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if starts && id.bytes().all(is_id_byte) && id.len() <= MAX_ID_BYTES {
        return Ok(());
    }
    Err(InvalidValue(format!(
        "an id is a letter or digit, then letters, digits, dots, hyphens and underscores, at most {MAX_ID_BYTES} in all"
    )))
}

/// Metadata: at most [`MAX_METADATA_PAIRS`] pairs, names spelt like ids and at most
/// [`MAX_METADATA_NAME_BYTES`] long, values without control characters and at most
/// [`MAX_METADATA_VALUE_BYTES`] long, [`MAX_METADATA_BYTES`] in all; a [`WEIGHT`] is a number.
///
/// # Errors
/// [`InvalidValue`] when it is not so.
pub fn metadata(pairs: &BTreeMap<String, String>) -> Result<(), InvalidValue> {
    if pairs.len() > MAX_METADATA_PAIRS {
        return Err(InvalidValue(format!("metadata has at most {MAX_METADATA_PAIRS} pairs")));
    }
    let bytes: usize = pairs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MAX_METADATA_BYTES {
        return Err(InvalidValue(format!("metadata is at most {MAX_METADATA_BYTES} bytes")));
    }
    for (name, value) in pairs {
        if name.is_empty() || name.len() > MAX_METADATA_NAME_BYTES || !name.bytes().all(is_id_byte)
        {
            return Err(InvalidValue(format!(
                "a metadata name is 1 to {MAX_METADATA_NAME_BYTES} letters, digits, dots, hyphens and underscores"
            )));
        }
        if value.len() > MAX_METADATA_VALUE_BYTES || value.chars().any(char::is_control) {
            return Err(InvalidValue(format!(
                "a metadata value is at most {MAX_METADATA_VALUE_BYTES} bytes without control characters"
            )));
        }
    }
    let given = pairs.get(WEIGHT).map(|given| given.parse().unwrap_or(u32::MAX));
    given.map_or(Ok(()), weight)
}

/// An instance's weight: 0 to [`MAX_WEIGHT`].
///
/// # Errors
/// [`InvalidValue`] when it is not in the range.
pub fn weight(weight: u32) -> Result<(), InvalidValue> {
    if weight <= MAX_WEIGHT {
        return Ok(());
    }
    Err(InvalidValue(format!("{WEIGHT} is a whole number from 0 to {MAX_WEIGHT}")))
}

/// A lease's length in milliseconds: [`MIN_LEASE_MS`] to [`MAX_LEASE_MS`].
///
/// # Errors
/// [`InvalidValue`] when it is not in the range.
pub fn lease_ms(lease: u64) -> Result<(), InvalidValue> {
    if (MIN_LEASE_MS..=MAX_LEASE_MS).contains(&lease) {
        return Ok(());
    }
    Err(InvalidValue(format!("lease_ms is {MIN_LEASE_MS} to {MAX_LEASE_MS}")))
}

fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["core", "a", "tour-spots-2"] {
            assert_eq!(service_name(good), Ok(()), "{good}");
        }
        for bad in ["", "Core", "2core", "-a", "a/b", "a b", "core\n", "코어", &"a".repeat(64)] {
            assert!(service_name(bad).is_err(), "{bad:?}");
        }
        for good in ["core-018f", "A.b_c-9", "1"] {
            assert_eq!(instance_id(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "-x", "a/b", "a%2fb", "a b", &"a".repeat(129)] {
            assert!(instance_id(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn metadata_is_bounded() {
        let one = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        assert_eq!(metadata(&one("zone", "서울")), Ok(()));
        assert_eq!(metadata(&one("weight", "250")), Ok(()));
        for wrong in ["1001", "-1", "heavy", "1.5", ""] {
            assert!(metadata(&one("weight", wrong)).is_err(), "{wrong:?}");
        }
        assert!(metadata(&one("", "x")).is_err());
        assert!(metadata(&one("a b", "x")).is_err());
        assert!(metadata(&one("a", "x\r\ny")).is_err());
        assert!(metadata(&one("a", &"x".repeat(MAX_METADATA_VALUE_BYTES + 1))).is_err());
        let long = (0..9).map(|n| (n.to_string(), "x".repeat(MAX_METADATA_VALUE_BYTES))).collect();
        assert!(metadata(&long).is_err());
        let many = (0..=MAX_METADATA_PAIRS).map(|n| (format!("n{n}"), String::new())).collect();
        assert!(metadata(&many).is_err());
    }

    #[test]
    fn leases_have_a_range() {
        assert_eq!(lease_ms(3_000), Ok(()));
        assert!(lease_ms(MIN_LEASE_MS - 1).is_err());
        assert!(lease_ms(MAX_LEASE_MS + 1).is_err());
    }
}
