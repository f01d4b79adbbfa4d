//! The PROXY protocol (versions 1 and 2), by which a TCP balancer names the client of a connection.
//!
//! The header stands before everything else, also before TLS. It is taken from the networks that
//! `--proxy-protocol` names and from nobody else, because whoever may send it may claim any address.
//! Pingora has a hook for it in its listeners, but no parser, and its listeners are not used here
//! ([`crate::server`] says why).

use std::io;
use std::net::SocketAddr;

use clap::Args;
use ipnet::IpNet;
use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::client_address::parse_network;

/// Largest header. The specification asks receivers for 536 bytes; balancers of clouds add some more.
const MAX_BYTES: usize = 2 << 10;
/// Longest header of version 1, with its line end, by the specification.
const MAX_LINE_BYTES: usize = 107;
/// These tell the version, and the length of version 2. Version 1 ends with its line feed.
const START_BYTES: usize = 16;
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Who names clients by the PROXY protocol.
#[derive(Debug, Clone, Default, Args)]
pub struct ProxyProtocolSettings {
    /// Address or network (`10.0.0.0/8`) of balancers that begin each connection with a PROXY header
    /// (version 1 or 2), which names the client; repeatable. A connection from there without the
    /// header is closed. Elsewhere the header is no valid request
    #[arg(
        long = "proxy-protocol",
        env = "TOURIN_GATEWAY_PROXY_PROTOCOL",
        value_name = "NET",
        value_delimiter = ',',
        value_parser = parse_network
    )]
    pub proxy_protocol: Vec<IpNet>,
}

impl ProxyProtocolSettings {
    /// Whether connections from `peer` begin with a PROXY header.
    pub fn expects_header(&self, peer: SocketAddr) -> bool {
        let peer = peer.ip().to_canonical();
        self.proxy_protocol.iter().any(|network| network.contains(&peer))
    }
}

/// Reads the header of a connection, and nothing after it. Gives the client's address; `None` when the
/// balancer itself is the client (its health check), or cannot tell the address.
///
/// # Errors
/// The reading's own, and [`io::ErrorKind::InvalidData`] when there is no valid header.
pub async fn read_header(tcp: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut header = Vec::with_capacity(START_BYTES);
    // The shortest header of each version is as long as this or is a line, so no more is read.
    while header.len() < START_BYTES {
        header.push(tcp.read_u8().await?);
        if header.starts_with(b"P") && header.ends_with(b"\n") {
            return parse(&header);
        }
        if !could_begin(&header) {
            return Err(invalid());
        }
    }
    if header.starts_with(V2_SIGNATURE) {
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if START_BYTES + length > MAX_BYTES {
            return Err(invalid());
        }
        header.resize(START_BYTES + length, 0);
        tcp.read_exact(&mut header[START_BYTES..]).await?;
        return parse(&header);
    }
    while !header.ends_with(b"\n") {
        if header.len() == MAX_LINE_BYTES {
            return Err(invalid());
        }
        header.push(tcp.read_u8().await?);
    }
    parse(&header)
}

fn could_begin(start: &[u8]) -> bool {
    let begins = |with: &[u8]| {
        let common = with.len().min(start.len());
        with[..common] == start[..common]
    };
    begins(b"PROXY ") || begins(V2_SIGNATURE)
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no valid PROXY header")
}

fn parse(header: &[u8]) -> io::Result<Option<SocketAddr>> {
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    match ProxyHeader::parse(header, config) {
        // More than one header's bytes are never read.
        Ok((parsed, length)) if length == header.len() => Ok(parsed
            .proxied_address()
            .filter(|address| address.protocol == Protocol::Stream)
            .map(|address| address.source)),
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// What is read of `sent`, and what is left after it.
    async fn read(sent: &[u8]) -> (io::Result<Option<SocketAddr>>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        let header = read_header(&mut server).await;
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        (header, rest)
    }

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, addresses].concat()
    }

    #[tokio::test]
    async fn both_versions_name_the_client() {
        let v4 = [203, 0, 113, 9, 10, 0, 0, 1, 0x15, 0xb3, 0x1f, 0x90];
        let mut v6 = [0_u8; 36];
        v6[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        v6[15] = 9;
        v6[32..34].copy_from_slice(&5_555_u16.to_be_bytes());
        let with_tlv = [v4.as_slice(), &[4, 0, 1, 0]].concat();
        for (header, client) in [
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 5555 8080\r\n".to_vec(), Some("203.0.113.9:5555")),
            (b"PROXY TCP6 2001:db8::9 ::1 5555 8080\r\n".to_vec(), Some("[2001:db8::9]:5555")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff:f...f ffff:f...f 65535 65535\r\n".to_vec(), None),
            (v2(0x21, 0x11, &v4), Some("203.0.113.9:5555")),
            (v2(0x21, 0x11, &with_tlv), Some("203.0.113.9:5555")),
            (v2(0x21, 0x21, &v6), Some("[2001:db8::9]:5555")),
            // The balancer's own health check, and addresses that are no client's.
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &v4), None),
            (v2(0x21, 0x12, &v4), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let client = client.map(|client| client.parse().unwrap());
            let (read, rest) = read(&[&header, b"GET / HTTP/1.1\r\n".as_slice()].concat()).await;
            assert_eq!(read.unwrap(), client, "{:?}", String::from_utf8_lossy(&header));
            assert_eq!(rest, b"GET / HTTP/1.1\r\n", "nothing after it is read");
        }
    }

    #[tokio::test]
    async fn everything_else_is_refused() {
        let long = v2(0x21, 0x11, &vec![0; MAX_BYTES]);
        let endless = [b"PROXY UNKNOWN ".to_vec(), vec![b'a'; 200]].concat();
        for bad in [
            b"GET / HTTP/1.1\r\nHost: h\r\n\r\n".as_slice(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a client hello",
            b"PROXY TCP4 203.0.113.9 10.0.0.1 5555\r\n",
            b"PROXY TCP4 203.0.113.999 10.0.0.1 5555 8080\r\n",
            b"PROXY TCP4 2001:db8::9 ::1 5555 8080\r\n",
            b"PROXY TCP4 203.0.113.9 10.0.0.1 5555 80800\r\n",
            b"PROXY UDP4 203.0.113.9 10.0.0.1 5555 8080\r\n",
            b"PROXY UNKNOWN\n",
            b"PROXY\r\n",
            b"\r\n\r\nGET / HTTP/1.1\r\n",
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x51, &[0; 12]),
            &long,
            &endless,
        ] {
            let (read, _) = read(bad).await;
            let kind = read.unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::InvalidData, "{:?}", String::from_utf8_lossy(bad));
        }
        // Each is how a header begins.
        for begun in [b"PROXY TCP4 203.0.113.9".as_slice(), b"\r\n\r\n"] {
            let (cut, _) = read(begun).await;
            assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = parse(&[b"PROXY ".as_slice(), &bytes].concat());
            let _ = parse(&[V2_SIGNATURE, &bytes].concat());
        }
    }
}
