//! Whether an instance is found at its address, by the way that others take to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_trait::async_trait;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tourin_chassis::peer::{GATEWAY, Peer};
use tourin_registry_api::{ADMIN_ADDRESS, Instance, Workload};

use crate::app::ports::Verifier;

/// Time for both connections of a verification: less than an instance waits for its registration.
const LIMIT: Duration = Duration::from_millis(800);
/// Verifications at the same time. Who waits longer than [`LIMIT`] is refused, and comes again.
const AT_ONCE: usize = 32;

/// Connects by TCP to the address of an instance, and by mTLS to where it shows its certificate: there, or, for a
/// gateway, whose clients have no certificates, at its operators' listener. It sends no request.
#[derive(Debug)]
pub(crate) struct TlsVerifier {
    own: Workload,
    slots: Semaphore,
}

impl TlsVerifier {
    pub(crate) fn new(own: Workload) -> Self {
        Self { own, slots: Semaphore::new(AT_ONCE) }
    }

    async fn find(&self, instance: &Instance) -> anyhow::Result<()> {
        let _slot = self.slots.acquire().await?;
        let at = instance.address;
        let stream = TcpStream::connect(at).await.context("no connection")?;
        // Another service that could show its certificate elsewhere could register any address.
        let admin = instance.metadata.get(ADMIN_ADDRESS).filter(|_| instance.service == GATEWAY);
        let stream = match admin {
            None => stream,
            Some(admin) => {
                let admin: SocketAddr = admin.parse().context("its operators' address")?;
                TcpStream::connect(admin)
                    .await
                    .with_context(|| format!("no connection to {admin}"))?
            }
        };
        let tls = self.own.client_config(&instance.service)?;
        // The verifier expects the service's name, whatever is asked for.
        let asked = ServerName::try_from(self.own.dns_name(&instance.service))?;
        let stream = TlsConnector::from(Arc::new(tls)).connect(asked, stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let peer = shown.and_then(|der| Peer::of_certificate(der)).context("no certificate")?;
        ensure!(
            (&*peer.service, &*peer.instance) == (&*instance.service, &*instance.id),
            "{}/{} answers there",
            peer.service,
            peer.instance
        );
        Ok(())
    }
}

#[async_trait]
impl Verifier for TlsVerifier {
    async fn verify(&self, instance: &Instance) -> Result<(), String> {
        match timeout(LIMIT, self.find(instance)).await {
            Ok(found) => found.map_err(|error| format!("{error:#}")),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }
}
