//! What the accept loop and its connections have to know.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio_rustls::TlsAcceptor;

use crate::config::Settings;
use crate::connection::ConnectionLimits;
use crate::descriptors::ConnectionCounts;
use crate::http2::Http2Limits;
use crate::malformed::MalformedRequests;
use crate::metrics::ConnectionMetrics;
use crate::proxy_protocol::ProxyProtocolSettings;

/// Settings of the data plane.
pub struct ServerSettings {
    /// Worker threads.
    pub threads: usize,
    /// Limits on client connections.
    pub connections: ConnectionCounts,
    /// Proxies, to which the limit per client does not apply.
    pub trusted_proxies: Vec<IpNet>,
    /// Who names clients by the PROXY protocol.
    pub proxy_protocol: ProxyProtocolSettings,
    /// TLS; plain HTTP when absent.
    pub tls: Option<TlsAcceptor>,
    /// Bounds of HTTP/2 connections.
    pub http2: Arc<Http2Limits>,
    /// Time for requests in flight at the stop.
    pub drain_timeout: Duration,
    /// Time before that in which idle connections stay open, when another gateway accepts new ones.
    pub handover_drain: Duration,
    /// Bounds of each connection.
    pub limits: ConnectionLimits,
    /// Counts of connections.
    pub metrics: ConnectionMetrics,
    /// Refuses and records malformed requests.
    pub malformed: Arc<MalformedRequests>,
}

impl ServerSettings {
    /// By the settings, with the connections that the limit of open files allows and their counts.
    pub fn new(
        settings: &Settings,
        (connections, metrics): (ConnectionCounts, ConnectionMetrics),
        tls: Option<TlsAcceptor>,
        malformed: MalformedRequests,
    ) -> Self {
        let limits = connection_limits(settings);
        let head = (settings.header_limit_bytes, settings.header_limit_count);
        Self {
            threads: settings.threads(),
            connections,
            trusted_proxies: settings.trusted_proxies.clone(),
            proxy_protocol: settings.proxy_protocol.clone(),
            tls,
            http2: Arc::new(Http2Limits::new(
                &settings.http2,
                head,
                limits.idle_timeout,
                settings.max_requests_per_client,
            )),
            drain_timeout: settings.drain_timeout(),
            handover_drain: Duration::from_millis(settings.handover.handover_drain_ms),
            limits,
            metrics,
            malformed: Arc::new(malformed),
        }
    }
}

fn connection_limits(settings: &Settings) -> ConnectionLimits {
    ConnectionLimits {
        head_bytes: settings.header_limit_bytes,
        target_bytes: settings.uri_limit_bytes,
        head_timeout: Duration::from_millis(settings.header_read_timeout_ms),
        first_byte_timeout: Duration::from_millis(settings.client_first_byte_ms),
        idle_timeout: Duration::from_millis(settings.client_idle_ms),
    }
}
