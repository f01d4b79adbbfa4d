//! A cache of responses, for routes that say so (`[route.cache]`): what is stored, where, and by which tags
//! it is invalidated. How requests use it is in [`crate::traffic`].
//!
//! Pingora's cache decides as RFC 9111 says: `Cache-Control`, `Vary`, `ETag` and conditional requests. This
//! module decides what may be cached at all.
//!
//! # No personal response is cached
//! Only visitors' requests without any credentials are looked up and stored; members' requests pass by. With
//! `shared = true` members are served from it too, and then the service is asked as one visitor for
//! everybody, so it cannot know for whom it answers. A response that sets a cookie, ends a session, or
//! varies by cookie or credentials is not stored.

mod policy;
pub mod storage;
pub mod tags;

use http::header::{ACCEPT_LANGUAGE, VARY};
use http::{HeaderName, HeaderValue};
use pingora::cache::key::HashBinary;
use pingora::cache::{CacheMeta, VarianceBuilder};
use pingora::http::RequestHeader;
use tourin_chassis::http::{Language, fields};

pub use policy::{CachePolicy, RawCache};

/// The variant of a response, by what its `Vary` names. Languages count as the one that is chosen, so that
/// each is stored once.
pub fn variance(meta: &CacheMeta, request: &RequestHeader) -> Option<HashBinary> {
    let mut variance = VarianceBuilder::new();
    for name in fields::elements(meta.headers(), &VARY) {
        let Ok(name) = HeaderName::from_bytes(name) else { continue };
        let value = if name == ACCEPT_LANGUAGE {
            Language::preferred(&request.headers).tag().as_bytes().to_vec()
        } else {
            let lines: Vec<_> =
                request.headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
            lines.join(b"\n".as_slice())
        };
        variance.add_owned_name_value(name.as_str().to_owned(), value);
    }
    variance.finalize()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use pingora::http::ResponseHeader;

    use super::*;

    #[test]
    fn a_variant_is_told_apart_by_what_vary_names() {
        let now = SystemTime::now();
        let of = |vary: &str, name: &'static str, value: &str| {
            let mut response = ResponseHeader::build(200, None).unwrap();
            response.append_header(VARY, vary).unwrap();
            let meta = CacheMeta::new(now, now, 0, 0, response);
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            request.append_header(name, value).unwrap();
            variance(&meta, &request)
        };
        let lang = "Accept-Language";
        assert_eq!(
            of(lang, "accept-language", "en"),
            of(lang, "accept-language", "en-GB, ko;q=0.1")
        );
        assert_ne!(of(lang, "accept-language", "en"), of(lang, "accept-language", "ko"));
        assert_ne!(of("Accept, X-A", "x-a", "1"), of("Accept, X-A", "x-a", "2"));
        assert_eq!(of("Accept", "x-a", "1"), of("Accept", "x-a", "2"));
    }
}
