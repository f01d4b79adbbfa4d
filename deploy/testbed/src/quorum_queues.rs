//! RabbitMQ's files of its quorum queues.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::waiting::eventually_within;

/// RabbitMQ writes the names every half second.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until one of RabbitMQ's files names the replica of each queue.
pub(crate) async fn are_kept(data: &Path, queues: &[String]) {
    eventually_within(LIMIT, "RabbitMQ's files name all queues", async || {
        let kept = names(data).unwrap_or_default();
        let is_kept =
            |queue: &&String| kept.windows(queue.len()).any(|name| name == queue.as_bytes());
        match queues.iter().find(|queue| !is_kept(queue)) {
            None => Ok(()),
            Some(missing) => Err(missing),
        }
    })
    .await;
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
