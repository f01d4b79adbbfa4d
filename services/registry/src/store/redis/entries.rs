//! Entries of the streams: changes and departures.

use anyhow::Context as _;
use tourin_registry_api::wire::DepartureRecord;
use tourin_registry_api::{Change, ChangeKind, DownReason, Instance, Status};

use super::key;
use crate::domain::{Key, Override, kind_of};

/// An entry of Redis: its id, then field, value, field, value.
pub(super) type Entry = (String, Vec<String>);

fn field<'a>(entry: &'a Entry, name: &str) -> anyhow::Result<&'a str> {
    let mut pairs = entry.1.chunks_exact(2);
    let found = pairs.find(|pair| pair[0] == name).map(|pair| pair[1].as_str());
    found.with_context(|| format!("redis: an entry without {name}"))
}

/// An operator's decisions; empty: none.
pub(super) fn decided(text: &str) -> anyhow::Result<Override> {
    match text {
        "" => Ok(Override::default()),
        text => serde_json::from_str(text).context("redis: an operator's decisions"),
    }
}

/// An instance as everybody sees it.
pub(super) fn seen(instance: &str, drains: &str, overrides: &str) -> anyhow::Result<Instance> {
    let mut instance: Instance = serde_json::from_str(instance).context("redis: an instance")?;
    if drains == "1" {
        instance.status = Status::Draining;
    }
    Ok(decided(overrides)?.applied(instance))
}

fn instance(entry: &Entry) -> anyhow::Result<Instance> {
    seen(field(entry, "instance")?, field(entry, "drains")?, field(entry, "decided")?)
}

fn reason(gone: &str) -> anyhow::Result<DownReason> {
    match gone {
        "left" => Ok(DownReason::Left),
        "expired" => Ok(DownReason::Expired),
        gone => anyhow::bail!("redis: an unknown end {gone:?}"),
    }
}

/// A change. The entry's id is `VERSION-0`.
pub(super) fn change(entry: &Entry) -> anyhow::Result<(Key, Change)> {
    let version = entry.0.split('-').next().and_then(|version| version.parse().ok());
    let version = version.context("redis: a change without a version")?;
    let instance = instance(entry)?;
    let kind = match field(entry, "gone")? {
        "" => kind_of(&instance),
        gone => ChangeKind::Down { reason: reason(gone)? },
    };
    Ok((key(field(entry, "id")?)?, Change { version, kind, instance }))
}

/// A departure.
pub(super) fn departure(entry: &Entry) -> anyhow::Result<DepartureRecord> {
    let said = match field(entry, "said")? {
        "" => None,
        said => Some(serde_json::from_str(said).context("redis: what an instance said")?),
    };
    Ok(DepartureRecord {
        at_ms: field(entry, "at")?.parse().context("redis: a departure's time")?,
        instance: instance(entry)?,
        reason: reason(field(entry, "gone")?)?,
        said,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_as_everybody_sees_its_instance() {
        let registered = Instance::new("core", "a", ([127, 0, 0, 1], 4001).into());
        let entry = |drains: &str, decided: &str, gone: &str| {
            let fields = [
                ("id", "core/a"),
                ("instance", &serde_json::to_string(&registered).unwrap()),
                ("drains", drains),
                ("decided", decided),
                ("gone", gone),
            ]
            .map(|(name, value)| [name.to_owned(), value.to_owned()]);
            ("1700000000000007-0".to_owned(), fields.into_iter().flatten().collect())
        };
        let out = r#"{"out_of_service":true,"weight":7}"#;
        for (entry, kind, status) in [
            (entry("0", "", ""), ChangeKind::Up, Status::Up),
            (entry("1", out, ""), ChangeKind::Draining, Status::Draining),
            (entry("0", out, ""), ChangeKind::OutOfService, Status::OutOfService),
            (
                entry("0", "", "expired"),
                ChangeKind::Down { reason: DownReason::Expired },
                Status::Up,
            ),
        ] {
            let (key, change) = change(&entry).unwrap();
            assert_eq!((&*key.0, &*key.1), ("core", "a"));
            assert_eq!((change.version, change.kind), (1_700_000_000_000_007, kind));
            assert_eq!(change.instance.status, status);
        }
        assert!(change(&entry("0", "rubbish", "")).is_err());
        assert!(change(&entry("0", "", "lost")).is_err());
        assert!(change(&("7-0".to_owned(), Vec::new())).is_err());
    }
}
