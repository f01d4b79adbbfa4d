//! Who is calling, by address, and what services are told about it.
//!
//! A stranger's `X-Forwarded-*` and `Forwarded` say nothing and are replaced. A trusted proxy's are
//! believed, from the right up to the first address that is not a trusted proxy's itself.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue};

/// The chain of addresses, nearest last.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The scheme that the client used.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The host that the client asked for.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Most hops that are read from a trusted proxy's header.
const MAX_HOPS: usize = 32;

/// One address, or a network of them (`10.0.0.0/8`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether the network has this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same_bits = |own: u128, other: u128, width: u8| {
            let shift = u32::from(width - self.prefix);
            // A shift by the whole width means that every address is in.
            own.checked_shr(shift) == other.checked_shr(shift)
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                same_bits(u32::from(own).into(), u32::from(other).into(), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => same_bits(own.into(), other.into(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || "expected an address or a network such as 10.0.0.0/8".to_owned();
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_| expected())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => width,
            Some(prefix) => {
                prefix.trim().parse().ok().filter(|prefix| *prefix <= width).ok_or_else(expected)?
            }
        };
        Ok(Self { address, prefix })
    }
}

/// What is known of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// `http` or `https`, as the client used it.
    pub scheme: &'static str,
    /// The host that it asked for, with the port if it is not the scheme's own.
    pub host: Option<String>,
    /// The addresses that the request came by, the nearest last.
    chain: Vec<IpAddr>,
}

impl Client {
    /// Reads what a request says of its client, believing only `trusted` proxies.
    pub fn of(peer: SocketAddr, headers: &HeaderMap, trusted: &[Network]) -> Self {
        let peer = peer.ip().to_canonical();
        let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(address));
        let mut client = Self {
            address: peer,
            scheme: "http",
            host: text(headers, &http::header::HOST).map(str::to_owned),
            chain: vec![peer],
        };
        if !is_trusted(peer) {
            return client;
        }
        let listed = headers.get_all(X_FORWARDED_FOR);
        let listed: Vec<&str> = listed
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .collect();
        // From the nearest outward: each hop is vouched for by the trusted one before it.
        for entry in listed.iter().rev().take(MAX_HOPS) {
            let Some(address) = hop(entry) else { break };
            client.chain.insert(0, address);
            client.address = address;
            if !is_trusted(address) {
                break;
            }
        }
        if first(headers, &X_FORWARDED_PROTO)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
        {
            client.scheme = "https";
        }
        if let Some(host) = first(headers, &X_FORWARDED_HOST) {
            client.host = Some(host.to_owned());
        }
        client
    }

    /// The headers by which services are told, in place of whatever came in.
    pub fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let hops: Vec<String> = self.chain.iter().map(ToString::to_string).collect();
        let mut forwarded: Vec<String> = self
            .chain
            .iter()
            .map(|address| match address {
                IpAddr::V4(address) => format!("for={address}"),
                IpAddr::V6(address) => format!("for=\"[{address}]\""),
            })
            .collect();
        if let Some(client) = forwarded.first_mut() {
            client.push_str(";proto=");
            client.push_str(self.scheme);
            if let Some(host) = &self.host {
                client.push_str(&format!(";host=\"{}\"", host.replace(['"', '\\'], "")));
            }
        }
        let host = self.host.clone().unwrap_or_default();
        [
            (http::header::FORWARDED, forwarded.join(", ")),
            (X_FORWARDED_FOR, hops.join(", ")),
            (X_FORWARDED_PROTO, self.scheme.to_owned()),
            (X_FORWARDED_HOST, host),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, value)| Some((name, HeaderValue::from_str(&value).ok()?)))
        .collect()
    }
}

fn hop(entry: &str) -> Option<IpAddr> {
    let entry = entry.trim();
    entry
        .parse::<IpAddr>()
        .or_else(|_| entry.parse::<SocketAddr>().map(|address| address.ip()))
        .ok()
        .map(|address| address.to_canonical())
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty())
}

fn first<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    text(headers, name)
        .and_then(|value| value.split(',').next())
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    fn told(client: &Client, name: &HeaderName) -> String {
        let headers = client.headers();
        let (_, value) = headers.iter().find(|(known, _)| known == name).unwrap();
        value.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_strangers_word_is_replaced() {
        let said = headers(&[
            ("host", "tourin.example"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("forwarded", "for=1.1.1.1"),
        ]);
        let client = Client::of("203.0.113.9:5000".parse().unwrap(), &said, &[]);
        assert_eq!(client.address, "203.0.113.9".parse::<IpAddr>().unwrap());
        assert_eq!(told(&client, &X_FORWARDED_FOR), "203.0.113.9");
        assert_eq!(told(&client, &X_FORWARDED_PROTO), "http");
        assert_eq!(told(&client, &X_FORWARDED_HOST), "tourin.example");
        assert_eq!(
            told(&client, &http::header::FORWARDED),
            "for=203.0.113.9;proto=http;host=\"tourin.example\""
        );
    }

    #[test]
    fn a_trusted_proxy_is_believed_up_to_the_first_stranger() {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
        let said = headers(&[
            ("host", "gateway.internal"),
            ("x-forwarded-for", "6.6.6.6, 203.0.113.9:1234, 10.2.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "tourin.example"),
        ]);
        let client = Client::of("10.1.2.3:5000".parse().unwrap(), &said, &trusted);
        assert_eq!(client.address, "203.0.113.9".parse::<IpAddr>().unwrap());
        assert_eq!(client.scheme, "https");
        assert_eq!(client.host.as_deref(), Some("tourin.example"));
        assert_eq!(told(&client, &X_FORWARDED_FOR), "203.0.113.9, 10.2.0.1, 10.1.2.3");

        let broken = headers(&[("x-forwarded-for", "6.6.6.6, what?")]);
        let client = Client::of("[::1]:5000".parse().unwrap(), &broken, &trusted);
        assert_eq!(client.address, "::1".parse::<IpAddr>().unwrap());
        assert!(told(&client, &http::header::FORWARDED).starts_with("for=\"[::1]\""));
    }

    #[test]
    fn networks() {
        let net: Network = "10.0.0.0/8".parse().unwrap();
        assert!(net.contains("10.255.0.1".parse().unwrap()));
        assert!(net.contains("::ffff:10.1.1.1".parse().unwrap()));
        assert!(!net.contains("11.0.0.1".parse().unwrap()));
        let all: Network = "::/0".parse().unwrap();
        assert!(all.contains("2001:db8::1".parse().unwrap()));
        assert!(!all.contains("10.0.0.1".parse().unwrap()));
        for bad in ["", "10.0.0.0/33", "10.0.0.0/-1", "host", "10.0.0.0/8/8", "::/129"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
