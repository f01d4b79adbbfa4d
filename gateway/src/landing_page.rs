//! The page at the gateway's URL.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    ACCEPT, CONTENT_LANGUAGE, CONTENT_SECURITY_POLICY, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Uri};
use sha2::{Digest, Sha256};
use tourin_chassis::http::fields;

use crate::client_address::Client;
use crate::responses::Response;

/// Its path.
pub const LANDING_PATH: &str = "/";

const TEMPLATE: &str = include_str!("landing_page.html");

/// The page, without the visitor's URL.
#[derive(Debug)]
pub struct LandingPage {
    html: String,
    policy: HeaderValue,
}

impl LandingPage {
    /// The page, with links to traces and metrics if there are any.
    pub fn new(traces_url: Option<&str>, metrics_url: Option<&str>) -> Self {
        let links = [
            (traces_url, "Traces of the last requests", "최근 요청의 추적"),
            (metrics_url, "Metrics", "지표"),
        ];
        let links = links.into_iter().filter_map(|(url, english, korean)| {
            let url = escaped(url?);
            Some(format!(
                "<li><a href=\"{url}\">{english}</a> · <span lang=\"ko\">{korean}</span></li>\n"
            ))
        });
        // The page loads and runs nothing; its style is allowed by hash.
        let style =
            TEMPLATE.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>"));
        let hash = STANDARD.encode(Sha256::digest(style.map_or("", |(style, _)| style)));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'"
        );
        Self {
            html: TEMPLATE.replace("{{links}}", &links.collect::<String>()),
            policy: HeaderValue::try_from(policy)
                .unwrap_or(HeaderValue::from_static("default-src 'none'")),
        }
    }

    /// The page for browsers; 404 for other clients.
    pub fn response(&self, headers: &HeaderMap, client: &Client) -> Response {
        let response = if prefers_html(headers) {
            Response::html(self.html.replace("{{url}}", &escaped(&base_url(client))))
                .with(CONTENT_SECURITY_POLICY, self.policy.clone())
                .with(CONTENT_LANGUAGE, HeaderValue::from_static("en, ko"))
                .with(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
                .with(REFERRER_POLICY, HeaderValue::from_static("no-referrer"))
        } else {
            Response::not_found()
        };
        response.with(VARY, HeaderValue::from_static("accept"))
    }
}

/// Checks the URL of a link: http or https, without user information.
///
/// # Errors
/// The expected form.
pub fn parse_page_url(text: &str) -> Result<String, String> {
    let expected = || "expected a URL such as https://traces.example/".to_owned();
    let uri: Uri = text.parse().map_err(|_| expected())?;
    let is_page = matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    if is_page { Ok(text.to_owned()) } else { Err(expected()) }
}

/// The visitor's URL, or `$URL` if it has characters that a shell could interpret.
fn base_url(client: &Client) -> String {
    let is_literal = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    match client.host.as_ref().map(|host| host.as_str()) {
        Some(host) if host.bytes().all(is_literal) => format!("{}://{host}", client.scheme),
        _ => "$URL".to_owned(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// Whether HTML is accepted by name, and not less than JSON. Programs send `*/*` alone.
fn prefers_html(headers: &HeaderMap) -> bool {
    let html = quality(headers, &["text/html", "text/*"]);
    let json = quality(headers, &["application/json", "application/*", "*/*"]);
    html.is_some_and(|html| html > 0 && html >= json.unwrap_or(0))
}

/// The weight in thousandths of the first of these media ranges that `Accept` has (RFC 9110, 12.4.2 and
/// 12.5.1), so the most specific one comes first. Malformed elements are ignored.
fn quality(headers: &HeaderMap, ranges: &[&str]) -> Option<u32> {
    let weight_of = |range: &str| {
        let mut accepted = fields::weighted(headers, &ACCEPT);
        accepted.find(|(name, _)| name.eq_ignore_ascii_case(range.as_bytes()))
    };
    ranges.iter().find_map(|range| weight_of(range)).map(|(_, weight)| weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;
    use crate::client_address::TrustedProxies;

    fn wants(lines: &[&str]) -> bool {
        let line = |line: &&str| (ACCEPT, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        prefers_html(&lines.iter().map(line).collect())
    }

    #[test]
    fn a_browser_asks_for_a_page_and_a_program_does_not() {
        for browsers in [
            &["text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"][..],
            &["text/html"],
            &["TEXT/HTML;level=1;Q=0.7, application/json;q=0.7"],
            &["image/*", "application/json;q=0.1", "text/html;q=0.2"],
            &["광고, text/html"],
            &["text/*, */*;q=0.1"],
            &["application/json;q=x, text/html;q=0.5"],
            &["text/html;p=\"a,b;q=0\""],
        ] {
            assert!(wants(browsers), "{browsers:?}");
        }
        for programs in [
            &[][..],
            &["*/*"],
            &["application/json"],
            &["application/json, text/html;q=0.9"],
            &["text/html;q=0, */*"],
            &["text/html;q=0.000"],
            &["text/html;q=1.5"],
            &["text/html;q=0.5", "*/*"],
            &["text/htmlx, xtext/html"],
        ] {
            assert!(!wants(programs), "{programs:?}");
        }
    }

    #[test]
    fn the_page_is_whole_and_runs_nothing() {
        let page = LandingPage::new(Some("http://traces.example/?a=1&b='"), None);
        assert!(
            page.html.contains("href=\"http://traces.example/?a=1&amp;b=&#39;\""),
            "{}",
            page.html
        );
        assert!(!page.html.contains("{{links}}") && !page.html.contains("Metrics"));
        assert!(!page.html.contains("<script") && !page.html.contains(" style="));
        let policy = page.policy.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        let client = |host: &str| {
            let host = Authority::parse(host.as_bytes()).ok();
            Client::of(
                ("http", "127.0.0.1:1".parse().unwrap()),
                host,
                &HeaderMap::new(),
                &TrustedProxies::default(),
            )
        };
        assert_eq!(base_url(&client("h:8080")), "http://h:8080");
        assert_eq!(base_url(&client("h';rm")), "$URL");
    }

    #[test]
    fn links_are_to_pages() {
        for bad in ["traces", "javascript:alert(1)", "ftp://h/", "http://u@h/", "/traces"] {
            assert!(parse_page_url(bad).is_err(), "{bad}");
        }
        assert!(parse_page_url("https://traces.example:8443/x?y").is_ok());
    }
}
