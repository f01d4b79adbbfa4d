//! The requested host and port: `Host`, or the authority of a target in absolute form or of HTTP/2.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Version};
use pingora::http::RequestHeader;
use pingora::http::authority::{RawTargetAuthority, raw_target_authority};
use tourin_chassis::http::Message;

use crate::messages;
use crate::responses::Response;

/// `uri-host [ ":" port ]` (RFC 9110, 7.2; RFC 3986, 3.2.2 and 3.2.3). The host must not be empty (RFC
/// 9110, 4.2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// As received.
    text: Arc<str>,
    /// Where the host ends in it.
    host_end: usize,
    /// The host's canonical form, if it is another one.
    canonical: Option<Arc<str>>,
    port: Option<u16>,
}

impl Authority {
    /// Parses an authority.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(raw: &[u8]) -> Result<Self, Message> {
        let text = std::str::from_utf8(raw)
            .ok()
            .filter(|text| text.is_ascii())
            .ok_or_else(messages::host_not_ascii)?;
        if text.contains('@') {
            return Err(messages::host_with_user());
        }
        let end = match text.strip_prefix('[') {
            Some(literal) => 2 + literal.find(']').ok_or_else(messages::ipv6_without_end)?,
            None => text.find(':').unwrap_or(text.len()),
        };
        let (host, port) = text.split_at(end);
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return Err(messages::ipv6_with_more()),
            // The port may be missing after the colon.
            Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| messages::port_too_large())?)
            }
            Some(_) => return Err(messages::port_not_digits()),
        };
        let canonical = if is_canonical(host) { None } else { Some(canonical_host(host)?.into()) };
        Ok(Self { text: text.into(), host_end: end, canonical, port })
    }

    /// As received.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host, in lower case and without needless percent-encoding.
    pub fn host(&self) -> &str {
        self.canonical.as_deref().unwrap_or(&self.text[..self.host_end])
    }

    /// Whether it is a name or an address of the local machine (RFC 6761, 6.3).
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host.ends_with(".localhost")
            || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }

    /// The port, or the scheme's `default`.
    pub fn port_or(&self, default: u16) -> u16 {
        self.port.unwrap_or(default)
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// Whether a host is a name in its canonical form, as nearly all are.
fn is_canonical(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| is_plain(byte) && !byte.is_ascii_uppercase())
}

fn canonical_host(host: &str) -> Result<String, Message> {
    if host.is_empty() {
        return Err(messages::host_empty());
    }
    if let Some(literal) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        if let Ok(address) = literal.parse::<Ipv6Addr>() {
            return Ok(format!("[{address}]"));
        }
        // IPvFuture: "v" version "." address.
        let future = literal.strip_prefix(['v', 'V']).and_then(|future| future.split_once('.'));
        let is_future = future.is_some_and(|(version, address)| {
            !version.is_empty()
                && version.bytes().all(|byte| byte.is_ascii_hexdigit())
                && !address.is_empty()
                && address.bytes().all(|byte| is_plain(byte) || byte == b':')
        });
        return if is_future {
            Ok(host.to_ascii_lowercase())
        } else {
            Err(messages::ipv6_invalid())
        };
    }
    let mut canonical = String::with_capacity(host.len());
    let mut rest = host.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if is_plain(byte) {
            canonical.push(char::from(byte.to_ascii_lowercase()));
        } else if byte == b'%' {
            let digits = rest.get(..2).filter(|pair| pair.iter().all(u8::is_ascii_hexdigit));
            let digits = digits.and_then(|pair| std::str::from_utf8(pair).ok());
            let byte = digits.and_then(|pair| u8::from_str_radix(pair, 16).ok());
            let byte = byte.ok_or_else(messages::percent_without_digits)?;
            rest = &rest[2..];
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                canonical.push(char::from(byte.to_ascii_lowercase()));
            } else {
                canonical.push_str(&format!("%{byte:02X}"));
            }
        } else {
            return Err(messages::host_with_stray_character());
        }
    }
    Ok(canonical)
}

/// The authority of a request. That of a target in absolute form wins over `Host` (RFC 9112, 3.2.2). An
/// invalid `Host` is refused in any case, and a missing one in HTTP/1.1 (3.2). `target` is the authority
/// that the connection removed from the request line.
///
/// # Errors
/// The 400 response.
pub fn of_request(
    header: &RequestHeader,
    target: Option<Bytes>,
) -> Result<Option<Authority>, Response> {
    let read = |what: &str, raw: &[u8]| {
        Authority::parse(raw).map_err(|reason| {
            Response::malformed(Message::all(&[messages::invalid_authority(what), reason]))
        })
    };
    let mut hosts = header.headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let host = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err(Response::malformed(messages::several_hosts())),
        (Some(host), None) => Some(read("Host", host)?),
        // HTTP/2 has an authority, which Pingora has compared with `Host` if there is one too.
        (None, _) if header.version == Version::HTTP_2 && header.uri.authority().is_some() => None,
        (None, _) if header.version >= Version::HTTP_11 => {
            return Err(Response::malformed(messages::missing_host()));
        }
        (None, _) => None,
    };
    let pseudo = header.uri.authority().filter(|_| header.version == Version::HTTP_2);
    let target = match (target, raw_target_authority(header.raw_path())) {
        (Some(target), _) => Some(target),
        (None, _) if pseudo.is_some() => {
            pseudo.map(|authority| Bytes::copy_from_slice(authority.as_str().as_bytes()))
        }
        (None, RawTargetAuthority::Absolute { scheme, authority, .. }) => {
            if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known.as_bytes()))
            {
                return Err(Response::malformed(messages::unknown_scheme()));
            }
            Some(Bytes::copy_from_slice(authority))
        }
        (None, _) => None,
    };
    match target {
        Some(target) => read("the target's authority", &target).map(Some),
        None => Ok(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_authorities_are_equal() {
        let parse = |text: &str| Authority::parse(text.as_bytes()).unwrap();
        let key = |text: &str| (parse(text).host().to_owned(), parse(text).port_or(80));
        for (one, other) in [
            ("h", "h:80"),
            ("h", "h:"),
            ("h", "H"),
            ("h:080", "h"),
            ("%68%2d%7E", "h-~"),
            ("a%2fb", "A%2Fb"),
            ("[::1]", "[0:0:0:0:0:0:0:1]:80"),
            ("[2001:DB8::A]:8080", "[2001:db8::a]:8080"),
        ] {
            assert_eq!(key(one), key(other), "{one} {other}");
        }
        for (one, other) in [("h", "h:81"), ("h", "i"), ("h", "h."), ("a%2Fb", "a%2Cb")] {
            assert_ne!(key(one), key(other), "{one} {other}");
        }
        assert_eq!(parse("H:").as_str(), "H:");
        for good in ["999.1.1.1", "a_b", "a,b", "[v1f.a:b]", "a!$&'()*+;=", "h:0", "h:65535"] {
            parse(good);
        }
    }

    #[test]
    fn an_invalid_authority_is_refused() {
        for bad in [
            "",
            ":80",
            "u@h",
            "u:p@h",
            "@h",
            "h:x",
            "h:-1",
            "h:+1",
            "h:65536",
            "h:80:80",
            "h h",
            "h/",
            "h?",
            "h#",
            "h\\",
            "h%",
            "h%4",
            "h%zz",
            "h%+1",
            "<h>",
            "h\"",
            "h|",
            "h^",
            "h`",
            "{h}",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]80",
            "[h]",
            "[]",
            "[::1%25eth0]",
            "[v.a]",
            "[v1.]",
            "[1.2.3.4]",
            "서울",
            "h\u{7f}",
            "h\t",
        ] {
            assert!(Authority::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Authority::parse(b"h\xff").is_err());
    }

    #[test]
    fn the_target_in_absolute_form_counts() {
        let of = |target: &str, hosts: &[&str], version, taken: Option<&'static str>| {
            let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
            request.set_version(version);
            for host in hosts {
                request.append_header(HOST, *host).unwrap();
            }
            of_request(&request, taken.map(Bytes::from))
                .map(|authority| authority.map(|authority| authority.as_str().to_owned()))
                .map_err(|response| response.status.as_u16())
        };
        let said = |text: &str| Ok(Some(text.to_owned()));
        let (v10, v11) = (Version::HTTP_10, Version::HTTP_11);
        assert_eq!(of("/", &["h"], v11, None), said("h"));
        assert_eq!(of("/", &["h"], v11, Some("other:80")), said("other:80"));
        assert_eq!(of("http://h/x", &["h"], v11, None), said("h"));
        assert_eq!(of("/", &[], v10, None), Ok(None));
        assert_eq!(of("/", &[], v10, Some("h")), said("h"));
        for (target, hosts, version, taken) in [
            ("/", vec![], v11, None),
            ("/", vec![], v11, Some("h")),
            ("/", vec![""], v11, None),
            ("/", vec!["h", "h"], v10, None),
            ("/", vec!["h h"], v10, None),
            ("/", vec!["h h"], v11, Some("h")),
            ("/", vec!["h"], v11, Some("u@h")),
            ("/", vec!["h"], v11, Some("")),
            ("ftp://h/x", vec!["h"], v11, None),
        ] {
            assert_eq!(
                of(target, &hosts, version, taken),
                Err(400),
                "{target} {hosts:?} {taken:?}"
            );
        }
    }
}
