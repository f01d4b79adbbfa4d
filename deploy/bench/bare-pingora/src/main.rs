//! A Pingora proxy as its quick start has it: round robin over two addresses, and nothing else on. It is a
//! crate of its own, so that it can be built without the gateway's dependencies and with cargo's own
//! release settings (the profile `plain`).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use clap::Parser;
use pingora::prelude::{HttpPeer, Result, Server, http_proxy_service};
use pingora::proxy::{ProxyHttp, Session};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A Pingora proxy with nothing on, on one thread
#[derive(Debug, Parser)]
struct Settings {
    /// Address to listen on
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Address to send requests to; repeatable
    #[arg(long = "upstream", value_name = "ADDR", required = true)]
    upstreams: Vec<SocketAddr>,
}

struct Proxy {
    upstreams: Vec<SocketAddr>,
    next: AtomicUsize,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.upstreams.len();
        Ok(Box::new(HttpPeer::new(self.upstreams[turn], false, String::new())))
    }
}

fn main() -> Result<()> {
    let settings = Settings::parse();
    let mut server = Server::new(None)?;
    server.bootstrap();
    let proxy = Proxy { upstreams: settings.upstreams, next: AtomicUsize::new(0) };
    let mut service = http_proxy_service(&server.configuration, proxy);
    service.add_tcp(&settings.listen.to_string());
    server.add_service(service);
    server.run_forever()
}
