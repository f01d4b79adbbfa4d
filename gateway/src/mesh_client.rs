//! The gateway's own calls to services: keys, ended sessions, API descriptions. Not on the path of
//! clients' requests.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use tourin_chassis::identity::{IDENTITY_HEADER, IdentitySigner, Subject};
use tourin_registry_api::Directory;

/// The gateway's name in the registry.
pub const GATEWAY: &str = "gateway";
/// The name of the service that issues tokens and ends sessions.
pub const CORE: &str = "core";

const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);

/// Calls services as a member of the mesh. Cheap to clone.
#[derive(Clone)]
pub struct MeshClient {
    http: reqwest::Client,
    signer: IdentitySigner,
    directory: Directory,
}

impl MeshClient {
    /// A client that finds instances in `directory`.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn new(signer: IdentitySigner, directory: Directory) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            // The mesh's own traffic stays in the mesh, whatever the environment says of proxies.
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("cannot set up the client for calls inside the mesh")?;
        Ok(Self { http, signer, directory })
    }

    /// Where instances are found.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The body of a successful answer by one instance of `service`.
    ///
    /// # Errors
    /// When there is no instance, it does not answer with success within `limit`, or the body has
    /// more than `max_bytes`.
    pub async fn get(
        &self,
        service: &str,
        path: &str,
        limit: Duration,
        max_bytes: usize,
    ) -> anyhow::Result<Bytes> {
        let instance =
            self.directory.pick(service).with_context(|| format!("no instance of {service}"))?;
        let caller = Subject::Service { name: GATEWAY.to_owned() };
        let mut response = self
            .http
            .get(format!("{}{path}", instance.base_url()))
            .header(IDENTITY_HEADER, self.signer.sign(&caller, service))
            .timeout(limit)
            .send()
            .await
            .with_context(|| format!("{} does not answer", instance.id))?
            .error_for_status()
            .with_context(|| format!("{} refuses", instance.id))?;
        let mut body = Vec::new();
        while let Some(chunk) =
            response.chunk().await.with_context(|| format!("{} broke off", instance.id))?
        {
            anyhow::ensure!(
                body.len() + chunk.len() <= max_bytes,
                "{}: the answer has more than {max_bytes} bytes",
                instance.id
            );
            body.extend_from_slice(&chunk);
        }
        Ok(body.into())
    }
}
