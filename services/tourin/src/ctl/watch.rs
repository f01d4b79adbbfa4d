//! `tourin ctl watch`: every change as it happens.

use std::io::Write as _;
use std::time::Duration;

use chrono::Utc;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::sse::{Event, Parser};
use tourin_registry_api::wire::{CHANGE_EVENT, SNAPSHOT_EVENT};
use tourin_registry_api::{
    Change, ChangeKind, DownReason, Instance, RegistryClient, Snapshot, Status,
};

use crate::events::table::time;

/// The longest event, in bytes: a snapshot of as many instances as a registry holds.
const MAX_EVENT_BYTES: usize = 64 * 1024 * 1024;
const PAUSE: Duration = Duration::from_millis(500);

/// Prints changes until `stop`. A watch that breaks off is resumed where it was.
///
/// # Errors
/// When the registry refuses the first watch, or nothing can be printed.
pub(super) async fn run(
    registry: &RegistryClient,
    service: Option<&str>,
    stop: &Shutdown,
) -> anyhow::Result<()> {
    let mut cursor = Cursor::default();
    // What is wrong with the call itself is said at once.
    let mut open = Some(registry.watch(0, 0, None).await?);
    loop {
        let following = async {
            let mut response = match open.take() {
                Some(response) => response,
                None => registry.watch(cursor.version, cursor.epoch, None).await?,
            };
            let mut parser = Parser::new(MAX_EVENT_BYTES);
            while let Some(piece) = response.chunk().await? {
                for event in parser.push(&piece)? {
                    for line in cursor.lines(&event, service)? {
                        writeln!(std::io::stdout(), "{line}")?;
                    }
                }
            }
            anyhow::Ok(())
        };
        tokio::select! {
            () = stop.begun() => return Ok(()),
            followed = following => match followed {
                // The reader of a pipe has gone.
                Err(error) if error.is::<std::io::Error>() => return Ok(()),
                Err(error) => tracing::warn!(%error, "the watch broke off"),
                Ok(()) => tracing::info!("the registry closed the watch"),
            }
        }
        tokio::select! {
            () = stop.begun() => return Ok(()),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Where a watch is.
#[derive(Default)]
struct Cursor {
    epoch: u64,
    version: u64,
}

impl Cursor {
    /// The lines of an event, and moves on.
    fn lines(&mut self, event: &Event, service: Option<&str>) -> anyhow::Result<Vec<String>> {
        let is_wanted = |instance: &Instance| service.is_none_or(|name| instance.service == name);
        match &*event.name {
            SNAPSHOT_EVENT => {
                let Snapshot { epoch, version, instances, .. } = serde_json::from_str(&event.data)?;
                (self.epoch, self.version) = (epoch, version);
                let wanted = instances.iter().filter(|instance| is_wanted(instance));
                Ok(wanted.map(|one| line(version, one, &one.status.to_string())).collect())
            }
            CHANGE_EVENT => {
                let Change { version, kind, instance } = serde_json::from_str(&event.data)?;
                self.version = version;
                let state = match kind {
                    ChangeKind::Up => Status::Up.to_string(),
                    ChangeKind::Draining => Status::Draining.to_string(),
                    ChangeKind::OutOfService => Status::OutOfService.to_string(),
                    ChangeKind::Down { reason: DownReason::Left } => "LEFT".to_owned(),
                    ChangeKind::Down { reason: DownReason::Expired } => Status::Expired.to_string(),
                };
                let shown = is_wanted(&instance).then(|| line(version, &instance, &state));
                Ok(shown.into_iter().collect())
            }
            _ => Ok(Vec::new()),
        }
    }
}

fn line(version: u64, instance: &Instance, state: &str) -> String {
    let Instance { service, id, address, .. } = instance;
    let (now, weight) = (time(Utc::now()), instance.weight());
    format!("{now}  {version}  {service}/{id}  {state}  {address}  weight {weight}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_goes_on_from_the_last_change_also_of_another_service() {
        let mut cursor = Cursor::default();
        let instance = Instance::new("core", "core-1", ([127, 0, 0, 1], 4001).into());
        let snapshot = Snapshot {
            epoch: 5,
            version: 7,
            instances: vec![instance.clone()],
            protected: Vec::new(),
        };
        let event =
            |name: &str, data: String| Event { name: name.to_owned(), data, id: String::new() };
        let first = event(SNAPSHOT_EVENT, serde_json::to_string(&snapshot).unwrap());
        let lines = cursor.lines(&first, None).unwrap();
        assert!(lines[0].contains("core/core-1  UP"), "{lines:?}");
        let kind = ChangeKind::Down { reason: DownReason::Expired };
        let change = Change { version: 8, kind, instance };
        let change = event(CHANGE_EVENT, serde_json::to_string(&change).unwrap());
        assert!(cursor.lines(&change, Some("gateway")).unwrap().is_empty());
        assert_eq!((cursor.epoch, cursor.version), (5, 8));
        assert!(cursor.lines(&change, Some("core")).unwrap()[0].contains("EXPIRED"));
    }
}
