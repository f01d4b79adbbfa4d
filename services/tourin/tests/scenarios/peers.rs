//! Peers of a mesh: processes with a certificate, good ones and bad ones.

use std::net::SocketAddr;

use tourin_chassis::config::MeshAccess;
use tourin_chassis::http_client;
use tourin_registry_api::wire::JoinTokenRequest;
use tourin_registry_api::{Instance, JoinError, Joined, Joining};
use tourin_testbed::eventually;
use uuid::Uuid;

use crate::world::TIMEOUT;

/// Joins as a new instance of a service, by the access's token.
pub async fn join(access: &MeshAccess, service: &str) -> Result<Joined, JoinError> {
    let instance = format!("{service}-{}", Uuid::now_v7().simple());
    let joining = Joining::new(access.registry(), (service, &instance));
    joining.join(None).await
}

/// A client that calls instances of `service` with the peer's certificate.
pub fn client(peer: &Joined, service: &str) -> reqwest::Client {
    http_client::mesh_client(peer.workload.client_config(service).unwrap(), TIMEOUT).unwrap()
}

/// The instance as which a peer may register.
pub fn instance(peer: &Joined, address: SocketAddr) -> Instance {
    let name = peer.workload.name();
    Instance::new(&*name.service, &*name.instance, address)
}

/// An operator of a mesh, who can make a peer of any service.
pub struct Operator {
    access: MeshAccess,
    pub joined: Joined,
}

impl Operator {
    pub async fn of(access: MeshAccess) -> Self {
        let joined = join(&access, "operator").await.expect("an operator may join");
        Self { access, joined }
    }

    /// A join token for a service.
    pub async fn token(&self, service: &str, uses: Option<u32>) -> String {
        let request = JoinTokenRequest { service: service.to_owned(), uses, ttl_s: 600 };
        self.joined.registry.join_token(&request).await.expect("an operator may make one")
    }

    /// The access with another token.
    pub fn access_by(&self, token: &str) -> MeshAccess {
        let token = token.parse().expect("a token is a secret");
        MeshAccess { join_token: Some(token), ..MeshAccess::new(&*self.access.registry_url) }
    }

    /// A new instance of a service.
    pub async fn peer(&self, service: &str) -> Joined {
        let access = self.access_by(&self.token(service, None).await);
        join(&access, service).await.expect("the token is good")
    }

    /// The registered instances of a service, which registers a moment after it is ready.
    pub async fn instances(&self, service: &str) -> Vec<Instance> {
        eventually("an instance is registered", async || {
            let listed = self.joined.registry.list(Some(service)).await;
            let instances = listed.expect("the registry answers").instances;
            if instances.is_empty() { Err(instances) } else { Ok(instances) }
        })
        .await
    }

    /// The address of the only instance of a service.
    pub async fn address(&self, service: &str) -> SocketAddr {
        let instances = self.instances(service).await;
        let [instance] = &instances[..] else { panic!("one instance of {service}: {instances:?}") };
        instance.address
    }
}
