//! The gateway's part of every call's responses: its own refusals, and the headers.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Map, Value, json};

use super::set_component;
use crate::fallback::Fallback;
use crate::routes::{Access, Route};

const FALLBACK: &str = "X-Tourin-Fallback";

struct Header {
    name: &'static str,
    description: &'static str,
    everywhere: bool,
}

const fn header(name: &'static str, description: &'static str, everywhere: bool) -> Header {
    Header { name, description, everywhere }
}

/// The headers of all responses, and of those with certain statuses.
const HEADERS: [Header; 12] = [
    header(
        "X-Request-Id",
        "The id under which the call is logged: the caller's own, if it sent a harmless one, else the trace's.",
        true,
    ),
    header(
        "traceresponse",
        "The trace and the span that answered (W3C Trace Context level 2): `00-TRACE-SPAN-FLAGS`.",
        true,
    ),
    header(
        "Vary",
        "What of the request the response depends on besides its target: `Origin`, and for refusals `Accept-Language`.",
        true,
    ),
    header("Cache-Control", "Whether and how long the response may be kept.", true),
    header("X-Content-Type-Options", "`nosniff`: the type of the content is the stated one.", true),
    header(
        "RateLimit-Policy",
        "Of calls with limits on their rate: per limit its name, `q` calls in `w` seconds (draft-ietf-httpapi-ratelimit-headers).",
        true,
    ),
    header(
        "RateLimit",
        "Of calls with limits on their rate: per limit the calls that are left, `r`, and the seconds until all are, `t`.",
        true,
    ),
    header(
        FALLBACK,
        "Why this is a fixed response of the gateway in place of the service's own, which it could not give.",
        false,
    ),
    header("Content-Language", "The language of the message: `ko` or `en`.", false),
    header("Retry-After", "Seconds after which to try again.", false),
    header("WWW-Authenticate", "How to authenticate (RFC 6750).", false),
    header("Accept", "The media types that the call takes.", false),
];

/// The headers of a status, without those of all responses.
fn status_headers(status: &str) -> &'static [&'static str] {
    match status {
        "401" => &["Content-Language", "WWW-Authenticate"],
        "415" => &["Content-Language", "Accept"],
        "429" | "502" | "503" => &["Content-Language", "Retry-After"],
        refusal if refusal.starts_with(['4', '5']) => &["Content-Language"],
        "default" => &["Content-Language"],
        _ => &[],
    }
}

struct Refusal {
    status: &'static str,
    /// Its name among the components.
    name: &'static str,
    description: &'static str,
    applies: fn(&Call<'_>) -> bool,
}

/// The properties of a call that decide which refusals it can have.
pub(super) struct Call<'a> {
    /// Its route; `None` if the gateway serves it itself.
    pub(super) route: Option<&'a Route>,
    /// Who may make it.
    pub(super) access: &'a Access,
    pub(super) method: &'a Method,
}

const fn refusal(
    status: &'static str,
    name: &'static str,
    description: &'static str,
    applies: fn(&Call<'_>) -> bool,
) -> Refusal {
    Refusal { status, name, description, applies }
}

const REFUSALS: [Refusal; 14] = [
    refusal("400", "Malformed", "The request is not of the form that HTTP asks for", |_| true),
    refusal("401", "Unauthenticated", "There is no session, or it has ended", |call| {
        matches!(call.access, Access::Session | Access::Role(_))
    }),
    refusal(
        "403",
        "Forbidden",
        "The caller may not do this, or a page of another site leans on the caller's cookies",
        |call| match call.access {
            Access::Role(_) => true,
            // Does not use cookies.
            Access::Anonymous => false,
            _ => !call.method.is_safe(),
        },
    ),
    refusal("408", "TooSlow", "The request took too long to arrive", |_| true),
    refusal("413", "BodyTooLarge", "The request's body is too large", |_| true),
    refusal("414", "TargetTooLong", "The request's target is too long", |_| true),
    refusal(
        "429",
        "RateLimited",
        "Too many calls of this kind: from the caller's address, by its member, or of all callers",
        |call| call.route.is_some_and(|route| !route.rate_limits.is_empty()),
    ),
    refusal("431", "HeaderTooLarge", "The request's header is too large", |_| true),
    refusal("500", "Internal", "A fault of ours, which is logged", |_| true),
    refusal("501", "NotImplemented", "A Transfer-Encoding that is not known here", |_| true),
    refusal("502", "BadGateway", "The service broke off its answer", |call| call.route.is_some()),
    refusal("503", "Unavailable", "Something that the call needs is down or overloaded", |_| true),
    refusal("504", "ServiceTooSlow", "The service did not answer in time", |_| true),
    refusal("default", "Failure", "Any other refusal or failure", |_| true),
];

/// Adds the components that calls refer to.
pub(super) fn add_components(components: &mut Map<String, Value>) {
    for Header { name, description, everywhere } in HEADERS {
        let mut header = json!({"description": description, "schema": {"type": "string"}});
        if name == "Retry-After" {
            header["schema"] = json!({"type": "integer", "minimum": 1});
        }
        if everywhere && name == "X-Request-Id" {
            header["required"] = json!(true);
        }
        set_component(components, "headers", name, header);
    }
    for Refusal { status, name, description, .. } in REFUSALS {
        let mut response = json!({
            "description": description,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
        });
        add_headers(status, &mut response);
        set_component(components, "responses", name, response);
    }
}

/// Drops responses and headers that no call refers to.
pub(super) fn drop_unused(paths: &Map<String, Value>, components: &mut Map<String, Value>) {
    for kind in ["responses", "headers"] {
        let mut used = BTreeSet::new();
        paths.values().chain(components.values()).for_each(|value| references(value, &mut used));
        if let Some(named) = components.get_mut(kind).and_then(Value::as_object_mut) {
            named.retain(|name, _| used.contains(&format!("#/components/{kind}/{name}")));
        }
    }
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(target) = fields.get("$ref").and_then(Value::as_str) {
                found.insert(target.to_owned());
            }
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

/// Completes the responses of a call.
pub(super) fn complete(call: &Call<'_>, operation: &mut Map<String, Value>) {
    let responses = operation.entry("responses").or_insert_with(|| json!({}));
    let Some(responses) = responses.as_object_mut() else { return };
    for (status, response) in responses.iter_mut() {
        add_headers(status, response);
    }
    let fallback = call.route.and_then(|route| route.fallback.as_ref());
    if let Some(fallback) = fallback.filter(|_| Fallback::serves(call.method))
        && let Some(response) = responses.get_mut(fallback.status().as_str())
    {
        add_header(FALLBACK, response);
    }
    for refusal in REFUSALS.iter().filter(|refusal| (refusal.applies)(call)) {
        let reference = || json!({"$ref": format!("#/components/responses/{}", refusal.name)});
        responses.entry(refusal.status).or_insert_with(reference);
    }
}

/// Adds the headers of a response to those that its service has described.
fn add_headers(status: &str, response: &mut Value) {
    let everywhere = HEADERS.iter().filter(|header| header.everywhere).map(|header| header.name);
    for name in everywhere.chain(status_headers(status).iter().copied()) {
        add_header(name, response);
    }
}

fn add_header(name: &str, response: &mut Value) {
    let Some(response) = response.as_object_mut() else { return };
    let headers = response.entry("headers").or_insert_with(|| json!({}));
    let Some(headers) = headers.as_object_mut() else { return };
    let described = headers.keys().any(|known| known.eq_ignore_ascii_case(name));
    if !described {
        let reference = json!({"$ref": format!("#/components/headers/{name}")});
        headers.insert(name.to_owned(), reference);
    }
}
