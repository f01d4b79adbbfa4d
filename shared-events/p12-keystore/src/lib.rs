//! The part of p12-keystore's interface that lapin's TLS names, without PKCS#12.
//!
//! lapin's TLS can read a client's certificate from a PKCS#12 file. Tourin has no setting for that,
//! and the crate cannot be turned off; with it come 28 more, for formats and ciphers such as RC2 and
//! DES. So `[patch.crates-io]` puts this crate in its place. It goes when tcp-stream makes
//! PKCS#12 a feature.

#![forbid(unsafe_code)]

use std::fmt;

/// A key store. There is none without PKCS#12.
#[derive(Debug)]
pub enum KeyStore {}

/// A private key with its certificates.
#[derive(Debug)]
pub enum PrivateKeyChain {}

/// A certificate.
#[derive(Debug)]
pub enum Certificate {}

/// PKCS#12 is not built in.
#[derive(Debug)]
pub struct Error;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this program cannot read PKCS#12 files")
    }
}

impl std::error::Error for Error {}

impl KeyStore {
    /// Reads no file.
    ///
    /// # Errors
    /// Always.
    pub fn from_pkcs12(_: &[u8], _: &str) -> Result<Self, Error> {
        Err(Error)
    }

    /// The first private key.
    pub fn private_key_chain(&self) -> Option<(&str, &PrivateKeyChain)> {
        match *self {}
    }
}

impl PrivateKeyChain {
    /// The private key, PKCS#8 in DER.
    pub fn key(&self) -> &[u8] {
        match *self {}
    }

    /// Its certificates.
    pub fn chain(&self) -> &[Certificate] {
        match *self {}
    }
}

impl Certificate {
    /// The certificate in DER.
    pub fn as_der(&self) -> &[u8] {
        match *self {}
    }
}
