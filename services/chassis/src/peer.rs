//! The peer of a connection, by its certificate.
//!
//! A certificate of the mesh names its workload by a SPIFFE ID, `spiffe://MESH/SERVICE/INSTANCE`, and its
//! service by the DNS name `SERVICE.MESH`.

use std::fmt;
use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The service that the gateway's instances are.
pub const GATEWAY: &str = "gateway";
/// The service that operators' commands and pages are.
pub const OPERATOR: &str = "operator";

const SCHEME: &str = "spiffe://";
/// Length of an Ed25519 public key in bytes.
const KEY_BYTES: usize = 32;

/// The SPIFFE ID of a workload.
pub fn spiffe_id(mesh: &str, service: &str, instance: &str) -> String {
    format!("{SCHEME}{mesh}/{service}/{instance}")
}

/// A workload whose certificate has been verified.
#[derive(Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its SPIFFE ID.
    pub id: String,
    /// Its mesh's name.
    pub mesh: String,
    /// Its service's name.
    pub service: String,
    /// Its instance's name.
    pub instance: String,
    /// Its Ed25519 public key.
    pub public_key: [u8; KEY_BYTES],
    /// The end of its certificate's life.
    pub expires: SystemTime,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

impl Peer {
    /// The workload in a certificate (DER) that TLS has verified. `None` if it is not one of a mesh.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = &certificate.subject_alternative_name().ok()??.value.general_names;
        let id = names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })?;
        let mut parts = id.strip_prefix(SCHEME)?.split('/');
        let (mesh, service, instance) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let expires = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        Some(Self {
            id: id.to_owned(),
            mesh: mesh.to_owned(),
            service: service.to_owned(),
            instance: instance.to_owned(),
            public_key: (*certificate.public_key().subject_public_key.data).try_into().ok()?,
            expires: SystemTime::UNIX_EPOCH + Duration::from_secs(expires),
        })
    }
}

/// The caller is a process of this machine without a certificate, over plain HTTP.
#[derive(Debug, Clone, Copy)]
pub struct ThisMachine;
