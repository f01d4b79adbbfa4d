//! Compression of responses, on routes that ask for it by `[route.compression]`.
//!
//! Pingora's module compresses. Whether, and by which coding, is decided here: the module does not read
//! quality values, and takes the first coding that the client names.
//!
//! The length of a compressed body says something about its content. Where a page repeats what the
//! request said beside a secret, a stranger who can send requests in a visitor's name and see lengths can
//! guess the secret (BREACH). So responses that are for one caller are never compressed, nor those that
//! set a cookie, nor any but a GET's.

use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    SET_COOKIE,
};
use http::{HeaderMap, Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::modules::http::compression::{ResponseCompression, ResponseCompressionBuilder};
use pingora::protocols::http::compression::Algorithm;
use pingora::proxy::Session;
use serde::Deserialize;
use tourin_chassis::http::fields;

use crate::vary::vary;

/// A smaller body fits into one packet as it is.
const MIN_BYTES: u64 = 1 << 10;
/// The codings, the preferred first, each with a level for bodies that are compressed once and sent once.
const CODINGS: [(Algorithm, u32); 3] =
    [(Algorithm::Zstd, 3), (Algorithm::Brotli, 4), (Algorithm::Gzip, 5)];

/// The compression of a route's responses.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compression {
    /// Smallest body that is compressed, in bytes, where its length is known.
    #[serde(default = "min_bytes")]
    pub min_bytes: u64,
}

impl Compression {
    /// Checks a route's setting. `is_shared` says whether the route has responses that are not for one
    /// caller.
    ///
    /// # Errors
    /// When no response of the route could ever be compressed.
    pub fn check(self, is_shared: bool) -> Result<Self, &'static str> {
        if is_shared {
            return Ok(self);
        }
        Err(
            "only for a GET that is \"public\" or \"optional\"; other responses are for one caller, and \
             their length could give a secret away",
        )
    }
}

fn min_bytes() -> u64 {
    MIN_BYTES
}

/// Adds Pingora's module, which does nothing by itself.
pub fn add_module(modules: &mut HttpModules) {
    modules.add_module(ResponseCompressionBuilder::enable(0));
}

/// Has the response to a request compressed, if the route, the response and the client allow it.
///
/// # Errors
/// Pingora's, which the headers set here do not cause.
pub fn begin(
    compression: &Compression,
    session: &mut Session,
    response: &mut ResponseHeader,
) -> pingora::Result<()> {
    let request = session.req_header();
    // HTTP/1.0 has no chunked coding, which a body of unknown length needs.
    if request.method != Method::GET || request.version < Version::HTTP_11 {
        return Ok(());
    }
    if !is_compressible(compression, response) {
        return Ok(());
    }
    vary(response, &ACCEPT_ENCODING)?;
    let Some((algorithm, level)) = choose(&request.headers) else { return Ok(()) };
    let Some(module) = session.downstream_modules_ctx.get_mut::<ResponseCompression>() else {
        return Ok(());
    };
    let mut chosen = RequestHeader::build(Method::GET, b"/", Some(1))?;
    chosen.insert_header(ACCEPT_ENCODING, algorithm.as_str())?;
    module.adjust_algorithm_level(algorithm, level);
    module.request_filter(&chosen);
    Ok(())
}

fn is_compressible(compression: &Compression, response: &ResponseHeader) -> bool {
    let headers = &response.headers;
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    response.status.is_success()
        && ![StatusCode::NO_CONTENT, StatusCode::PARTIAL_CONTENT].contains(&response.status)
        && ![CONTENT_ENCODING, CONTENT_RANGE, SET_COOKIE]
            .iter()
            .any(|name| headers.contains_key(name))
        && !fields::has_token(headers, &CACHE_CONTROL, "no-transform")
        && length.is_none_or(|length: u64| length >= compression.min_bytes)
        && headers.get(CONTENT_TYPE).is_some_and(|kind| is_text(kind.as_bytes()))
}

/// Whether a media type is text of some kind. Server-sent events are left out: the compressor would hold
/// them back.
fn is_text(kind: &[u8]) -> bool {
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let kind = kind.to_ascii_lowercase();
    (kind.starts_with(b"text/") && kind != b"text/event-stream")
        || kind.ends_with(b"+json")
        || kind.ends_with(b"+xml")
        || [b"application/json".as_slice(), b"application/javascript", b"application/xml"]
            .contains(&kind.as_slice())
}

/// The coding that the client likes best, with its level; `None` if it takes none of them.
fn choose(headers: &HeaderMap) -> Option<(Algorithm, u32)> {
    let accepted: Vec<_> = fields::weighted(headers, &ACCEPT_ENCODING).collect();
    let quality = |algorithm: Algorithm| {
        let of = |name: &[u8]| {
            let known = accepted.iter().find(|(coding, _)| coding.eq_ignore_ascii_case(name));
            known.map(|(_, quality)| *quality)
        };
        of(algorithm.as_str().as_bytes()).or_else(|| of(b"*")).unwrap_or(0)
    };
    let rated = CODINGS.map(|(algorithm, level)| (quality(algorithm), algorithm, level));
    // Of several with the same quality the last one would be taken.
    let best = rated.iter().rev().max_by_key(|(quality, ..)| *quality);
    best.filter(|(quality, ..)| *quality > 0).map(|(_, algorithm, level)| (*algorithm, *level))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::routes::RouteTable;

    fn chosen(lines: &[&str]) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT_ENCODING, HeaderValue::from_str(line).unwrap());
        }
        choose(&headers).map(|(algorithm, _)| algorithm.as_str())
    }

    #[test]
    fn a_route_of_personal_responses_alone_has_no_compression() {
        let table = |methods: &str, compression: &str| {
            let route = "[[route]]\npath = \"/a\"\nservice = \"core\"\n";
            RouteTable::parse(&format!("{route}methods = {methods}\ncompression = {compression}\n"))
        };
        let of = |methods, compression| {
            table(methods, compression).unwrap().iter().next().unwrap().compression.clone()
        };
        assert_eq!(of("{ GET = \"public\" }", "{}"), Some(Compression { min_bytes: 1_024 }));
        let some = of("{ GET = \"optional\", POST = \"session\" }", "{ min_bytes = 5 }");
        assert_eq!(some, Some(Compression { min_bytes: 5 }));
        for methods in ["{ GET = \"session\" }", "{ POST = \"public\" }"] {
            let error = table(methods, "{}").unwrap_err();
            assert_eq!(error.line, 5);
            assert!(error.reason.contains("for one caller"), "{error}");
        }
        assert!(table("{ GET = \"public\" }", "{ level = 9 }").is_err());
    }

    #[test]
    fn the_clients_quality_values_count() {
        for (lines, coding) in [
            (&[][..], None),
            (&["gzip"], Some("gzip")),
            (&["GZIP"], Some("gzip")),
            (&["gzip, deflate, br, zstd"], Some("zstd")),
            (&["gzip, br"], Some("br")),
            (&["gzip", "br"], Some("br")),
            (&["gzip;q=1.0, br;q=0.5"], Some("gzip")),
            (&["br;q=0.001"], Some("br")),
            (&["gzip;q=0, br ; q=0.0"], None),
            (&["*"], Some("zstd")),
            (&["zstd;q=0, *;q=0.1"], Some("br")),
            (&["identity, deflate"], None),
            (&["gzip;q=2"], None),
            (&["gzip;q=x, br;q=0.2"], Some("br")),
            (&[", ,;q=1"], None),
        ] {
            assert_eq!(chosen(lines), coding, "{lines:?}");
        }
    }

    #[test]
    fn what_is_compressed_already_or_held_back_stays_as_it_is() {
        let compression = Compression { min_bytes: 1_000 };
        let is_compressed = |status: u16, pairs: &[(&'static str, &str)]| {
            let mut response = ResponseHeader::build(status, None).unwrap();
            for (name, value) in pairs {
                response.append_header(*name, *value).unwrap();
            }
            is_compressible(&compression, &response)
        };
        let json = ("content-type", "application/json");
        assert!(is_compressed(200, &[json]));
        assert!(is_compressed(200, &[json, ("content-length", "1000")]));
        assert!(is_compressed(200, &[("content-type", "Text/HTML; charset=utf-8")]));
        assert!(is_compressed(200, &[("content-type", "image/svg+xml")]));
        for (status, pairs) in [
            (200, &[][..]),
            (200, &[json, ("content-length", "999")]),
            (200, &[json, ("content-encoding", "gzip")]),
            (200, &[json, ("content-encoding", "identity")]),
            (200, &[json, ("set-cookie", "a=b")]),
            (200, &[json, ("cache-control", "public, no-transform")]),
            (206, &[json, ("content-range", "bytes 0-1/2")]),
            (200, &[("content-type", "text/event-stream")]),
            (200, &[("content-type", "image/png")]),
            (200, &[("content-type", "application/octet-stream")]),
            (200, &[("content-type", "application/zip")]),
            (204, &[json]),
            (304, &[json]),
            (404, &[json]),
        ] {
            assert!(!is_compressed(status, pairs), "{status} {pairs:?}");
        }
    }
}
