//! Handshakes between two peers of the mesh, over a pipe in memory.

use std::io::Write;
use std::sync::Arc;

use anyhow::ensure;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tourin_bench::thread_time;
use tourin_registry_api::Workload;

/// More than a flight of either side has.
const PIPE_BYTES: usize = 64 << 10;

/// Measures and prints. Both ends are on this thread.
pub fn measure(client: Arc<ClientConfig>, server: &Workload, count: u32) -> anyhow::Result<()> {
    let (connector, acceptor) =
        (TlsConnector::from(client), TlsAcceptor::from(server.server_config()));
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let used = runtime.block_on(async {
        // The first ones fill caches.
        for _ in 0..count / 10 {
            handshake(&connector, &acceptor).await?;
        }
        let before = thread_time()?;
        for _ in 0..count {
            handshake(&connector, &acceptor).await?;
        }
        anyhow::Ok(thread_time()? - before)
    })?;
    let each = used.as_secs_f64() / f64::from(count);
    writeln!(
        std::io::stdout(),
        "mTLS handshakes (TLS 1.3, Ed25519, none resumed): {:.0} per second of a core that does both ends, {:.0} us for both",
        1.0 / each,
        each * 1e6
    )?;
    Ok(())
}

async fn handshake(connector: &TlsConnector, acceptor: &TlsAcceptor) -> anyhow::Result<()> {
    let (one, other) = tokio::io::duplex(PIPE_BYTES);
    // The configuration says which name it expects of the server.
    let name = ServerName::try_from("127.0.0.1")?;
    let (client, server) = tokio::try_join!(connector.connect(name, one), acceptor.accept(other))?;
    let (client, server) = (client.get_ref().1, server.get_ref().1);
    ensure!(
        client.handshake_kind() != Some(HandshakeKind::Resumed)
            && server.peer_certificates().is_some(),
        "not a whole handshake of two peers"
    );
    Ok(())
}
