//! mTLS to the instances of services.
//!
//! Pingora 0.9.1 builds a connection's TLS from its peer: certificate, key, roots and the expected name. A
//! peer without a name would not be verified at all. The pool of idle connections hashes the serial
//! numbers of the peer's certificates at each request, so a renewed certificate begins new connections.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use tourin_registry_api::{Instance, Workload};

struct Material {
    certificate: Arc<CertKey>,
    roots: Arc<CaType>,
    /// The end of the certificate, by which a renewal is noticed.
    expires: SystemTime,
}

/// The gateway's side of mTLS.
pub struct UpstreamTls {
    workload: Workload,
    material: ArcSwap<Material>,
    #[cfg(feature = "testing")]
    is_plain: bool,
}

impl UpstreamTls {
    /// With the certificate of `workload`, also after its renewals.
    pub fn new(workload: Workload) -> Self {
        let material = ArcSwap::from_pointee(Material::of(&workload));
        Self {
            workload,
            material,
            #[cfg(feature = "testing")]
            is_plain: false,
        }
    }

    /// Plain HTTP to instances, by which a benchmark tells what TLS costs.
    #[cfg(feature = "testing")]
    #[must_use]
    pub(crate) fn without_tls(self) -> Self {
        Self { is_plain: true, ..self }
    }

    /// The peer of a connection to `instance`.
    pub fn peer(&self, instance: &Instance) -> HttpPeer {
        #[cfg(feature = "testing")]
        if self.is_plain {
            return HttpPeer::new(instance.address, false, String::new());
        }
        let mut material = self.material.load();
        if material.expires != self.workload.expires() {
            self.material.store(Arc::new(Material::of(&self.workload)));
            material = self.material.load();
        }
        let name = self.workload.dns_name(&instance.service);
        let mut peer = HttpPeer::new(instance.address, true, name);
        peer.client_cert_key = Some(Arc::clone(&material.certificate));
        peer.options.ca = Some(Arc::clone(&material.roots));
        peer
    }
}

impl Material {
    fn of(workload: &Workload) -> Self {
        let bytes = |certificates: Vec<_>| {
            certificates.into_iter().map(|der: rustls::pki_types::CertificateDer<'_>| der.to_vec())
        };
        // Read before the chain: a renewal in between is then noticed at the next request.
        let expires = workload.expires();
        let certificate = CertKey::new(bytes(workload.chain()).collect(), workload.key().to_vec());
        let roots = bytes(workload.roots()).map(|root| WrappedX509::new(root, parse_x509));
        Self { certificate: Arc::new(certificate), roots: roots.collect(), expires }
    }
}
