//! Normalises request lines that Pingora's parser refuses.
//!
//! Pingora refuses minor versions above HTTP/1.1, which must be served as HTTP/1.1 (RFC 9110, 2.5). It
//! also refuses a target in absolute form whose authority differs from `Host`, although `Host` must be
//! ignored then (RFC 9112, 3.2.2). So Pingora gets a line in origin form with a known version, and the
//! admission filter gets the authority.
//!
//! A target with a space or a control character in it is refused: Pingora would percent-encode it, and others
//! end the target or the line there (RFC 9112, 2.2 and 3.2).

use bytes::Bytes;
use memchr::memchr;

use crate::messages;
use crate::responses::Response;

/// A normalised line, and the authority that was in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestLine {
    /// The line, and the bytes that followed it.
    pub bytes: Bytes,
    /// The authority of a target in absolute form.
    pub authority: Option<Bytes>,
}

/// Whether the first line is complete and already normalised, as nearly all are.
pub(super) fn is_normalized(start: &[u8]) -> bool {
    let Some(end) = start.iter().position(|byte| *byte == b'\n') else { return false };
    let line = start[..end].strip_suffix(b"\r").unwrap_or(&start[..end]);
    let start = line.strip_suffix(b" HTTP/1.1").or_else(|| line.strip_suffix(b" HTTP/1.0"));
    let target = start.and_then(|start| Some(&start[memchr(b' ', start)? + 1..]));
    target.is_some_and(|target| target.first() == Some(&b'/') && is_unbroken(target))
}

/// Whether nobody could end a target before its last byte.
fn is_unbroken(target: &[u8]) -> bool {
    !target.iter().any(|byte| matches!(byte, 0..=b' ' | 0x7f))
}

/// Normalises the first line; `None` while it is incomplete. An unreadable line is not changed, so that
/// Pingora refuses it.
///
/// # Errors
/// The response to another major version, and to a target with a space or a control character.
pub(super) fn normalize(start: &[u8]) -> Option<Result<RequestLine, Response>> {
    let unchanged =
        || Some(Ok(RequestLine { bytes: Bytes::copy_from_slice(start), authority: None }));
    // Blank lines before a request are skipped, as Pingora's parser does.
    let skipped = start.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let text = &start[skipped..];
    let Some(end) = text.iter().position(|byte| *byte == b'\n') else {
        // Another protocol may have no lines at all.
        let is_text = text.iter().all(|byte| !byte.is_ascii_control() || *byte == b'\r');
        return if is_text { None } else { unchanged() };
    };
    let (line, rest) = text.split_at(end);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut spaces = line.iter().enumerate().filter(|(_, byte)| **byte == b' ').map(|(at, _)| at);
    let (Some(first), Some(last)) = (spaces.next(), spaces.next_back()) else {
        return unchanged();
    };
    let (method, target, version) = (&line[..first], &line[first + 1..last], &line[last + 1..]);
    let version = match version.strip_prefix(b"HTTP/") {
        Some(b"1.0") => "HTTP/1.0",
        Some([b'1', b'.', minor]) if minor.is_ascii_digit() => "HTTP/1.1",
        Some([major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Some(Err(Response::version_not_supported()));
        }
        _ => return unchanged(),
    };
    if !is_unbroken(target) {
        return Some(Err(Response::malformed(messages::invalid_path())));
    }
    let (target, authority) = match absolute(method, target) {
        Some((authority, target)) => (target, Some(Bytes::copy_from_slice(authority))),
        None => (target.to_vec(), None),
    };
    let line = [method, &target, version.as_bytes()].join(&b' ');
    let bytes = [&line, b"\r".as_slice(), rest].concat().into();
    Some(Ok(RequestLine { bytes, authority }))
}

/// The authority of a target in absolute form, and the target in origin form.
fn absolute<'a>(method: &[u8], target: &'a [u8]) -> Option<(&'a [u8], Vec<u8>)> {
    let colon = target.iter().position(|byte| *byte == b':').filter(|_| method != b"CONNECT")?;
    let is_http = ["http", "https"]
        .iter()
        .any(|known| target[..colon].eq_ignore_ascii_case(known.as_bytes()));
    let after = target[colon..].strip_prefix(b"://").filter(|_| is_http)?;
    let end = after.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
    let (authority, path) = after.split_at(end.unwrap_or(after.len()));
    let path = match path {
        // OPTIONS for the whole server (RFC 9112, 3.2.4).
        [] if method == b"OPTIONS" => b"*".to_vec(),
        [b'/', ..] => path.to_vec(),
        _ => [b"/", path].concat(),
    };
    Some((authority, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalized(start: &str) -> Option<(String, Option<String>)> {
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        normalize(start.as_bytes()).map(|line| {
            let line = line.unwrap();
            (text(line.bytes), line.authority.map(text))
        })
    }

    #[test]
    fn a_target_in_absolute_form_becomes_a_path() {
        for (target, path, authority) in [
            ("GET http://h:80/a?b=1", "GET /a?b=1", "h:80"),
            ("GET HTTPS://h", "GET /", "h"),
            ("GET http://h?b=/c", "GET /?b=/c", "h"),
            ("GET http://u@h//a", "GET //a", "u@h"),
            ("GET http:///a", "GET /a", ""),
            ("GET http://h\\a/b", "GET /b", "h\\a"),
            ("OPTIONS http://h", "OPTIONS *", "h"),
            ("OPTIONS http://h/", "OPTIONS /", "h"),
        ] {
            assert_eq!(
                normalized(&format!("\r\n{target} HTTP/1.1\r\nHost: h\r\n\r\nbody")),
                Some((
                    format!("{path} HTTP/1.1\r\nHost: h\r\n\r\nbody"),
                    Some(authority.to_owned())
                ))
            );
        }
        for other in ["ftp://h/", "http:/h", "http:h", "*", "h:443", "://h/"] {
            let line = format!("GET {other} HTTP/1.0\r\n");
            assert_eq!(normalized(&line), Some((line.clone(), None)), "{other}");
        }
        let tunnel = "CONNECT http://h HTTP/1.1\r\n";
        assert_eq!(normalized(tunnel), Some((tunnel.to_owned(), None)));
    }

    #[test]
    fn versions_are_those_of_the_major_one() {
        assert_eq!(
            normalized("GET /a HTTP/1.9\nHost: h\n\n"),
            Some(("GET /a HTTP/1.1\r\nHost: h\n\n".to_owned(), None))
        );
        for version in ["HTTP/2.0", "HTTP/0.9", "HTTP/3.1"] {
            let refused = normalize(format!("PRI * {version}\r\n\r\n").as_bytes()).unwrap();
            assert_eq!(refused.unwrap_err().status.as_u16(), 505, "{version}");
        }
        for odd in [
            "GET / HTTP/1\r\n",
            "GET / HTTP/1.10\r\n",
            "GET / http/1.1\r\n",
            "GET /\r\n",
            "\u{16}\u{3}",
        ] {
            assert_eq!(normalized(odd), Some((odd.to_owned(), None)), "{odd:?}");
        }
        assert_eq!(normalized("GET http://h/ HTTP/1."), None);
    }

    #[test]
    fn plain_lines_are_known_by_sight() {
        assert!(is_normalized(b"GET / HTTP/1.1\r\n") && is_normalized(b"GET /a HTTP/1.0\nHost"));
        for other in [
            "GET / HTTP/1.1",
            "GET http://h/ HTTP/1.1\r\n",
            "GET / HTTP/1.2\r\n",
            "GET /a b HTTP/1.1\r\n",
            "GET  / HTTP/1.1\r\n",
            " / HTTP/1.1\r",
            "HTTP/1.1\r\n",
            "\r\n",
        ] {
            assert!(!is_normalized(other.as_bytes()), "{other:?}");
        }
    }

    #[test]
    fn a_broken_target_is_refused() {
        for line in [
            "GET /a b HTTP/1.1",
            "GET /a  HTTP/1.1",
            "GET http://h/a b HTTP/1.0",
            "GET /a\r HTTP/1.1",
            "GET /a\tb HTTP/1.1",
            "GET /a\0 HTTP/1.1",
            "GET /a\u{7f} HTTP/1.1",
        ] {
            let refused = normalize(format!("{line}\r\n").as_bytes()).unwrap();
            assert_eq!(refused.unwrap_err().status.as_u16(), 400, "{line}");
        }
    }
}
