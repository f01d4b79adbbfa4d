//! `Vary`, which several parts of the gateway add to.

use http::HeaderName;
use http::header::VARY;
use pingora::http::ResponseHeader;
use tourin_chassis::http::fields;

/// Adds a field's name to `Vary`.
///
/// # Errors
/// Pingora's, which a list of names does not cause.
pub fn vary(response: &mut ResponseHeader, name: &HeaderName) -> pingora::Result<()> {
    let mut names: Vec<&[u8]> = fields::elements(&response.headers, &VARY).collect();
    let is_named =
        |known: &&[u8]| *known == b"*" || known.eq_ignore_ascii_case(name.as_str().as_bytes());
    if names.iter().any(is_named) {
        return Ok(());
    }
    names.push(name.as_str().as_bytes());
    let names = names.join(b", ".as_slice());
    response.insert_header(VARY, names)
}
