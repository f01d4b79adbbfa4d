//! The source of a call, for counting wrong passwords and for serving clients round robin.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use tourin_chassis::identity::Subject;

use crate::app::client_source::ClientSource;

/// The addresses of the client and of the proxies after it. The gateway replaces a client's header.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client's network by the gateway's header.
///
/// Only for a request with an identity, which proves that it came through the gateway. Without an
/// address, a visitor's pseudonym is used. It is second choice because it depends on the browser's
/// name: a client that makes up names would be a new source each time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CallSource(pub(super) ClientSource);

impl<S: Send + Sync> FromRequestParts<S> for CallSource {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let forwarded = || network(&parts.headers).map(ClientSource::Network);
        Ok(Self(match parts.extensions.get::<Subject>() {
            Some(Subject::Visitor { pseudonym }) => {
                forwarded().unwrap_or_else(|| ClientSource::Visitor(pseudonym.clone()))
            }
            Some(Subject::Member { .. }) => forwarded().unwrap_or(ClientSource::Unknown),
            None => ClientSource::Unknown,
        }))
    }
}

/// The client's network: an IPv4 address, or the /64 of an IPv6 address.
fn network(headers: &HeaderMap) -> Option<IpAddr> {
    let first = headers.get(FORWARDED_FOR)?.to_str().ok()?.split(',').next()?;
    Some(match first.trim().parse::<IpAddr>().ok()?.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    async fn source(subject: Option<Subject>, forwarded: Option<&str>) -> ClientSource {
        let mut request = Request::new(());
        if let Some(subject) = subject {
            request.extensions_mut().insert(subject);
        }
        if let Some(forwarded) = forwarded {
            request.headers_mut().insert(FORWARDED_FOR, forwarded.parse().unwrap());
        }
        let mut parts = request.into_parts().0;
        CallSource::from_request_parts(&mut parts, &()).await.unwrap().0
    }

    fn visitor(pseudonym: &str) -> Option<Subject> {
        Some(Subject::Visitor { pseudonym: pseudonym.to_owned() })
    }

    #[tokio::test]
    async fn the_source_is_the_network_in_the_gateways_header() {
        let network = |text: &str| ClientSource::Network(text.parse().unwrap());
        for (forwarded, expected) in [
            ("203.0.113.9", "203.0.113.9"),
            ("203.0.113.9, 10.0.0.1", "203.0.113.9"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            assert_eq!(
                source(visitor("anon:a"), Some(forwarded)).await,
                network(expected),
                "{forwarded}"
            );
        }
        let member = Subject::Member { id: "a".into(), session: "b".into(), roles: vec![] };
        let forwarded = Some("203.0.113.9");
        assert_eq!(source(Some(member.clone()), forwarded).await, network("203.0.113.9"));
        assert_eq!(source(Some(member), None).await, ClientSource::Unknown);
    }

    #[tokio::test]
    async fn without_an_address_it_is_the_pseudonym_and_without_an_identity_nobody() {
        let pseudonym = ClientSource::Visitor("anon:a".to_owned());
        assert_eq!(source(visitor("anon:a"), None).await, pseudonym);
        assert_eq!(source(visitor("anon:a"), Some("rubbish")).await, pseudonym);
        assert_eq!(source(None, Some("203.0.113.9")).await, ClientSource::Unknown);
    }
}
