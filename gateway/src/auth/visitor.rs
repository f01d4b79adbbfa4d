//! Pseudonyms for visitors without a session.
//!
//! Services count visitors without identifying them. A pseudonym is a keyed hash of the visitor's
//! network (IPv4 address, IPv6 /64). The key is random; core gives all gateways the same one and
//! destroys it when the day is over (UTC), as the gateway does. So a pseudonym is the same at every
//! gateway for a day, cannot be linked to the next day's, and cannot be computed again later.
//!
//! Without core the gateway uses a random key of its own: a visitor may then count once per gateway.
//!
//! The User-Agent is left out: a client could choose it to count many times. Visitors behind one
//! address count as one.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use moka::sync::Cache;
use serde::Deserialize;
use sha2::Sha256;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tourin_chassis::identity::{KnownSubject, Subject};
use tourin_chassis::secret::Secret;

use crate::limits::network_of;
use crate::mesh_client::{CORE, MeshClient};

const PATH: &str = "/internal/visitor-key";
const TIMEOUT: Duration = Duration::from_millis(2_000);
const RETRY_AFTER: Duration = Duration::from_millis(1_000);
/// Between two requests for a key, so that a wrong clock does not keep core busy.
const MIN_WAIT: Duration = Duration::from_millis(250);
const DAY: Duration = Duration::from_secs(24 * 3_600);
const MAX_RESPONSE_BYTES: usize = 1 << 10;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Characters of base32 that are kept: 130 bits.
const LENGTH: usize = 26;

/// Visitors of a day that are remembered.
const MAX_REMEMBERED: u64 = 20_000;

type Key = [u8; 32];

/// Core's response.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyOfTheDay {
    key: String,
    ms_left: u64,
}

/// The visitors of a day.
pub struct Visitors {
    today: ArcSwap<Day>,
    is_shared: AtomicBool,
}

/// A day's key, and the visitors that it has named. They are forgotten with it.
struct Day {
    key: Key,
    named: Cache<IpAddr, Arc<KnownSubject>>,
}

impl Day {
    fn new(key: Key) -> Self {
        Self { key, named: Cache::new(MAX_REMEMBERED) }
    }
}

impl Default for Visitors {
    /// With a random key of this process.
    fn default() -> Self {
        let today = ArcSwap::from_pointee(Day::new(random_key()));
        Self { today, is_shared: AtomicBool::new(false) }
    }
}

impl Visitors {
    /// The visitor at an address, by today's pseudonym.
    pub fn subject(&self, address: IpAddr) -> Arc<KnownSubject> {
        let (today, network) = (self.today.load(), network_of(address));
        if let Some(known) = today.named.get(&network) {
            return known;
        }
        let pseudonym = pseudonym(&today.key, network);
        let subject = Arc::new(KnownSubject::from(Subject::Visitor { pseudonym }));
        today.named.insert(network, Arc::clone(&subject));
        subject
    }

    /// Whether the key is core's, and so that of all gateways.
    pub fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// Gets each day's key from core, until `stop`.
    pub async fn follow(&self, mesh: MeshClient, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep_key(mesh)).await;
    }

    async fn keep_key(&self, mesh: MeshClient) {
        let mut membership = mesh.directory().changed();
        let mut key_ends = Instant::now() + DAY;
        loop {
            match key_of_the_day(&mesh).await {
                Ok((key, left)) => {
                    self.today.store(Arc::new(Day::new(key)));
                    self.is_shared.store(true, Ordering::Relaxed);
                    key_ends = Instant::now() + left.clamp(MIN_WAIT, DAY);
                    tokio::time::sleep_until(key_ends).await;
                }
                Err(error) => {
                    // A key is replaced after its day also when core cannot be asked.
                    if Instant::now() >= key_ends {
                        key_ends = Instant::now() + DAY;
                        self.today.store(Arc::new(Day::new(random_key())));
                        self.is_shared.store(false, Ordering::Relaxed);
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "no shared key for visitors' pseudonyms; using one of this gateway's own"
                        );
                    }
                    tokio::select! {
                        () = tokio::time::sleep(RETRY_AFTER) => {}
                        Ok(()) = membership.changed() => {}
                    }
                }
            }
        }
    }
}

async fn key_of_the_day(mesh: &MeshClient) -> anyhow::Result<(Key, Duration)> {
    let response = mesh.get(CORE, PATH, TIMEOUT, MAX_RESPONSE_BYTES).await?;
    // The parser's error is dropped, because it may contain the key.
    let of_today: KeyOfTheDay =
        serde_json::from_slice(&response).ok().context("core's response cannot be read")?;
    let key = URL_SAFE_NO_PAD.decode(of_today.key).ok().and_then(|key| key.try_into().ok());
    Ok((key.context("core's visitor key is malformed")?, Duration::from_millis(of_today.ms_left)))
}

fn random_key() -> Key {
    Secret::random().derive_key("tourin/visitor")
}

/// The pseudonym of a network.
fn pseudonym(key: &Key, network: IpAddr) -> String {
    let mut mac =
        <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC accepts a key of any length");
    mac.update(network.to_string().as_bytes());
    let digest = mac.finalize().into_bytes();
    let mut name = String::from("anon:");
    name.extend(base32(&digest).take(LENGTH));
    name
}

/// RFC 4648, lower case, without padding.
fn base32(bytes: &[u8]) -> impl Iterator<Item = char> + '_ {
    (0..bytes.len() * 8 / 5).map(|index| {
        let bit = index * 5;
        let high = u16::from(bytes[bit / 8]) << 8;
        let low = u16::from(bytes.get(bit / 8 + 1).copied().unwrap_or(0));
        let five = (high | low) >> (11 - bit % 8) & 0b1_1111;
        char::from(ALPHABET[usize::from(five)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_is_the_standards() {
        let text = |bytes: &[u8]| base32(bytes).collect::<String>();
        assert_eq!(text(b"fooba"), "mzxw6ytb");
        assert_eq!(text(b"\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00"), "77777777aaaaaaaa");
    }

    #[test]
    fn a_visitor_has_one_name_per_key() {
        let key = [7; 32];
        let address: IpAddr = "203.0.113.9".parse().unwrap();
        let name = pseudonym(&key, address);
        assert_eq!(name.len(), "anon:".len() + LENGTH);
        assert!(name["anon:".len()..].bytes().all(|byte| ALPHABET.contains(&byte)));
        assert_eq!(name, pseudonym(&key, address));
        for other in
            [pseudonym(&[8; 32], address), pseudonym(&key, "203.0.113.10".parse().unwrap())]
        {
            assert_ne!(name, other);
        }
    }

    /// The keys depend on nothing that an attacker may get hold of later, such as the mesh's keys.
    #[test]
    fn two_processes_have_nothing_in_common_before_core_gives_them_a_key() {
        let address: IpAddr = "203.0.113.9".parse().unwrap();
        let [one, other] = [Visitors::default(), Visitors::default()];
        assert!(!one.is_shared());
        assert_ne!(one.subject(address), other.subject(address));
        assert_eq!(one.subject(address), one.subject(address));
    }

    #[test]
    fn names_are_forgotten_with_the_days_key() {
        let address: IpAddr = "203.0.113.9".parse().unwrap();
        let visitors = Visitors::default();
        let before = visitors.subject(address);
        let day = Arc::downgrade(&visitors.today.load_full());
        visitors.today.store(Arc::new(Day::new([7; 32])));
        assert_ne!(visitors.subject(address), before);
        assert!(day.upgrade().is_none());
    }

    #[test]
    fn a_whole_ipv6_network_is_one_visitor() {
        let visitors = Visitors::default();
        let name = |address: &str| visitors.subject(address.parse().unwrap());
        assert_eq!(name("2001:db8::1"), name("2001:db8::ffff:2"));
        assert_ne!(name("2001:db8::1"), name("2001:db8:0:1::1"));
        assert_eq!(name("::ffff:203.0.113.9"), name("203.0.113.9"));
        assert_ne!(name("::ffff:203.0.113.9"), name("::ffff:203.0.113.10"));
    }
}
