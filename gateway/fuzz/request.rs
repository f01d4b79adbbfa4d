//! Feeds a client's bytes to what the gateway does with them before a service gets a request: the PROXY
//! header, the guarded stream, Pingora's parser, and the checks and changes of the admission filter, in the
//! proxy's order. An input is what one connection sends, so the requests of the smuggling tests are inputs.
//!
//! Besides panics it finds requests that are forwarded although they could be read in two ways, and headers
//! that a client must not be able to send to a service.
#![no_main]

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::{Corpus, fuzz_target};
use pingora::http::RequestHeader;
use pingora::protocols::http::v1::server::HttpSession;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tourin_chassis::identity::{IDENTITY_HEADER, REQUEST_ID_HEADER};
use tourin_chassis::session_cookies::{CookieNames, SESSION_COOKIES_HEADER};
use tourin_chassis::telemetry::Service;
use tourin_gateway::access_log::{AccessLog, AccessLogSettings};
use tourin_gateway::auth::cookies::{CookiePolicy, SecureCookies};
use tourin_gateway::auth::{Credentials, check_bearer};
use tourin_gateway::authority::{Authority, of_request};
use tourin_gateway::client_address::{Client, ForwardingHeader, TrustedProxies, parse_network};
use tourin_gateway::connection::{BodyEnd, Connection, ConnectionLimits, GuardedStream};
use tourin_gateway::headers;
use tourin_gateway::malformed::MalformedRequests;
use tourin_gateway::metrics::GatewayMetrics;
use tourin_gateway::path;
use tourin_gateway::proxy_protocol::read_header;
use tourin_gateway::response_headers::ResponseHeaders;
use tourin_gateway::routes::{BUILT_IN, CurrentRoutes, RouteTable};
use tourin_gateway::transport::Transport;

/// The most bytes of an input: they fit into a socket's buffer, so that writing them does not wait.
const MAX_BYTES: usize = 64 << 10;
const LIMITS: ConnectionLimits = ConnectionLimits {
    head_bytes: 16 << 10,
    target_bytes: 8 << 10,
    head_timeout: Duration::from_secs(10),
    first_byte_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(10),
};
const BODY_TIMEOUT: Duration = Duration::from_millis(100);
const IDENTITY: HeaderValue = HeaderValue::from_static("signed by the gateway");
/// Fields that a service believes because the gateway alone writes them.
const OWN_FIELDS: [&str; 8] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-tourin-identity",
    "x-tourin-session-cookies",
    "x-request-id",
];

const NO_LOG: AccessLogSettings =
    AccessLogSettings { access_log: None, access_log_ratio: 0.0, access_log_queue: 1 };

/// What one gateway has for all connections.
struct Gateway {
    runtime: Runtime,
    routes: RouteTable,
    malformed: Arc<MalformedRequests>,
    cookies: CookiePolicy,
    balancer: SocketAddr,
    /// Nobody, and the balancer with each of the two headers.
    trusts: [TrustedProxies; 3],
}

static GATEWAY: LazyLock<Gateway> = LazyLock::new(|| {
    let table = || RouteTable::parse(BUILT_IN).expect("the built-in table is valid");
    let routes = CurrentRoutes::new(table());
    let malformed = MalformedRequests::new(
        Service::new("gateway"),
        Arc::new(GatewayMetrics::new(&routes)),
        (AccessLog::open(&NO_LOG).expect("no file"), ResponseHeaders::default()),
    );
    let networks = vec![parse_network("10.0.0.0/8").expect("a network")];
    let trust = |header| TrustedProxies { networks: networks.clone(), header };
    Gateway {
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime"),
        routes: table(),
        malformed: Arc::new(malformed),
        cookies: CookiePolicy::new(SecureCookies::Auto),
        balancer: SocketAddr::from(([10, 0, 0, 1], 4711)),
        trusts: [
            TrustedProxies::default(),
            trust(ForwardingHeader::XForwardedFor),
            trust(ForwardingHeader::Forwarded),
        ],
    }
});

fuzz_target!(|bytes: &[u8]| -> Corpus {
    if bytes.len() > MAX_BYTES {
        return Corpus::Reject;
    }
    let gateway = &*GATEWAY;
    gateway.runtime.block_on(gateway.serve(bytes));
    Corpus::Keep
});

impl Gateway {
    /// Serves a connection up to where its first request would be forwarded or is refused.
    async fn serve(&self, bytes: &[u8]) -> Option<()> {
        // A pair of Unix sockets: the calls of a TCP connection, without a network.
        let (mut client, server) = UnixStream::pair().ok()?;
        client.write_all(bytes).ok()?;
        client.shutdown(Shutdown::Write).ok()?;
        server.set_nonblocking(true).ok()?;
        let mut tcp = TcpStream::from_std(StdTcpStream::from(OwnedFd::from(server))).ok()?;
        let mut peer = self.balancer;
        if bytes.starts_with(b"PROXY ") || bytes.starts_with(b"\r\n\r\n\0") {
            peer = read_header(&mut tcp).await.ok()?.unwrap_or(peer);
        }
        let connection = Connection::new(peer, false);
        let stream = GuardedStream::new(
            Transport::Tcp(tcp),
            LIMITS,
            Arc::clone(&connection),
            Arc::clone(&self.malformed),
        );
        let mut session = HttpSession::new(Box::new(stream));
        session.read_request().await.ok()??;
        connection.admit();

        headers::forget_spelling(session.req_header_mut());
        headers::forbid_upgrade(session.req_header_mut());
        let raw = session.get_headers_raw_bytes();
        let header = session.req_header();
        headers::check_framing(&raw, &header.headers).ok()?;
        assert_one_reading(&raw, &header.headers);
        let path = self.locate(header);
        check_bearer(&header.headers).ok()?;
        let asked = of_request(header, connection.target_authority()).ok()?;
        if let Some(asked) = &asked {
            assert_canonical(asked);
        }
        for trusted in &self.trusts {
            let from = (connection.scheme(), connection.peer);
            let client = Client::of(from, asked.clone(), &header.headers, trusted);
            if !trusted.contains(peer.ip()) {
                assert_eq!(client.address, peer.ip().to_canonical(), "a stranger chose an address");
            }
            self.forward(header.clone(), &client);
        }
        path?;
        let length = header.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        connection.expect_body(match length.and_then(|length| length.parse().ok()) {
            Some(length) => BodyEnd::After(length),
            None => BodyEnd::Chunked,
        });
        // Where Pingora sees no end of chunks, it waits for more than it is given.
        connection.end_by(Instant::now() + BODY_TIMEOUT);
        while let Ok(Some(_)) = session.read_body_bytes().await {}
        Some(())
    }

    /// Finds the route by the path in its one spelling.
    fn locate(&self, header: &RequestHeader) -> Option<String> {
        let target = header.raw_path();
        let end = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
        let canonical = path::canonical(&target[..end]).ok()?;
        assert_eq!(path::canonical(canonical.as_bytes()).as_deref(), Ok(canonical.as_str()));
        let mut segments = canonical.split('/').skip(1).peekable();
        while let Some(segment) = segments.next() {
            let is_last = segments.peek().is_none();
            assert!(is_last || !segment.is_empty(), "{canonical}");
            assert!(![".", ".."].contains(&segment), "{canonical}");
            assert!(!["%2F", "%5C", "%00"].iter().any(|bad| segment.contains(bad)), "{canonical}");
        }
        if let Some(route) = self.routes.find(&canonical) {
            assert!(!path::is_internal(&canonical), "{canonical}");
            let _ = route.access(&header.method);
        }
        Some(canonical)
    }

    /// Makes the service's request, and looks for what a client must not be able to put there.
    fn forward(&self, mut request: RequestHeader, client: &Client) {
        let id = headers::request_id(&request.headers, None);
        let cookies = self.cookies.cookies(client, &request.headers);
        let credentials = Credentials::of(&request.headers, cookies);
        let _ = credentials.by_cookie;
        headers::prepare_request(&mut request, &id, &IDENTITY, client, cookies, Vec::new());
        let headers = &request.headers;
        for (own, value) in [
            (IDENTITY_HEADER, &IDENTITY),
            (REQUEST_ID_HEADER, &id),
            (SESSION_COOKIES_HEADER, &cookies.to_header()),
        ] {
            assert!(headers.get_all(&own).iter().eq([value]), "{own:?}");
        }
        assert!(!headers.contains_key(AUTHORIZATION));
        for (name, value) in headers {
            // As a service reads it that takes the two for the same.
            let read = name.as_str().replace('_', "-");
            let is_claim = read.starts_with("x-tourin-")
                || read.starts_with("x-forwarded-")
                || read == "forwarded";
            assert!(!is_claim || OWN_FIELDS.contains(&name.as_str()), "{name}");
            let is_line = |byte: &u8| !matches!(byte, b'\r' | b'\n' | 0);
            assert!(value.as_bytes().iter().all(is_line), "{name}: {value:?}");
        }
        for own in OWN_FIELDS {
            assert!(headers.get_all(own).iter().count() <= 1, "{own}");
        }
        for pair in headers
            .get_all(COOKIE)
            .iter()
            .flat_map(|cookie| cookie.as_bytes().split(|byte| *byte == b';'))
        {
            let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
            let is_access = |names: &CookieNames| name == names.access().as_bytes();
            assert!(!CookieNames::ALL.iter().any(is_access), "an access token is passed on");
        }
    }
}

/// A reader that overlooks all that is odd in a field's name, or takes a folded line for a field, must find the
/// same framing as the gateway.
fn assert_one_reading(raw: &[u8], headers: &HeaderMap) {
    let lenient = raw.split(|byte| matches!(byte, b'\n' | b'\r')).skip(1).filter_map(|line| {
        let name = &line[..line.iter().position(|byte| *byte == b':')?];
        // What stays may be in a name (RFC 9110, 5.6.2), and makes it another one.
        let is_token =
            |byte: &&u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let name = name.iter().filter(is_token);
        String::from_utf8(name.map(u8::to_ascii_lowercase).collect()).ok()
    });
    let framing: Vec<String> = lenient
        .filter(|name| ["content-length", "transfer-encoding"].contains(&name.as_str()))
        .collect();
    let lengths = headers.get_all(CONTENT_LENGTH).iter().count();
    let codings = headers.get_all(TRANSFER_ENCODING).iter().count();
    assert_eq!(framing.len(), lengths + codings, "{framing:?}");
    let kinds: BTreeSet<&String> = framing.iter().collect();
    assert!(kinds.len() <= 1 && lengths <= 1, "{framing:?}");
}

/// An authority has one spelling, which is read as itself.
fn assert_canonical(asked: &Authority) {
    let again = Authority::parse(asked.host().as_bytes()).expect("a canonical host is valid");
    assert_eq!(again.host(), asked.host());
    assert!(
        !asked.host().bytes().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control())
    );
}
