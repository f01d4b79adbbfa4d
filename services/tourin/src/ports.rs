//! The ports of the mesh's parts.
//!
//! They are saved in the data folder and used again at the next start, so that an audit, a browser or
//! Prometheus continues after a restart. A port that another process has taken is replaced, and the log
//! says so.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;

use anyhow::Context;
use rand::Rng;

use crate::data_dir::DataDir;

/// The file in the data folder: a JSON object by part.
const FILE: &str = "ports.json";
/// The kernel's range of ports for outgoing connections, any of which may be in use at a restart.
const OUTGOING: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Ports that parts listen on: above the usual ports of servers, below the kernel's default range.
const PREFERRED: Range<u16> = 15_000..32_000;
/// Ports that are tried before the kernel is asked for one.
const TRIES: usize = 200;

/// The ports by part.
#[derive(Debug)]
pub(crate) struct Ports {
    remembered: BTreeMap<String, u16>,
    /// Bound until the part binds its address.
    held: BTreeMap<String, TcpListener>,
    outgoing: Range<u32>,
    /// Whether the data folder outlives the process.
    is_kept: bool,
}

impl Ports {
    /// Those of the last start on this data, if there was one.
    pub fn of(data_dir: &DataDir) -> Self {
        let remembered = data_dir.read(FILE).and_then(|text| {
            let parsed = serde_json::from_str(&text);
            if let Err(error) = &parsed {
                tracing::warn!(file = FILE, %error, "the ports of the last start cannot be read");
            }
            parsed.ok()
        });
        let outgoing = std::fs::read_to_string(OUTGOING).unwrap_or_default();
        Self {
            remembered: remembered.unwrap_or_default(),
            held: BTreeMap::new(),
            outgoing: range(&outgoing),
            is_kept: !data_dir.is_temporary(),
        }
    }

    /// Reserves an address for a part: `wanted`, or, if its port is 0, the port of the last start or a
    /// free one.
    pub fn reserve(&mut self, part: &str, wanted: SocketAddr) {
        if wanted.port() != 0 {
            // If the port is taken, the part binds it itself and reports the error.
            if let Ok(listener) = TcpListener::bind(wanted) {
                self.held.insert(part.to_owned(), listener);
            }
            return;
        }
        if !self.is_kept {
            return;
        }
        let at = |port| SocketAddr::new(wanted.ip(), port);
        let last = self.remembered.get(part).copied();
        if let Some(listener) = last.and_then(|port| TcpListener::bind(at(port)).ok()) {
            self.held.insert(part.to_owned(), listener);
            return;
        }
        // Without a free port the part binds port 0 itself, and reports the error.
        let Some((port, listener)) = self.free(at) else { return };
        if let Some(last) = last {
            tracing::warn!(
                part,
                port = last,
                instead = port,
                "the port of the last start is taken"
            );
        }
        self.remembered.insert(part.to_owned(), port);
        self.held.insert(part.to_owned(), listener);
    }

    /// Releases the address of a part, which binds it at once.
    pub fn release(&mut self, part: &str, wanted: SocketAddr) -> SocketAddr {
        let reserved = self.held.remove(part).and_then(|listener| listener.local_addr().ok());
        reserved.unwrap_or(wanted)
    }

    /// Saves the ports for the next start.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, data_dir: &DataDir) -> anyhow::Result<()> {
        if !self.is_kept {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(&self.remembered).context("ports as JSON")?;
        data_dir.write(FILE, &text)
    }

    /// A free port, if possible outside of the kernel's range.
    fn free(&self, at: impl Fn(u16) -> SocketAddr) -> Option<(u16, TcpListener)> {
        let mut random = rand::rng();
        let candidates = (0..TRIES).map(|_| random.random_range(PREFERRED));
        candidates
            .filter(|port| !self.outgoing.contains(&u32::from(*port)))
            .filter(|port| !self.remembered.values().any(|taken| taken == port))
            .chain([0])
            .find_map(|port| {
                let listener = TcpListener::bind(at(port)).ok()?;
                Some((listener.local_addr().ok()?.port(), listener))
            })
    }
}

/// Parses the kernel's range, `32768\t60999`; empty if it cannot be read.
fn range(text: &str) -> Range<u32> {
    let mut ends = text.split_whitespace().map_while(|end| end.parse::<u32>().ok());
    match (ends.next(), ends.next()) {
        (Some(first), Some(last)) => first..last + 1,
        _ => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    fn started(folder: &Path) -> BTreeMap<&'static str, SocketAddr> {
        let data_dir = DataDir::open(folder).unwrap();
        let mut ports = Ports::of(&data_dir);
        for part in ["core", "registry"] {
            ports.reserve(part, ANY);
        }
        ports.save(&data_dir).unwrap();
        ["core", "registry"].into_iter().map(|part| (part, ports.release(part, ANY))).collect()
    }

    #[test]
    fn ports_are_those_of_the_last_start_unless_taken() {
        let folder = tempfile::tempdir().unwrap();
        let first = started(folder.path());
        assert!(first.values().all(|address| PREFERRED.contains(&address.port())), "{first:?}");
        assert_ne!(first["core"], first["registry"]);
        assert_eq!(started(folder.path()), first);
        let taken = TcpListener::bind(first["core"]).unwrap();
        let third = started(folder.path());
        assert_ne!(third["core"], first["core"]);
        assert_eq!(third["registry"], first["registry"]);
        drop(taken);
        assert_eq!(started(folder.path()), third, "the replacement is remembered");
    }

    #[test]
    fn a_port_that_was_chosen_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let mut ports = Ports::of(&DataDir::open(folder.path()).unwrap());
        let chosen = tourin_testbed::free_address();
        ports.reserve("gateway", chosen);
        assert!(TcpListener::bind(chosen).is_err(), "no other part can choose it");
        assert_eq!(ports.release("gateway", chosen), chosen);
        assert!(TcpListener::bind(chosen).is_ok());
        assert!(ports.remembered.is_empty());
    }

    #[test]
    fn an_invalid_ports_file_means_a_first_start() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(Ports::of(&DataDir::open(folder.path()).unwrap()).remembered.is_empty());
    }

    #[test]
    fn ports_of_outgoing_connections_are_left_alone() {
        assert_eq!(range("32768\t60999\n"), 32_768..61_000);
        assert_eq!(range(""), 0..0);
        let folder = tempfile::tempdir().unwrap();
        let mut ports = Ports::of(&DataDir::open(folder.path()).unwrap());
        // All that is preferred is the kernel's: it chooses.
        ports.outgoing = range("1024 65535");
        assert!(ports.free(|port| SocketAddr::new(ANY.ip(), port)).is_some());
    }
}
