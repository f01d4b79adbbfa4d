//! A set of certificates, read from files.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use rustls::SignatureScheme;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::reload::Contents;

/// The permissions of a key's file that are refused: all of others', and those of its group to write
/// and execute. The group may read: a mounted secret belongs to root and to the container's group.
const REFUSED_MODE: u32 = 0o037;

fn check_mode(key: &Path) -> anyhow::Result<()> {
    let mode = fs::metadata(key).context("cannot read it")?.permissions().mode() & 0o777;
    ensure!(
        mode & REFUSED_MODE == 0,
        "its mode is {mode:04o}: only its owner may write it, and only its owner and group may read \
         it; set it to 0600 or 0640"
    );
    Ok(())
}

/// A set of certificates.
#[derive(Debug)]
pub struct Certificates {
    /// In the order of the files.
    keys: Vec<Arc<CertifiedKey>>,
    /// The ends of their validity, in seconds since 1970.
    ends: Vec<i64>,
    /// By host name in lower case, or by the domain of a wildcard. A name may have several, of
    /// different kinds of keys.
    by_name: HashMap<Name, Vec<usize>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Name {
    Host(String),
    /// All names with one label more.
    Below(String),
}

impl Certificates {
    /// Parses the contents of `files`: each certificate's, and its key's after it.
    ///
    /// # Errors
    /// The first file that is not what it should be, and why.
    pub fn parse(files: &[PathBuf], contents: &Contents, now: SystemTime) -> anyhow::Result<Self> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed();
        let mut all = Self { keys: Vec::new(), ends: Vec::new(), by_name: HashMap::new() };
        let contents: Vec<&[u8]> = contents.iter().collect();
        for (files, contents) in files.chunks_exact(2).zip(contents.chunks_exact(2)) {
            check_mode(&files[1]).with_context(|| format!("--tls-key {}", files[1].display()))?;
            let (key, end, names) = certified_key(files, contents, now)?;
            for name in names {
                all.by_name.entry(name).or_default().push(all.keys.len());
            }
            all.keys.push(Arc::new(key));
            all.ends.push(end);
        }
        Ok(all)
    }

    /// The certificate for a name, of a kind that the client can verify; the first of all without a
    /// name and for an unknown one.
    pub fn of(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let named = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let above = name.split_once('.').map(|(_, above)| Name::Below(above.to_owned()));
            self.by_name.get(&Name::Host(name)).or_else(|| self.by_name.get(&above?))
        });
        let keys = match named {
            Some(named) => named.iter().map(|at| &self.keys[*at]).collect(),
            None => self.keys.iter().collect::<Vec<_>>(),
        };
        let fits = keys.iter().find(|key| key.key.choose_scheme(schemes).is_some());
        fits.or_else(|| keys.first()).map(|key| Arc::clone(key))
    }

    /// The ends of their validity, in seconds since 1970.
    pub fn ends(&self) -> &[i64] {
        &self.ends
    }

    /// A digest of the certificates.
    pub fn version(&self) -> String {
        let mut digest = Sha256::new();
        for certificate in self.keys.iter().flat_map(|key| &key.cert) {
            digest.update(certificate);
        }
        digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn certified_key(
    files: &[PathBuf],
    contents: &[&[u8]],
    now: i64,
) -> anyhow::Result<(CertifiedKey, i64, Vec<Name>)> {
    let in_certificate = || format!("--tls-certificate {}", files[0].display());
    let chain = CertificateDer::pem_slice_iter(contents[0])
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| anyhow::anyhow!("not PEM: {error}"))
        .with_context(in_certificate)?;
    let Some(own) = chain.first() else {
        bail!("{}: no certificate in it (PEM, BEGIN CERTIFICATE)", in_certificate());
    };
    let (end, names) = validity_and_names(own, now).with_context(in_certificate)?;
    // Parse errors name no part of a key.
    let key = PrivateKeyDer::from_pem_slice(contents[1]).map_err(|_| {
        anyhow::anyhow!(
            "--tls-key {}: no private key in it (PEM, without a passphrase)",
            files[1].display()
        )
    })?;
    let key = CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                anyhow::anyhow!("it is not the certificate of --tls-key {}", files[1].display())
            }
            error => anyhow::anyhow!("{error}"),
        })
        .with_context(in_certificate)?;
    Ok((key, end, names))
}

fn validity_and_names(certificate: &[u8], now: i64) -> anyhow::Result<(i64, Vec<Name>)> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| anyhow::anyhow!("not an X.509 certificate: {error}"))?;
    let validity = parsed.validity();
    let (begin, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    ensure!(now <= end, "it has ended, on {}", validity.not_after);
    ensure!(begin <= now, "it begins only on {}", validity.not_before);
    let alternative = parsed.subject_alternative_name().context("an unreadable name in it")?;
    let names = alternative.iter().flat_map(|names| &names.value.general_names);
    let hosts = names.filter_map(|name| match name {
        GeneralName::DNSName(host) => Some(host.to_ascii_lowercase()),
        _ => None,
    });
    let name = |host: String| match host.strip_prefix("*.") {
        Some(domain) => Name::Below(domain.to_owned()),
        None => Name::Host(host),
    };
    Ok((end, hosts.map(name).collect()))
}
