//! The guard of listeners for operators, which have no authentication.
//!
//! A page that an operator has open in a browser can let its own name resolve to an operator's address
//! (DNS rebinding), and would then read what the listener shows. Its requests still have its name in
//! `Host`. So only names count that the public DNS cannot give to a stranger, and those in the settings.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use http::header::{HOST, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue};

use super::{ApiError, Message};

/// Answers 403 unless `Host` is an IP address, `localhost` or a name below it, a name without a dot
/// such as a container's, or one of `hosts`; and has browsers not guess at types of content.
pub fn guard_operators(router: Router, hosts: &[String]) -> Router {
    router
        .layer(from_fn_with_state(Arc::<[String]>::from(hosts), guard))
        .layer(map_response(no_sniffing))
}

async fn guard(State(hosts): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    if is_expected(request.headers(), &hosts) {
        return next.run(request).await;
    }
    let message = "this listener is for operators and not known by that name: use localhost or an \
                   address, or add the name to the setting for operators' hosts";
    ApiError::forbidden(Message::for_operators(message)).into_response()
}

/// Without `Host` it is no browser's request.
fn is_expected(headers: &HeaderMap, hosts: &[String]) -> bool {
    headers.get_all(HOST).iter().all(|host| {
        host.to_str().is_ok_and(|host| {
            let name = without_port(host);
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            name.parse::<IpAddr>().is_ok()
                || is_ipv6_literal(&name)
                || !name.contains('.')
                || name.ends_with(".localhost")
                || hosts.iter().any(|host| host.eq_ignore_ascii_case(&name))
        })
    })
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_ipv6_literal(name: &str) -> bool {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    bare.is_some_and(|bare| bare.parse::<Ipv6Addr>().is_ok())
}

/// Adds `X-Content-Type-Options: nosniff`.
pub(super) async fn no_sniffing(mut response: Response) -> Response {
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use http::StatusCode;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn a_page_that_rebinds_its_name_reads_nothing() {
        let secrets = Router::new().route("/metrics", get(|| async { "secret" }));
        let router = guard_operators(secrets, &["ops.tourin.example".to_owned()]);
        for (host, expected) in [
            ("localhost:8090", StatusCode::OK),
            ("traces.localhost", StatusCode::OK),
            ("127.0.0.1:8090", StatusCode::OK),
            ("10.1.2.3", StatusCode::OK),
            ("[::1]:8090", StatusCode::OK),
            ("[::1]", StatusCode::OK),
            ("gateway:8090", StatusCode::OK),
            ("OPS.tourin.example:8090", StatusCode::OK),
            ("ops.tourin.example.", StatusCode::OK),
            ("evil.example", StatusCode::FORBIDDEN),
            ("evil.example:8090", StatusCode::FORBIDDEN),
            ("127.0.0.1.evil.example", StatusCode::FORBIDDEN),
            ("localhost.evil.example", StatusCode::FORBIDDEN),
            ("ops.tourin.example.evil.example", StatusCode::FORBIDDEN),
            ("evil.example:80:8090", StatusCode::FORBIDDEN),
        ] {
            for path in ["/metrics", "/nowhere"] {
                let request = Request::get(path).header(HOST, host).body(Body::empty()).unwrap();
                let response = router.clone().oneshot(request).await.unwrap();
                let found = path == "/metrics" || expected != StatusCode::OK;
                let expected = if found { expected } else { StatusCode::NOT_FOUND };
                assert_eq!(response.status(), expected, "{host} {path}");
                assert_eq!(response.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
            }
        }
        let none = Request::get("/metrics").body(Body::empty()).unwrap();
        assert_eq!(router.oneshot(none).await.unwrap().status(), StatusCode::OK);
    }
}
