//! The source of a call, by which clients are told apart where one may use up what others need.

use std::fmt;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::domain::token::SessionId;

/// Length of a device's id in bytes.
pub const DEVICE_ID_BYTES: usize = 16;
/// Characters of a pseudonym that count; the gateway's are shorter.
const MAX_CHARS: usize = 32;

/// The source that an attempt comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientSource {
    /// A client's network, by its first address.
    Network(IpAddr),
    /// A visitor whose network is unknown.
    Visitor(String),
    /// A device from which the member has logged in before.
    Device(DeviceId),
    /// An open session of the member.
    Session(SessionId),
    /// Unknown. All such attempts count as one source.
    Unknown,
}

impl fmt::Display for ClientSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => write!(f, "network {address}"),
            Self::Visitor(pseudonym) => write!(f, "visitor {}", bounded(pseudonym)),
            Self::Device(device) => write!(f, "device {device}"),
            Self::Session(session) => write!(f, "session {session}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// A device's random id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceId(pub [u8; DEVICE_ID_BYTES]);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

fn bounded(pseudonym: &str) -> String {
    pseudonym.chars().take(MAX_CHARS).collect()
}
