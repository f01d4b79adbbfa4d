//! The client's address, scheme and host, and the headers that pass them on to services.
//!
//! `X-Forwarded-*` or `Forwarded`, whichever the settings name, is used if it comes from a trusted proxy,
//! and replaced otherwise. It is read from the right up to the first address that is no trusted proxy;
//! further left is what the client wrote. The other header is never read: a proxy that writes one of
//! them passes on what the client wrote in the other.

mod forwarded;

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use clap::ValueEnum;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::authority::Authority;
use forwarded::Element;

/// The chain of addresses, the nearest last.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The scheme that the client used.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The host that the client asked for.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

const MAX_HOPS: usize = 32;

/// Reads a network (`10.0.0.0/8`), or one address.
///
/// # Errors
/// When the text is neither.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "expected an address or a network such as 10.0.0.0/8".to_owned())
}

/// The header by which trusted proxies name their clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ForwardingHeader {
    /// X-Forwarded-For, with X-Forwarded-Proto and X-Forwarded-Host.
    #[default]
    XForwardedFor,
    /// Forwarded (RFC 7239).
    Forwarded,
}

/// Proxies whose forwarding header is used.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies {
    /// Their networks.
    pub networks: Vec<IpNet>,
    /// The one header that they write.
    pub header: ForwardingHeader,
}

impl TrustedProxies {
    /// Whether `address` is a trusted proxy's.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }
}

/// A client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// `http` or `https`, as the client used it.
    pub scheme: &'static str,
    /// The requested host, with the port if it is not the scheme's default.
    pub host: Option<Authority>,
    /// The addresses on the way, the nearest last.
    chain: Vec<IpAddr>,
}

impl Client {
    /// The client of a request for `host` over `scheme`, by the header of `trusted` proxies.
    pub fn of(
        (scheme, peer): (&'static str, SocketAddr),
        host: Option<Authority>,
        headers: &HeaderMap,
        trusted: &TrustedProxies,
    ) -> Self {
        let peer = peer.ip().to_canonical();
        let mut client = Self { address: peer, scheme, host, chain: vec![peer] };
        if !trusted.contains(peer) {
            return client;
        }
        let said = match trusted.header {
            ForwardingHeader::Forwarded => forwarded_elements(headers),
            ForwardingHeader::XForwardedFor => x_forwarded_elements(headers),
        };
        // From the nearest outward: each element was written by a trusted proxy.
        for element in &said {
            if let Some(scheme) = &element.proto {
                client.scheme = if scheme.eq_ignore_ascii_case("https") { "https" } else { "http" };
            }
            if let Some(host) = &element.host
                && let Ok(host) = Authority::parse(host.as_bytes())
            {
                client.host = Some(host);
            }
            let Some(address) = element.peer.as_deref().and_then(hop) else { break };
            client.chain.insert(0, address);
            client.address = address;
            if !trusted.contains(address) {
                break;
            }
        }
        client
    }

    /// Adds the forwarding headers for services.
    pub fn put_headers(&self, headers: &mut HeaderMap) {
        let (mut forwarded, mut hops) = (String::with_capacity(64), String::with_capacity(32));
        for (at, address) in self.chain.iter().enumerate() {
            // Writing to a String cannot fail.
            let separator = if at == 0 { "" } else { ", " };
            let _ = write!(hops, "{separator}{address}");
            let _ = match address {
                IpAddr::V4(address) => write!(forwarded, "{separator}for={address}"),
                IpAddr::V6(address) => write!(forwarded, "{separator}for=\"[{address}]\""),
            };
            if at == 0 {
                forwarded.push_str(";proto=");
                forwarded.push_str(self.scheme);
                if let Some(host) = &self.host {
                    let _ = write!(forwarded, ";host=\"{}\"", host.as_str());
                }
            }
        }
        let mut put = |name, value: Result<HeaderValue, _>| {
            if let Some(value) = value.ok().filter(|value| !value.is_empty()) {
                headers.insert(name, value);
            }
        };
        put(http::header::FORWARDED, HeaderValue::try_from(forwarded));
        put(X_FORWARDED_FOR, HeaderValue::try_from(hops));
        put(X_FORWARDED_PROTO, Ok(HeaderValue::from_static(self.scheme)));
        put(
            X_FORWARDED_HOST,
            HeaderValue::from_str(self.host.as_ref().map_or("", Authority::as_str)),
        );
    }
}

/// The elements of `Forwarded`, the nearest first.
fn forwarded_elements(headers: &HeaderMap) -> Vec<Element> {
    let lines: Vec<_> = headers.get_all(http::header::FORWARDED).iter().collect();
    lines
        .into_iter()
        .rev()
        .flat_map(|line| forwarded::parse(line.as_bytes()).into_iter().rev())
        .take(MAX_HOPS)
        .collect()
}

/// The elements of `X-Forwarded-*`, the nearest first. If a proxy replaces the scheme or the host and
/// does not append, there are fewer of these than addresses.
fn x_forwarded_elements(headers: &HeaderMap) -> Vec<Element> {
    let [mut peers, mut protos, mut hosts] = [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST]
        .map(|name| listed(headers, &name).into_iter());
    std::iter::from_fn(|| {
        let element = Element { peer: peers.next(), proto: protos.next(), host: hosts.next() };
        (element != Element::default()).then_some(element)
    })
    .take(MAX_HOPS)
    .collect()
}

/// The entries of a list over all its lines, the last first. Quotes have no meaning here: an open quote
/// of the client must not hide what a proxy appended.
fn listed(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let mut entries: Vec<_> = headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(|entry| String::from_utf8_lossy(entry.trim_ascii()).into_owned())
        .filter(|entry| !entry.is_empty())
        .collect();
    entries.reverse();
    entries
}

fn hop(entry: &str) -> Option<IpAddr> {
    let entry = entry.trim();
    let bare = entry.strip_prefix('[').and_then(|entry| entry.strip_suffix(']')).unwrap_or(entry);
    bare.parse::<IpAddr>()
        .or_else(|_| entry.parse::<SocketAddr>().map(|address| address.ip()))
        .ok()
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            (HeaderName::from_static(name), value)
        };
        pairs.iter().map(field).collect()
    }

    use ForwardingHeader::{Forwarded, XForwardedFor};

    fn proxies(header: ForwardingHeader, networks: &[&str]) -> TrustedProxies {
        let networks = networks.iter().map(|net| parse_network(net).unwrap()).collect();
        TrustedProxies { networks, header }
    }

    fn read(peer: &str, headers: &HeaderMap, trusted: &TrustedProxies) -> Client {
        let host = headers.get("host").map(|host| Authority::parse(host.as_bytes()).unwrap());
        Client::of(("http", peer.parse().unwrap()), host, headers, trusted)
    }

    fn host(client: &Client) -> Option<&str> {
        client.host.as_ref().map(Authority::as_str)
    }

    fn forwarded_header(client: &Client, name: &HeaderName) -> String {
        let mut headers = HeaderMap::new();
        client.put_headers(&mut headers);
        headers[name].to_str().unwrap().to_owned()
    }

    #[test]
    fn an_untrusted_clients_header_is_replaced() {
        let said = headers(&[
            ("host", "tourin.example"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("forwarded", "for=1.1.1.1"),
        ]);
        let client = read("203.0.113.9:5000", &said, &TrustedProxies::default());
        assert_eq!(client.address, "203.0.113.9".parse::<IpAddr>().unwrap());
        assert_eq!(forwarded_header(&client, &X_FORWARDED_FOR), "203.0.113.9");
        assert_eq!(forwarded_header(&client, &X_FORWARDED_PROTO), "http");
        assert_eq!(forwarded_header(&client, &X_FORWARDED_HOST), "tourin.example");
        assert_eq!(
            forwarded_header(&client, &http::header::FORWARDED),
            "for=203.0.113.9;proto=http;host=\"tourin.example\""
        );
    }

    #[test]
    fn forwarded_addresses_are_trusted_up_to_the_first_untrusted_proxy() {
        let trusted = proxies(XForwardedFor, &["10.0.0.0/8", "::1"]);
        let said = headers(&[
            ("host", "gateway.internal"),
            ("x-forwarded-for", "6.6.6.6, 203.0.113.9:1234, 10.2.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "tourin.example"),
        ]);
        let client = read("10.1.2.3:5000", &said, &trusted);
        assert_eq!(client.address, "203.0.113.9".parse::<IpAddr>().unwrap());
        assert_eq!(client.scheme, "https");
        assert_eq!(host(&client), Some("tourin.example"));
        assert_eq!(forwarded_header(&client, &X_FORWARDED_FOR), "203.0.113.9, 10.2.0.1, 10.1.2.3");

        let said = headers(&[
            ("x-forwarded-for", "\u{e9}\", 203.0.113.9"),
            ("x-forwarded-host", "a, b c"),
        ]);
        let told_by = read("10.1.2.3:5000", &said, &trusted);
        assert_eq!(told_by.address, "203.0.113.9".parse::<IpAddr>().unwrap());
        assert_eq!(host(&told_by), None);

        let broken = headers(&[("x-forwarded-for", "6.6.6.6, what?")]);
        let client = read("[::1]:5000", &broken, &trusted);
        assert_eq!(client.address, "::1".parse::<IpAddr>().unwrap());
        assert!(forwarded_header(&client, &http::header::FORWARDED).starts_with("for=\"[::1]\""));
    }

    #[test]
    fn only_the_header_that_the_operator_names_is_read() {
        // The proxy writes one of them and passes the client's own other one on.
        let said = headers(&[
            ("host", "gateway.internal"),
            ("forwarded", "for=203.0.113.9;proto=https;host=tourin.example"),
            ("x-forwarded-for", "198.51.100.7"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "other.example"),
        ]);
        for (header, address, scheme, name) in [
            (Forwarded, "203.0.113.9", "https", "tourin.example"),
            (XForwardedFor, "198.51.100.7", "http", "other.example"),
        ] {
            let client = read("10.1.2.3:5000", &said, &proxies(header, &["10.0.0.0/8"]));
            assert_eq!(client.address, address.parse::<IpAddr>().unwrap(), "{header:?}");
            assert_eq!((client.scheme, host(&client)), (scheme, Some(name)), "{header:?}");
        }
        // Where the named one is absent, the proxy is the client; the other one changes nothing.
        for (header, other) in [
            (XForwardedFor, ("forwarded", "for=6.6.6.6;proto=https;host=evil.example")),
            (Forwarded, ("x-forwarded-for", "6.6.6.6")),
            (Forwarded, ("x-forwarded-proto", "https")),
            (Forwarded, ("x-forwarded-host", "evil.example")),
        ] {
            let said = headers(&[("host", "tourin.example"), other]);
            let client = read("10.1.2.3:5000", &said, &proxies(header, &["10.0.0.0/8"]));
            assert_eq!(client.address, "10.1.2.3".parse::<IpAddr>().unwrap(), "{other:?}");
            assert_eq!((client.scheme, host(&client)), ("http", Some("tourin.example")));
        }
    }

    #[test]
    fn forwarded_is_read_up_to_the_first_untrusted_proxy() {
        let trusted = proxies(Forwarded, &["10.0.0.0/8"]);
        let of = |pairs: &[(&'static str, &str)]| read("10.1.2.3:5000", &headers(pairs), &trusted);
        let client = of(&[
            ("host", "gateway.internal"),
            (
                "forwarded",
                "for=6.6.6.6;proto=http;host=evil.example, for=\"[2001:db8::9]:4711\";proto=https;host=\"tourin.example\", for=10.2.0.1;proto=http;host=inner",
            ),
            ("x-forwarded-for", "7.7.7.7"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "evil.example"),
        ]);
        assert_eq!(client.address, "2001:db8::9".parse::<IpAddr>().unwrap());
        assert_eq!((client.scheme, host(&client)), ("https", Some("tourin.example")));
        assert_eq!(forwarded_header(&client, &X_FORWARDED_FOR), "2001:db8::9, 10.2.0.1, 10.1.2.3");
        // An unreadable element is not trusted, nor is anything left of it.
        for line in
            ["for=\"6.6.6.6", "for=unknown", "for=_hidden, for=_known", "for=6.6.6.6, for=x y"]
        {
            let client = of(&[("forwarded", line), ("x-forwarded-for", "7.7.7.7")]);
            assert_eq!(client.address, "10.1.2.3".parse::<IpAddr>().unwrap(), "{line}");
        }
        for junk in ["\u{e9}", "for=\"\u{c11c}\"", "for=1 2;;=", "host=\"a,b\";x"] {
            let client = of(&[("forwarded", &format!("{junk}, for=203.0.113.9"))]);
            assert_eq!(client.address, "203.0.113.9".parse::<IpAddr>().unwrap(), "{junk}");
        }
        // An invalid host is ignored.
        let client = of(&[("host", "h"), ("forwarded", "for=203.0.113.9;host=\"a b\"")]);
        assert_eq!(host(&client), Some("h"));
        // A proxy's own line stands after the client's.
        let mut lines = headers(&[("forwarded", "for=\"")]);
        lines.append("forwarded", "for=203.0.113.9".parse().unwrap());
        let client = read("10.1.2.3:5000", &lines, &trusted);
        assert_eq!(client.address, "203.0.113.9".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn scheme_and_host_are_trusted_as_far_as_the_address() {
        let trusted = proxies(XForwardedFor, &["10.0.0.0/8"]);
        let of = |peers: &str, protos: &str, hosts: &str| {
            let said = headers(&[
                ("x-forwarded-for", peers),
                ("x-forwarded-proto", protos),
                ("x-forwarded-host", hosts),
            ]);
            let client = read("10.1.2.3:5000", &said, &trusted);
            (client.scheme, host(&client).unwrap().to_owned())
        };
        let said = |scheme, host: &str| (scheme, host.to_owned());
        // The client's own elements are left of the proxy's.
        assert_eq!(of("9.9.9.9", "https, http", "evil, tourin"), said("http", "tourin"));
        assert_eq!(of("6.6.6.6, 9.9.9.9", "http, https", "evil, tourin"), said("https", "tourin"));
        // Two proxies that add, and two of which the outer sets and the inner leaves alone.
        assert_eq!(
            of("9.9.9.9, 10.2.0.1", "https, http", "tourin, inner"),
            said("https", "tourin")
        );
        assert_eq!(of("9.9.9.9, 10.2.0.1", "https", "tourin"), said("https", "tourin"));
        assert_eq!(of("what?", "https", "tourin"), said("https", "tourin"));
    }

    #[test]
    fn a_network_is_one_address_or_many() {
        assert_eq!(parse_network("10.0.0.1").unwrap().prefix_len(), 32);
        assert_eq!(parse_network("::/0").unwrap().prefix_len(), 0);
        for bad in ["", "10.0.0.0/33", "10.0.0.0/-1", "host", "10.0.0.0/8/8", "::/129"] {
            assert!(parse_network(bad).is_err(), "{bad}");
        }
        let mapped = read(
            "[::ffff:10.1.1.1]:1",
            &headers(&[("forwarded", "for=192.0.2.1")]),
            &proxies(Forwarded, &["10.0.0.0/8"]),
        );
        assert_eq!(mapped.address, "192.0.2.1".parse::<IpAddr>().unwrap());
    }
}
