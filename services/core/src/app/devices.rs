//! Devices and networks from which a member has logged in before.
//!
//! A log-in gives the client a cookie that names its device, signed for this member. A stranger who
//! guesses the member's password has no such cookie, so guesses do not lock the member out (see OWASP,
//! "Slow Down Online Guessing Attacks with Device Cookies"). The cookie is no credential: it replaces
//! no password, and a device has its own bound on failures.
//!
//! Networks are remembered in this process's memory, so they are forgotten at its restart; devices are
//! remembered by the cookie.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, Mac};
use moka::sync::Cache;
use sha2::Sha256;

use super::client_source::{ClientSource, DEVICE_ID_BYTES as ID_BYTES, DeviceId};
use crate::domain::account::MemberId;
use crate::domain::token::{NoEntropy, random_bytes};

/// How long a device is recognised after its cookie was set: 180 days.
pub const DEVICE_LIFETIME: TimeDelta = TimeDelta::days(180);
/// How long a network is remembered after the member's last log-in from there: 30 days.
const NETWORK_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Most pairs of a member and a network that are remembered; about 100 bytes each.
const MAX_NETWORKS: u64 = 100_000;

const TIME_BYTES: usize = 8;
const MAC_BYTES: usize = 32;

type Signature = Hmac<Sha256>;

/// Signs and recognises devices, and remembers networks.
pub struct Devices {
    key: [u8; 32],
    networks: Cache<[u8; 16], ()>,
}

impl Devices {
    /// Devices signed with `key`. All core processes have the same one.
    pub fn new(key: [u8; 32]) -> Self {
        let networks =
            Cache::builder().max_capacity(MAX_NETWORKS).time_to_live(NETWORK_LIFETIME).build();
        Self { key, networks }
    }

    /// The cookie's value for a device from which `member` has just logged in: the device's id, the
    /// time in seconds, and the signature of both and of the member, in unpadded base64url.
    ///
    /// # Errors
    /// [`NoEntropy`].
    pub fn issue(&self, member: &MemberId, now: DateTime<Utc>) -> Result<String, NoEntropy> {
        let mut text = random_bytes()?[..ID_BYTES].to_vec();
        text.extend(now.timestamp().to_be_bytes());
        let signature = self.signature(member.as_str(), &text).finalize().into_bytes();
        text.extend(signature);
        Ok(URL_SAFE_NO_PAD.encode(text))
    }

    /// The device that a cookie names, if the cookie was issued for this account.
    pub fn recognise(&self, account: &str, cookie: &str, now: DateTime<Utc>) -> Option<DeviceId> {
        let bytes = URL_SAFE_NO_PAD.decode(cookie).ok()?;
        if bytes.len() != ID_BYTES + TIME_BYTES + MAC_BYTES {
            return None;
        }
        let (text, signature) = bytes.split_at(ID_BYTES + TIME_BYTES);
        // In constant time.
        self.signature(account, text).verify_slice(signature).ok()?;
        let (id, issued_at) = text.split_first_chunk::<ID_BYTES>()?;
        let issued_at = i64::from_be_bytes(issued_at.try_into().ok()?);
        let ends_at = DateTime::from_timestamp(issued_at, 0)? + DEVICE_LIFETIME;
        (now < ends_at).then_some(DeviceId(*id))
    }

    /// Remembers that the member has logged in from there.
    pub fn remember(&self, member: &MemberId, source: &ClientSource) {
        if let ClientSource::Network(_) = source {
            self.networks.insert(self.network(member.as_str(), source), ());
        }
    }

    /// Whether the member has logged in from there before.
    pub fn knows(&self, account: &str, source: &ClientSource) -> bool {
        self.networks.get(&self.network(account, source)).is_some()
    }

    /// The member and the network as a keyed hash: memory holds no list of members' addresses.
    fn network(&self, account: &str, source: &ClientSource) -> [u8; 16] {
        let mac = self.signature(account, source.to_string().as_bytes()).finalize().into_bytes();
        std::array::from_fn(|at| mac[at])
    }

    fn signature(&self, account: &str, text: &[u8]) -> Signature {
        let mut mac = <Signature as Mac>::new_from_slice(&self.key)
            .expect("HMAC accepts a key of any length");
        mac.update(&(account.len() as u64).to_be_bytes());
        mac.update(account.as_bytes());
        mac.update(text);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hana() -> MemberId {
        MemberId::parse("hana12345").unwrap()
    }

    #[test]
    fn a_device_is_recognised_for_its_member_until_its_cookie_is_old() {
        let devices = Devices::new([1; 32]);
        let now = DateTime::UNIX_EPOCH;
        let cookie = devices.issue(&hana(), now).unwrap();
        assert_ne!(cookie, devices.issue(&hana(), now).unwrap());
        let later = now + DEVICE_LIFETIME - TimeDelta::seconds(1);
        let device = devices.recognise("hana12345", &cookie, later);
        assert!(device.is_some());
        assert_eq!(devices.recognise("hana12345", &cookie, now), device);
        assert_eq!(devices.recognise("hana12345", &cookie, now + DEVICE_LIFETIME), None);
        assert_eq!(devices.recognise("duli12345", &cookie, now), None, "another member");
        assert_eq!(Devices::new([2; 32]).recognise("hana12345", &cookie, now), None, "another key");
    }

    #[test]
    fn an_altered_cookie_is_no_device() {
        let devices = Devices::new([1; 32]);
        let now = DateTime::UNIX_EPOCH;
        let cookie = devices.issue(&hana(), now).unwrap();
        for at in 0..cookie.len() {
            let mut altered = cookie.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).unwrap();
            assert_eq!(devices.recognise("hana12345", &altered, now), None, "{at}");
        }
        for text in ["", "A", "광고", &"A".repeat(10_000)] {
            assert_eq!(devices.recognise("hana12345", text, now), None);
        }
    }

    #[test]
    fn a_network_is_known_for_its_member() {
        let devices = Devices::new([1; 32]);
        let network = |text: &str| ClientSource::Network(text.parse().unwrap());
        devices.remember(&hana(), &network("203.0.113.1"));
        devices.remember(&hana(), &ClientSource::Unknown);
        assert!(devices.knows("hana12345", &network("203.0.113.1")));
        assert!(!devices.knows("hana12345", &network("203.0.113.2")));
        assert!(!devices.knows("duli12345", &network("203.0.113.1")));
        assert!(!devices.knows("hana12345", &ClientSource::Unknown));
    }
}
