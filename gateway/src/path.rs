//! Canonical paths.
//!
//! Access depends on the path, so gateway and service must read it in the same way. Both get the
//! canonical form: unreserved characters plain, everything else percent-encoded in upper case. Ambiguous
//! paths (dot segments, empty segments, an encoded slash, backslash or NUL) are not forwarded.

use std::fmt::Write;

/// Why a path is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathError {
    /// Not a path at all: broken percent-encoding, control characters, no leading slash.
    Malformed,
    /// A path that can be read in two ways; answered as not found.
    Ambiguous,
}

/// The canonical form of a request's path.
///
/// # Errors
/// See [`PathError`].
pub fn canonical(raw: &[u8]) -> Result<String, PathError> {
    if raw.first() != Some(&b'/') {
        return Err(PathError::Malformed);
    }
    let mut path = String::with_capacity(raw.len());
    let mut segment = Vec::new();
    let mut ambiguous = false;
    let mut segments = raw[1..].split(|byte| *byte == b'/').peekable();
    while let Some(encoded) = segments.next() {
        decode(encoded, &mut segment)?;
        let last = segments.peek().is_none();
        // A trailing slash makes an empty last segment, which is allowed.
        ambiguous |= (segment.is_empty() && !last)
            || segment == b"."
            || segment == b".."
            || segment.iter().any(|byte| matches!(byte, b'/' | b'\\' | 0));
        path.push('/');
        encode(&segment, &mut path);
    }
    if ambiguous {
        return Err(PathError::Ambiguous);
    }
    Ok(path)
}

fn decode(encoded: &[u8], into: &mut Vec<u8>) -> Result<(), PathError> {
    into.clear();
    let mut bytes = encoded.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = (bytes.next(), bytes.next());
                let (Some(high), Some(low)) = (hex(digits.0), hex(digits.1)) else {
                    return Err(PathError::Malformed);
                };
                into.push(high << 4 | low);
            }
            0..=b' ' | 0x7f | b'#' | b'?' => return Err(PathError::Malformed),
            byte => into.push(byte),
        }
    }
    Ok(())
}

fn hex(digit: Option<&u8>) -> Option<u8> {
    let digit = char::from(*digit?).to_digit(16)?;
    u8::try_from(digit).ok()
}

fn encode(segment: &[u8], into: &mut String) {
    for &byte in segment {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(into, "%{byte:02X}");
        }
    }
}

/// Whether a canonical path is internal to the mesh and never routed.
pub fn is_internal(path: &str) -> bool {
    let first = path[1..].split('/').next().unwrap_or_default();
    // Any letter case, to be safe.
    ["internal", "healthz", "readyz", "metrics"].iter().any(|name| first.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_spelling_per_path() {
        for (raw, expected) in [
            ("/", "/"),
            ("/api/users", "/api/users"),
            ("/api/users/", "/api/users/"),
            ("/%61pi/%75sers", "/api/users"),
            ("/a/%ec%84%9c", "/a/%EC%84%9C"),
            ("/a/서", "/a/%EC%84%9C"),
            ("/a/b%20c;d=1", "/a/b%20c%3Bd%3D1"),
            ("/a/...", "/a/..."),
            ("/a/%2525", "/a/%2525"),
        ] {
            assert_eq!(canonical(raw.as_bytes()), Ok(expected.to_owned()), "{raw}");
        }
    }

    #[test]
    fn an_ambiguous_path_is_refused() {
        for raw in [
            "/api/../internal/events",
            "/api/..",
            "/./internal",
            "/api/%2e%2e/internal",
            "/api/.%2E/internal",
            "//internal/events",
            "/api//users",
            "/api/..%2finternal",
            "/api%2Fauth%2fme",
            "/api/..\\internal",
            "/api/%5c..%5cinternal",
            "/api/users/%00",
        ] {
            assert_eq!(canonical(raw.as_bytes()), Err(PathError::Ambiguous), "{raw}");
        }
        for raw in ["", "api", "*", "/a%", "/a%2", "/a%zz", "/a b", "/a\u{1}", "/a#b"] {
            assert_eq!(canonical(raw.as_bytes()), Err(PathError::Malformed), "{raw}");
        }
    }

    #[test]
    fn internal_paths_are_recognised_in_any_spelling() {
        for raw in [
            "/internal",
            "/internal/log-filter",
            "/%69nternal/x",
            "/INTERNAL/x",
            "/healthz",
            "/readyz/",
            "/metrics",
        ] {
            assert!(is_internal(&canonical(raw.as_bytes()).unwrap()), "{raw}");
        }
        assert!(!is_internal("/api/internal"));
        assert!(!is_internal("/internals"));
    }

    proptest! {
        #[test]
        fn canonical_is_stable_and_safe(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut path = b"/".to_vec();
            path.extend(raw);
            if let Ok(once) = canonical(&path) {
                prop_assert_eq!(canonical(once.as_bytes()), Ok(once.clone()));
                prop_assert!(once.is_ascii());
                prop_assert!(once.split('/').all(|segment| segment != "." && segment != ".."));
                let lower = once.to_lowercase();
                prop_assert!(!lower.contains("%2f") && !lower.contains("%5c") && !lower.contains("%00"));
            }
        }
    }
}
