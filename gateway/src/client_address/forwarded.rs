//! A parser of `Forwarded` (RFC 7239).

use tourin_chassis::http::fields;

/// One element: what a proxy knows of the client that connected to it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Element {
    /// `for`: an address, with or without a port, or an obfuscated name.
    pub peer: Option<String>,
    /// `proto`.
    pub proto: Option<String>,
    /// `host`.
    pub host: Option<String>,
}

impl Element {
    fn unreadable() -> Self {
        Self { peer: Some("unknown".to_owned()), ..Self::default() }
    }
}

/// The elements of a header line. A malformed element is unreadable and does not affect the others,
/// except for an open quote: it could hide what a proxy appended, so the whole line is unreadable.
pub(super) fn parse(line: &[u8]) -> Vec<Element> {
    let elements = fields::split_unquoted(line, b',').map(<[u8]>::trim_ascii);
    // Lists may have empty elements (RFC 9110, 5.6.1).
    let elements = elements.filter(|element| !element.is_empty());
    let read = |element: &[u8]| std::str::from_utf8(element).ok().and_then(element_of);
    let elements: Vec<_> = elements.map(|raw| read(raw).ok_or(raw)).collect();
    // An open quote reaches to the end of the line, so it shows in the last element.
    if matches!(elements.last(), Some(Err(last)) if leaves_quote_open(last)) {
        return vec![Element::unreadable()];
    }
    elements.into_iter().map(|element| element.unwrap_or_else(|_| Element::unreadable())).collect()
}

fn leaves_quote_open(element: &[u8]) -> bool {
    // With the quote closed, a comma after it would separate two elements.
    let closed = [element, b","].concat();
    fields::split_unquoted(&closed, b',').count() == 1
}

fn element_of(text: &str) -> Option<Element> {
    let mut element = Element::default();
    let mut rest = text;
    loop {
        let end = rest.find(|character| !is_token(character)).unwrap_or(rest.len());
        if end > 0 {
            let (name, after) = rest.split_at(end);
            let (value, after) = value(after.strip_prefix('=')?)?;
            let field = match name.to_ascii_lowercase().as_str() {
                "for" => Some(&mut element.peer),
                "proto" => Some(&mut element.proto),
                "host" => Some(&mut element.host),
                _ => None,
            };
            if let Some(field) = field
                && field.replace(value).is_some()
            {
                return None; // A repeated parameter is ambiguous.
            }
            rest = after.trim_start_matches(BLANK);
        }
        if rest.is_empty() {
            return Some(element);
        }
        rest = rest.strip_prefix(';')?.trim_start_matches(BLANK);
    }
}

const BLANK: [char; 2] = [' ', '\t'];

fn is_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(character)
}

/// A token or a quoted string, and the rest. Some proxies do not quote `host:port` and IPv6 addresses, so
/// colons and brackets are allowed in a token.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text
            .find(|character| !is_token(character) && !matches!(character, ':' | '[' | ']'))
            .unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    loop {
        match characters.next()? {
            (at, '"') => return Some((value, &quoted[at + 1..])),
            (_, '\\') => value.push(characters.next()?.1),
            (_, character) => value.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn element(peer: &str, proto: &str, host: &str) -> Element {
        let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Element { peer: said(peer), proto: said(proto), host: said(host) }
    }

    #[test]
    fn the_rfcs_examples_are_read() {
        for (line, expected) in [
            ("for=\"_gazonk\"", vec![element("_gazonk", "", "")]),
            ("For=\"[2001:db8:cafe::17]:4711\"", vec![element("[2001:db8:cafe::17]:4711", "", "")]),
            ("for=192.0.2.60;proto=http;by=203.0.113.43", vec![element("192.0.2.60", "http", "")]),
            (
                "for=192.0.2.43, for=198.51.100.17;HOST=\"a\\\"b,c;d\"",
                vec![element("192.0.2.43", "", ""), element("198.51.100.17", "", "a\"b,c;d")],
            ),
            (" ,for=1.1.1.1 ; proto=https ,, ", vec![element("1.1.1.1", "https", "")]),
            ("", vec![]),
        ] {
            assert_eq!(parse(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn a_malformed_forwarded_header_is_ignored() {
        for line in [
            "for",
            "for=",
            "for=\"1.1.1.1",
            "for=1.1.1.1 proto=https",
            "for=1.1.1.1;for=2.2.2.2",
            "=1.1.1.1",
            "for=\"a\"b",
            "for=9.9.9.9;x=\", for=\"[2001:db8::1]\"",
            "for=\", for=203.0.113.9",
            "for=203.0.113.9, for=\"",
            "for=\u{e9}",
        ] {
            assert_eq!(parse(line.as_bytes()), [Element::unreadable()], "{line}");
        }
        let beside = parse(b"for=\xff, for=1.1.1.1;;=, for=203.0.113.9;proto=https");
        assert_eq!(beside[..2], [Element::unreadable(), Element::unreadable()]);
        assert_eq!(beside[2..], [element("203.0.113.9", "https", "")]);
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&line);
        }

        #[test]
        fn quoted_values_round_trip(host in "[ -~]{1,20}") {
            let quoted = host.replace('\\', "\\\\").replace('"', "\\\"");
            let parsed = parse(format!("for=1.1.1.1, host=\"{quoted}\";for=_x").as_bytes());
            prop_assert_eq!(parsed, vec![element("1.1.1.1", "", ""), element("_x", "", &host)]);
        }
    }
}
