//! HTTP/2 towards clients, over TLS alone.
//!
//! Pingora's own session accepts the requests of a connection. It answers more malformed ones than 32
//! by closing the connection, takes care of GOAWAY at the stop, and closes idle connections. The `h2`
//! crate below it bounds header lists, streams, windows, pings, and frames without content. What
//! neither does is in [`crate::connection::Streams`]: resets of requests that services already work on.
//!
//! Each request goes through the same filters as one of HTTP/1.1. What would be ambiguous there cannot
//! come up here, or is refused below: hop-by-hop headers, a length that is not the body's, an authority
//! that differs from `Host`, user names in it.

use std::time::Duration;

use clap::{Args, value_parser};
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};

use crate::limits::ClientRequests;

/// How far a client may be ahead with the bodies of all its requests together, in bytes. One request
/// has the protocol's own default, 64 KiB.
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
/// Memory for what one request's response is ahead of its client, in bytes.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// So many times as many requests of a client may be open as it may have under way: those that are refused are
/// open too, until the client has read why.
const OPEN_REQUESTS: usize = 2;
/// What a header counts besides its name and its value (RFC 9113, 6.5.2).
const HEADER_BYTES: usize = 32;

/// HTTP/2 towards clients.
#[derive(Debug, Clone, Args)]
pub struct Http2Settings {
    /// Requests that a client may have under way on one HTTP/2 connection; 0: HTTP/1.1 alone
    #[arg(id = "http2_max_streams", long = "http2-max-streams", env = "TOURIN_GATEWAY_HTTP2_MAX_STREAMS", value_name = "N", default_value_t = 100, value_parser = value_parser!(u32).range(0..=1_000))]
    pub max_streams: u32,
}

/// The bounds of HTTP/2 connections.
pub struct Http2Limits {
    /// For the HTTP/2 library.
    pub options: H2Options,
    /// For Pingora.
    pub server: HttpServerOptions,
    /// Open requests of each client.
    pub requests: ClientRequests,
}

impl Http2Limits {
    /// By the settings. A request's head has at most so many bytes and headers; a connection without
    /// requests is closed after `idle_timeout`; a client may have `requests` under way.
    pub fn new(
        settings: &Http2Settings,
        head: (usize, usize),
        idle_timeout: Duration,
        requests: usize,
    ) -> Self {
        let (bytes, count) = head;
        let list = bytes.saturating_add(count.saturating_mul(HEADER_BYTES));
        let mut options = default_h2_options();
        options
            .max_concurrent_streams(settings.max_streams)
            .max_header_list_size(u32::try_from(list).unwrap_or(u32::MAX))
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buffer_size(SEND_BUFFER_BYTES);
        let mut server = HttpServerOptions::default();
        server.h2_idle_timeout = Some(idle_timeout);
        let requests = ClientRequests::new(requests.saturating_mul(OPEN_REQUESTS));
        Self { options, server, requests }
    }
}
