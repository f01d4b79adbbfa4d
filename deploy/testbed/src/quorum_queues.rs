//! RabbitMQ's files of its quorum queues.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// RabbitMQ writes the names every half second.
const LIMIT: Duration = Duration::from_secs(30);
/// The interval between checks.
const INTERVAL: Duration = Duration::from_millis(50);

/// Waits until one of RabbitMQ's files names the replica of each queue.
pub(crate) async fn are_kept(data: &Path, queues: &[String]) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let kept = names(data).unwrap_or_default();
        let missing: Vec<_> = queues
            .iter()
            .filter(|queue| !kept.windows(queue.len()).any(|name| name == queue.as_bytes()))
            .collect();
        if missing.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "RabbitMQ did not keep {missing:?} in {LIMIT:?}");
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The unparsed tables of names of all nodes, `NODE/quorum/NODE/names.dets`.
fn names(data: &Path) -> io::Result<Vec<u8>> {
    let mut names = Vec::new();
    for node in fs::read_dir(data)? {
        let Ok(systems) = fs::read_dir(node?.path().join("quorum")) else {
            continue;
        };
        for system in systems {
            if let Ok(mut table) = fs::read(system?.path().join("names.dets")) {
                names.append(&mut table);
            }
        }
    }
    Ok(names)
}
