//! What may leave the process in a span. Names are on a list ([`super::names::EXPORTED`]). Values
//! are cut, and secrets and personal data are removed by their looks, because a failure's reason
//! may quote some.

use std::borrow::Cow;

use opentelemetry::trace::Status;
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;

use super::names;

/// Longest value that is exported, in characters.
const MAX_VALUE_CHARS: usize = 256;
/// Words of mixed letters and digits from this length on (bytes) are treated as keys.
const MIN_KEY_BYTES: usize = 40;
const REMOVED: &str = "[removed]";

/// Attributes that exporters turn into endpoints and resources, besides the tags.
const ENDPOINTS: [&str; 3] = [names::SERVICE, names::LOCAL, names::PEER_SERVICE];

/// Removes what must not leave the process.
pub(super) fn clean_span(span: &mut SpanData) {
    span.name = clean(&span.name).into_owned().into();
    span.attributes.retain(|pair| {
        let name = pair.key.as_str();
        names::EXPORTED.contains(&name) || ENDPOINTS.contains(&name)
    });
    for pair in &mut span.attributes {
        // An address is neither a secret nor personal data.
        if pair.key.as_str() != names::LOCAL {
            clean_value(pair);
        }
    }
    for event in &mut span.events.events {
        event.name = clean(&event.name).into_owned().into();
        event.attributes.iter_mut().for_each(clean_value);
    }
    if let Status::Error { description } = &mut span.status {
        let reason = if description.is_empty() { "failed" } else { &**description };
        *description = clean(reason).into_owned().into();
    }
}

fn clean_value(pair: &mut KeyValue) {
    if let Value::String(_) | Value::Array(_) = &pair.value {
        let cleaned = clean(&pair.value.as_str()).into_owned();
        pair.value = cleaned.into();
    }
}

/// `value` in its exported form.
fn clean(value: &str) -> Cow<'_, str> {
    if is_plain(value) {
        return Cow::Borrowed(value);
    }
    let needs_removal =
        value.split([' ', '\n', '\t', '"', '\'', ',', ';', '(', ')', '<', '>']).any(is_private);
    let mut value = Cow::Borrowed(value);
    if needs_removal {
        let words: Vec<_> = value
            .split_inclusive([' ', '\n', '\t', '"', '\'', ',', ';', '(', ')', '<', '>'])
            .map(|word| if is_private(word) { REMOVED } else { word })
            .collect();
        value = Cow::Owned(words.join(""));
    }
    if value.len() > MAX_VALUE_CHARS
        && let Some((end, _)) = value.char_indices().nth(MAX_VALUE_CHARS)
    {
        value = Cow::Owned(format!("{}...", &value[..end]));
    }
    value
}

/// Whether a value is certainly harmless, as nearly all are: too short for a key, and without the
/// marks of anything private.
fn is_plain(value: &str) -> bool {
    value.len() < MIN_KEY_BYTES
        && !value.bytes().any(|byte| matches!(byte, b'@' | b'?' | b'=' | b':'))
        && !value.as_bytes().windows(3).any(|three| three == b"eyJ")
}

/// Whether a word may be an e-mail address, a URL with a user or a query, a token or a password.
fn is_private(word: &str) -> bool {
    const MARKS: [&str; 6] = ["password", "secret", "token=", "bearer", "authorization", "cookie"];
    if word.contains('@') || word.starts_with("eyJ") || word.contains('?') {
        return true;
    }
    // Ids and digests are hexadecimal; a long word of other letters and digits is more likely a
    // key.
    let opaque = word.len() >= MIN_KEY_BYTES
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+/=".contains(&b))
        && word.bytes().any(|b| b.is_ascii_uppercase())
        && word.bytes().any(|b| b.is_ascii_digit());
    let assigned = word.contains(['=', ':']) && {
        let lower = word.to_ascii_lowercase();
        MARKS.iter().any(|mark| lower.contains(mark))
    };
    opaque || assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_persons_are_taken_out() {
        for (raw, expected) in [
            ("cannot reach mysql://tourin:pw@10.0.0.1/db now", "cannot reach [removed]now"),
            ("no member mina@example.com", "no member [removed]"),
            ("bad token eyJhbGciOiJFZERTQSJ9.e30.c2ln", "bad token [removed]"),
            ("password=hunter2 refused", "[removed]refused"),
            ("GET /api/tourspots?query=한옥", "GET [removed]"),
        ] {
            assert_eq!(clean(raw), expected);
        }
    }

    #[test]
    fn ordinary_words_pass_and_are_cut() {
        for plain in [
            "connection refused",
            "/api/tourspots/{id}",
            "4bf92f3577b34da6a3ce929d0e0e4736",
            "0197f5a2-7c1e-7a54-9d2b-5b0a8b1f2c3d",
            "event.user.ex",
            "127.0.0.1",
        ] {
            assert_eq!(clean(plain), plain);
        }
        assert_eq!(clean(&"가".repeat(300)).chars().count(), MAX_VALUE_CHARS + 3);
    }
}
