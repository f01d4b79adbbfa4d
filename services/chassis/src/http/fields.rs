//! Header fields: lists of values, and a value that services share.
//!
//! A list may span several lines, each with one or more elements (RFC 9110, 5.3 and 5.6.1). Its
//! bytes need not be ASCII. Elements that cannot be read are left out.

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName};

/// `Cache-Control` of a response for one caller. No cache may store it, and those that ignore `no-store`
/// may not share it (RFC 9111, 5.2.2.7).
pub const PERSONAL: &str = "private, no-store";

/// Splits `text` at separators outside quoted strings (RFC 9110, 5.6.4).
pub fn split_unquoted(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |&byte| {
        let literal = std::mem::take(&mut escaped);
        match byte {
            b'\\' if quoted => escaped = !literal,
            b'"' if !literal => quoted = !quoted,
            _ => {}
        }
        byte == separator && !quoted
    })
}

/// The elements of a list over all its lines, without empty ones.
pub fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let lines = headers.get_all(name).into_iter();
    lines
        .flat_map(|line| split_unquoted(line.as_bytes(), b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// The elements of a list without their parameters, each with its weight in thousandths (RFC 9110,
/// 12.4.2). The weight is 1000 without a `q`. An element with an invalid weight is left out.
pub fn weighted<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = (&'a [u8], u32)> {
    elements(headers, name).filter_map(|element| {
        let mut parts = split_unquoted(element, b';').map(<[u8]>::trim_ascii);
        let value = parts.next()?;
        let weight = parts.find_map(|parameter| {
            let at = parameter.iter().position(|byte| *byte == b'=')?;
            let is_weight = parameter[..at].trim_ascii().eq_ignore_ascii_case(b"q");
            is_weight.then(|| parameter[at + 1..].trim_ascii())
        });
        Some((value, weight.map_or(Some(1_000), thousandths)?))
    })
}

/// Parses a weight such as `0`, `0.5` or `1.000`.
fn thousandths(weight: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(weight).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: u32 = format!("{fraction:0<3}").parse().ok()?;
    match whole {
        "0" => Some(fraction),
        "1" if fraction == 0 => Some(1_000),
        _ => None,
    }
}

/// Whether a list contains the token, ignoring case.
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    elements(headers, name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
}

/// The values of the cookies with this name. A browser sends the one with the longest path first,
/// without its path (RFC 6265, 5.4), so a stale value may come before the right one.
pub fn cookies<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(COOKIE)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .filter_map(move |pair| {
            let at = pair.iter().position(|byte| *byte == b'=')?;
            let value = std::str::from_utf8(&pair[at + 1..]).ok()?.trim();
            let bare = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            let is_it = pair[..at].trim_ascii() == name.as_bytes();
            Some(bare.unwrap_or(value)).filter(|value| is_it && !value.is_empty())
        })
}

/// The tokens of `Authorization: Bearer`.
pub fn bearer_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(AUTHORIZATION).into_iter().filter_map(|line| {
        let (scheme, token) = line.to_str().ok()?.trim().split_once(' ')?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::{ACCEPT, CONNECTION};

    use super::*;

    fn headers(name: HeaderName, lines: &[&[u8]]) -> HeaderMap {
        let line = |line: &&[u8]| (name.clone(), HeaderValue::from_bytes(line).unwrap());
        lines.iter().map(line).collect()
    }

    #[test]
    fn a_list_is_read_over_all_its_lines() {
        let read = headers(ACCEPT, &[b"a, \xff ,,b;p=\"x,\\\"y\"", b"", b" c,"]);
        let elements: Vec<_> = elements(&read, &ACCEPT).collect();
        assert_eq!(elements, [b"a".as_slice(), b"\xff", b"b;p=\"x,\\\"y\"", b"c"]);
        let read = headers(CONNECTION, &[b"\xff, keep-alive", b"x, Close"]);
        assert!(has_token(&read, &CONNECTION, "close"));
        assert!(has_token(&read, &CONNECTION, "keep-alive"));
        assert!(!has_token(&read, &CONNECTION, "upgrade"));
    }

    #[test]
    fn other_cookies_make_no_difference() {
        let values = |lines: &[&[u8]]| -> Vec<String> {
            let read = headers(COOKIE, lines);
            cookies(&read, "sid").map(str::to_owned).collect()
        };
        assert_eq!(values(&[b"_ga=\xec\xff; sid=1", b"sid=\"2\""]), ["1", "2"]);
        assert_eq!(values(&["a=서울;sid = 1 ;broken; =x".as_bytes()]), ["1"]);
        assert_eq!(values(&[b"sid=\xff; sid=; sid=a=b"]), ["a=b"]);
        assert!(values(&[b"xsid=1; Sid=2; sid"]).is_empty());
    }

    #[test]
    fn a_bearer_token_is_found_beside_invalid_lines() {
        let read = headers(
            AUTHORIZATION,
            &[b"Bearer \xff", b"Basic dTpw", b"Bearer ", b"bearer  t ", b"Bearer u"],
        );
        assert_eq!(bearer_tokens(&read).collect::<Vec<_>>(), ["t", "u"]);
    }
}
